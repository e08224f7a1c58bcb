"""When drafts pay, and how far they should go: measured, not assumed.

The verifier never waits for a draft, so an answer takes `plain_s` a token without drafts and `drafted_s` with
them; both are measured as answers go, and drafting stops where it does not pay (the off-switch). How far a
draft goes follows from two times: a piece is drafted in half a pass of the verifier, so that it is there when
the next pass begins; and from the drafter's own certainty: a path is followed as long as its chance is above
`least`, so that sure drafts are long and thin, doubtful ones short and wide. `spread`, which turns the
drafter's scores into chances, is corrected until predicted and measured acceptance agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from consort.types import DraftShape

MEMORY = 0.1  # weight of the newest measurement
TRIAL_TOKENS = 8  # without drafts at first, and with them before it is judged whether they pay
WORTH = 0.99  # drafted_s must be below this share of plain_s
PAUSE_ANSWERS = 16  # without drafts after they did not pay, then another attempt
DEEPEST, WIDEST = 8, 3
LEAST = 0.08  # a node costs the verifier and the link about a twelfth of what a token saves


@dataclass(slots=True)
class Pace:
    """What was measured between one drafter and one verifier; lives as long as they do."""

    plain_s: float | None = None  # a token, without drafts
    drafted_s: float | None = None  # a token, with drafts
    step_s: float | None = None  # between two pieces of an answer: a pass of the verifier
    level_s: float | None = None  # of the drafter
    acceptance: float = 0.8  # of a drafted token whose predecessors were right
    spread: float = 0.7
    paused: int = 0  # answers yet to come without drafts
    plain_tokens: int = 0
    drafted_tokens: int = 0

    def begins(self) -> bool:
        """An answer begins; whether it is to be drafted."""
        if self.paused:
            self.paused -= 1
            return False
        return True

    def is_trial(self) -> bool:
        """Whether it is yet to be measured how fast the verifier is without drafts."""
        return self.plain_tokens < TRIAL_TOKENS

    def pays(self) -> bool:
        """Whether drafts make tokens come sooner, as far as is known."""
        if self.plain_s is None or self.drafted_s is None or self.drafted_tokens < TRIAL_TOKENS:
            return True
        return self.drafted_s < WORTH * self.plain_s

    def gave_up(self) -> None:
        """Drafts did not pay: pause, and forget how slow they were, to give the next attempt its chance."""
        self.paused, self.drafted_s, self.drafted_tokens = PAUSE_ANSWERS, None, 0

    def shape(self, width: int = WIDEST) -> DraftShape:
        """How far the next draft goes."""
        depth = 4
        if self.step_s and self.level_s:
            depth = min(DEEPEST, max(2, round(self.step_s / (2 * self.level_s))))
        return DraftShape(depth=depth, width=width, least=LEAST, spread=self.spread)

    def drafted(self, levels: int, seconds: float) -> None:
        """A draft of so many levels took so long."""
        self.level_s = _averaged(self.level_s, seconds / max(1, levels))

    def came(self, tokens: int, seconds: float, *, drafted: bool) -> None:
        """A piece of so many tokens came so long after the one before."""
        self.step_s = _averaged(self.step_s, seconds)
        # a token's time is the ratio of averages, not the average of ratios: weigh by tokens
        for _ in range(tokens):
            if drafted:
                self.drafted_s = _averaged(self.drafted_s, seconds / tokens)
            else:
                self.plain_s = _averaged(self.plain_s, seconds / tokens)
        if drafted:
            self.drafted_tokens += tokens
        else:
            self.plain_tokens += tokens

    def judged(self, chance: float, right: bool) -> None:
        """A drafted token that was thought to have this chance was right, or not."""
        self.acceptance = _averaged(self.acceptance, float(right))
        # too sure: more spread
        self.spread = min(5.0, max(0.05, self.spread * math.exp(MEMORY * (chance - right))))


def _averaged(before: float | None, measured: float) -> float:
    return measured if before is None else before + MEMORY * (measured - before)
