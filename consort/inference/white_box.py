"""Models whose next-token distributions can be read: here, or behind `consort serve --role cloud`.

One far away tells its tokens when it is first reached; whether it can be read is known before.
"""

from __future__ import annotations

from typing import cast

from consort.align import Vocabulary
from consort.errors import ModelError
from consort.types import LM, TokenLM


def white_box(lm: LM, *, where: str) -> TokenLM:
    """The model as a white box; ModelError for an endpoint that only answers. `where` names who asks."""
    if not hasattr(lm, "open"):
        raise ModelError(
            f"{where} needs a model whose next-token distributions can be read",
            where=lm.name,
            hint="serve the model itself (model = ...), or ask `consort serve --role cloud` (drafted = true)",
        )
    return cast("TokenLM", lm)


async def reached(lm: LM, *, where: str) -> TokenLM:
    """The same, connected to where it is far away, so that its tokens are known. UpstreamError where it is
    not there."""
    box = white_box(lm, where=where)
    connect = getattr(lm, "connect", None)
    if connect is not None:
        await connect()
    return box


def states_of(lm: TokenLM) -> str:
    """Names the weights whose hidden states the model's sessions show; empty where they show none."""
    return cast("str", getattr(lm, "states_sha256", ""))


def vocabulary_of(lm: TokenLM) -> Vocabulary:
    """The tokens of a white box that was reached."""
    return cast("Vocabulary", lm.tokenizer)
