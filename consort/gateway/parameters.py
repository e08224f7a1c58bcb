"""What one request may change of how it is answered: the body's `consort` object, over the configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import get_args

from consort.config_serve import Goal, ServeConfig
from consort.errors import RequestError

GOALS: tuple[str, ...] = get_args(Goal)
LEAST_DEADLINE_S = 0.001  # nothing answers in less


@dataclass(frozen=True, slots=True)
class Parameters:
    """See `ServeConfig` for those that have the same name there."""

    threshold: float = 0.5
    optimistic: bool = False
    share: float = 0.5
    alike: float = 2.0
    stall_s: float = 5.0
    goal: str = "balance"
    deadline_s: float = 120.0  # never above the configured one
    redact: bool = False  # private spans reach no model where the cloud may be asked; once configured, always
    private: bool = False  # nothing of this request may leave the edge
    receipt: bool = False  # who wrote what, bytes, money and time, in the answer

    def checked(self) -> Parameters:
        """Itself; RequestError where a value cannot be meant."""
        for name in NUMBERS:
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise RequestError("must be a number of at least 0", where=f"consort.{name}")
        if self.deadline_s < LEAST_DEADLINE_S:
            raise RequestError(f"must be at least {LEAST_DEADLINE_S:g}", where="consort.deadline_s")
        if self.goal not in GOALS:
            raise RequestError(f"must be one of {', '.join(GOALS)}", where="consort.goal")
        return self


KINDS: dict[str, type] = {field.name: type(field.default) for field in fields(Parameters)}
NUMBERS = tuple(name for name, kind in KINDS.items() if kind is float)


def configured(config: ServeConfig) -> Parameters:
    """What holds where a request says nothing."""
    return Parameters(
        threshold=config.threshold,
        optimistic=config.optimistic,
        share=config.share,
        alike=config.alike,
        stall_s=config.stall_s,
        goal=config.goal,
        redact=config.redact,
        deadline_s=config.deadline_s,
    )
