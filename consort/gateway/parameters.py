"""What one request may change of how it is answered: the body's `consort` object, over the configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from consort.config_serve import ServeConfig
from consort.errors import RequestError
from consort.inference.cache import OFF


@dataclass(frozen=True, slots=True)
class Parameters:
    """See `ServeConfig` for those that have the same name there."""

    threshold: float = 0.5
    optimistic: bool = False
    share: float = 0.5
    alike: float = OFF  # never below the measured one
    stall_s: float = 5.0
    goal: str = "balance"
    deadline_s: float = 120.0  # never above the configured one
    redact: bool = False  # private spans reach no model where the cloud may be asked; once configured, always
    private: bool = False  # nothing of this request may leave the edge
    receipt: bool = False  # who wrote what, bytes, money and time, in the answer

    def checked(self) -> Parameters:
        """Itself; RequestError where a value cannot be meant."""
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is float and not (math.isfinite(value) and value >= 0):
                raise RequestError("must be a number of at least 0", where=f"consort.{field.name}")
        if self.goal not in ("balance", "quality", "latency", "cost"):
            raise RequestError("must be balance, quality, latency or cost", where="consort.goal")
        return self


def configured(config: ServeConfig, *, alike: float = OFF) -> Parameters:
    """What holds where a request says nothing; `alike` is what the file of `serve.alike` measured."""
    return Parameters(
        threshold=config.threshold,
        optimistic=config.optimistic,
        share=config.share,
        alike=alike,
        stall_s=config.stall_s,
        goal=config.goal,
        redact=config.redact,
        deadline_s=config.deadline_s,
    )
