"""What a device's own models do before the first request: one token each, so that the edge which is to go on
where the cloud breaks off has read a prompt before. Asks no endpoint, counts nothing."""

from __future__ import annotations

import asyncio
import contextlib

from consort.errors import ConsortError
from consort.gateway.service import Service
from consort.types import LM, Message, Request

WARM_S = 5.0  # for all of them; who is slower warms at its first request
# begun, as after a cloud that broke off; drawn, as most requests are: what each way loads is loaded then
ASKED = Request((Message("user", "a"), Message("assistant", "a")), max_tokens=1, temperature=1.0, seed=0)


async def warm(service: Service) -> None:
    """Let each edge that runs here write a token, whatever it says to that."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(WARM_S):
            for lm in service.edges:
                if runs_here(service, lm):
                    await _warmed(lm)


def runs_here(service: Service, lm: LM) -> bool:
    """Whether a model is no endpoint."""
    model = service.prices.get(lm.name)
    return model is not None and not model.base_url


async def _warmed(lm: LM) -> None:
    with contextlib.suppress(ConsortError):  # as one without a chat template
        async for _ in lm.stream(ASKED):
            pass
