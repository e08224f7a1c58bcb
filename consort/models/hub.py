"""Whether a Hub id can be had at all, before the Hub's own client tries again and again for minutes.

Asks only for what is not in the cache. Downloads nothing: transformers does.
"""

from __future__ import annotations

import urllib.error
import urllib.request

from consort.errors import ModelError

PATIENCE_S = 10.0


def check_hub(model: str) -> None:
    """ModelError where the model is not in the cache and the Hub does not answer."""
    from huggingface_hub import constants, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(model, "config.json"), str):
        return
    reason = "HF_HUB_OFFLINE is set"
    if not constants.HF_HUB_OFFLINE:
        try:
            urllib.request.urlopen(constants.ENDPOINT, timeout=PATIENCE_S).close()
            return
        except urllib.error.HTTPError:  # it answers
            return
        except OSError as error:
            reason = f"{constants.ENDPOINT} cannot be reached: {getattr(error, 'reason', error)}"
    raise ModelError(
        f"no such directory, and as a Hub id it is not in the cache ({reason})",
        where=model,
        hint="mend the path, or give a Hub id that HF_HOME holds or that can be downloaded",
    )
