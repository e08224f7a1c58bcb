"""What one request may change of how it is answered: the body's `consort` object, over the configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import get_args

from consort.config_serve import Goal, MixKind, MixSchedule, ServeConfig
from consort.errors import ParameterError
from consort.inference.cache import OFF

# what a parameter that is a word may say
WORDS: dict[str, tuple[str, ...]] = {
    "goal": get_args(Goal),
    "mix_kind": get_args(MixKind),
    "mix_schedule": get_args(MixSchedule),
}
LEAST_DEADLINE_S = 0.001  # nothing answers in less


@dataclass(frozen=True, slots=True)
class Parameters:
    """See `ServeConfig` for those that have the same name there."""

    threshold: float = 0.5
    optimistic: bool = False
    share: float = 0.5
    alike: float = OFF  # never below the measured one
    mix_kind: str = "mean"
    mix_weight: float = 0.9
    mix_edge_share: float = 0.45
    mix_schedule: str = "fixed"
    mix_half_life: float = 16.0
    stall_s: float = 5.0
    goal: str = "balance"
    deadline_s: float = 120.0  # never above the configured one
    redact: bool = False  # private spans reach no model where the cloud may be asked; once configured, always
    private: bool = False  # nothing of this request may leave the edge
    receipt: bool = False  # who wrote what, bytes, money and time, in the answer

    def checked(self) -> Parameters:
        """Itself; ParameterError where a value cannot be meant."""
        for name in NUMBERS:
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ParameterError("must be a number of at least 0", where=f"consort.{name}")
        if self.deadline_s < LEAST_DEADLINE_S:
            raise ParameterError(f"must be at least {LEAST_DEADLINE_S:g}", where="consort.deadline_s")
        for name, known in WORDS.items():
            if getattr(self, name) not in known:
                raise ParameterError(f"must be one of {', '.join(known)}", where=f"consort.{name}")
        if self.mix_edge_share > 1:
            raise ParameterError("must be between 0 and 1", where="consort.mix_edge_share")
        if not self.mix_half_life:
            raise ParameterError("must be more than 0 tokens", where="consort.mix_half_life")
        return self


KINDS: dict[str, type] = {field.name: type(field.default) for field in fields(Parameters)}
NUMBERS = tuple(name for name, kind in KINDS.items() if kind is float)


def configured(config: ServeConfig, *, alike: float = OFF) -> Parameters:
    """What holds where a request says nothing; `alike` is what the file of `serve.alike` measured."""
    return Parameters(
        threshold=config.threshold,
        optimistic=config.optimistic,
        share=config.share,
        alike=alike,
        mix_kind=config.mix_kind,
        mix_weight=config.mix_weight,
        mix_edge_share=config.mix_edge_share,
        mix_schedule=config.mix_schedule,
        mix_half_life=config.mix_half_life,
        stall_s=config.stall_s,
        goal=config.goal,
        redact=config.redact,
        deadline_s=config.deadline_s,
    )
