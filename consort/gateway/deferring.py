"""`consort/defer` for a gateway: what the models must be, and the share that is kept as long as it serves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from consort.config_serve import ServeConfig, ServedModel
from consort.errors import ConfigError, ModelError
from consort.gateway.ability import Refusal
from consort.gateway.loading import SPARE
from consort.inference.deferral import defer
from consort.inference.share import Share
from consort.inference.token_file import load_token_need
from consort.inference.token_need import SCORERS, SPREADS
from consort.inference.white_box import states_of, vocabulary_of, white_box
from consort.types import LM, Strategy

_HINT = 'set strategy = "defer" under [serve], so that memory is taken for sessions'
UNABLE = Refusal("no models are open for token deferral", _HINT)


def sessions_of(config: ServeConfig, edges: Sequence[ServedModel], cloud: ServedModel) -> int:
    """Sessions of the first edge and of the cloud: memory is taken where they are what is served, where other
    gateways may read this cloud, or where the models are the bundled ones, which take next to none."""
    bundled = all(model.model.startswith("zoo:") for model in (*edges[:1], cloud))
    read = config.strategy in ("defer", "mix") or bool(config.proxy.adapter) or config.role == "cloud"
    return config.sessions + SPARE if bundled or read else 0


def shows_states(config: ServeConfig) -> bool:
    """Whether the first edge's sessions show hidden states, for a learned scorer that may read them."""
    return config.token_scorer not in SCORERS


def deferral_of(config: ServeConfig, models: Sequence[LM], *, has_cloud: bool, sessions: int) -> Strategy:
    """The strategy for these models, the cloud's last, or why they cannot; where `serve.strategy` is defer,
    that is a ConfigError."""
    if not 0 <= config.llm_share <= 1:
        raise ConfigError("must be between 0 and 1", where="serve.llm_share")
    try:
        return _deferral(config, models, has_cloud, sessions)
    except ModelError as error:
        if config.strategy == "defer":
            where = "serve.strategy"
            raise ConfigError(f"{error.where}: {error.what}", where=where, hint=error.hint) from error
        return Refusal(f"{error.where}: {error.what}", error.hint)


def _deferral(config: ServeConfig, models: Sequence[LM], has_cloud: bool, sessions: int) -> Strategy:
    if not has_cloud or len(models) < 2:
        raise ModelError("needs an edge model and a cloud model", where="defer")
    small = white_box(models[0], where="defer")
    white_box(models[-1], where="defer")
    if sessions <= SPARE:
        raise ModelError("the models were opened without sessions", where="defer", hint=_HINT)
    name = config.token_scorer
    if name in SCORERS:
        # not calibrated: the controller finds the threshold within some hundred tokens
        scorer, share = SCORERS[name], Share(config.llm_share, np.linspace(*SPREADS[name], 101))
    else:
        scorer = load_token_need(Path(name), vocabulary_of(small), states_sha256=states_of(small))
        share = Share(config.llm_share, scorer.needs)
    return defer(scorer, share, silence_s=config.stall_s, at_once=sessions - SPARE)
