"""`consort/defer` for a gateway: what the models must be, and the share that is kept as long as it serves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np

from consort.config_serve import ServeConfig, ServedModel
from consort.errors import ConfigError, ModelError, RequestError
from consort.inference.deferral import defer
from consort.inference.reading import vocabulary_of
from consort.inference.share import Share
from consort.inference.token_file import load_token_need
from consort.inference.token_need import SCORERS, SPREADS
from consort.types import LM, Chunk, Consort, Request, Strategy

_SPARE = 1  # sessions that a hang-up may still hold when the next answer begins


def deferral_of(
    config: ServeConfig, edges: Sequence[ServedModel], cloud: ServedModel, models: Sequence[LM]
) -> Strategy:
    """The strategy for these models. ConfigError where `serve.strategy` is defer and they cannot; else what
    cannot is refused when it is asked for."""
    try:
        return _deferral(config, edges, cloud, models)
    except ModelError as error:
        if config.strategy == "defer":
            raise ConfigError(
                f"{error.where}: {error.what}", where="serve.strategy", hint=error.hint
            ) from error
        return refusing(error)


def unable(request: Request, consort: Consort) -> AsyncIterator[Chunk]:
    """Nobody here can write token by token with another."""
    raise RequestError("no models are opened for token deferral here", where="consort/defer", hint=_HINT)


_HINT = 'set sessions = 4 for the first edge and the cloud, and serve.strategy = "defer" to be told more'


def refusing(error: ModelError) -> Strategy:
    """A strategy that tells every request why it cannot be answered."""

    def strategy(request: Request, consort: Consort) -> AsyncIterator[Chunk]:
        raise RequestError(error.what, where=error.where, hint=error.hint)

    return strategy


def _deferral(
    config: ServeConfig, edges: Sequence[ServedModel], cloud: ServedModel, models: Sequence[LM]
) -> Strategy:
    if not edges or not cloud.model:
        raise ModelError("needs an edge model and a cloud model", where="defer", hint=_HINT)
    small, large = models[0], models[-1]
    vocabulary, _ = (vocabulary_of(lm, where="defer") for lm in (small, large))
    sessions = min(model.sessions for model in (edges[0], cloud))
    if sessions <= _SPARE:
        raise ModelError("needs models with open sessions", where="defer", hint=_HINT)
    if not 0 <= config.llm_share <= 1:
        raise ConfigError("must be between 0 and 1", where="serve.llm_share")
    name = config.token_scorer
    if name in SCORERS:
        # not calibrated: the online controller finds the threshold
        share = Share(config.llm_share, np.linspace(*SPREADS[name], 101))
        return defer(SCORERS[name], share, silence_s=config.stall_s, at_once=sessions - _SPARE)
    learned = load_token_need(Path(name), vocabulary)
    share = Share(config.llm_share, learned.needs)
    return defer(learned, share, silence_s=config.stall_s, at_once=sessions - _SPARE)
