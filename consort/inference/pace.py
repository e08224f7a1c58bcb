"""When drafts pay, and how far they should go: measured, not assumed.

An answer takes so long a token without drafts (`plain`) and so long with them (`drafted`); both are measured
as answers go, and drafting stops where it does not pay (the off-switch).

A verifier far away never waits for a draft. How far one goes follows from two times: a first piece is drafted
in half a pass of the verifier, so that it is there when the next pass begins; a further one, less urgent, in
a whole pass. And it follows from the drafter's own certainty: a path is followed as long as its chance is
above `least`, so that sure drafts are long and thin, doubtful ones short and wide. `spread`, which turns the
drafter's scores into chances, is corrected until predicted and measured acceptance agree.

A verifier on this machine waits (`shape_in_turn`): what one computes, the other does not, so a chain is
followed as long as a token's chance times what it saves, a pass, is more than drafting it costs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from consort.types import DraftShape

MEMORY = 0.1  # weight of the newest measurement
WINDOW_TOKENS = 64  # over which a token's time is averaged
WINDOW_DRAFTS = 64
TRIAL_TOKENS = 8  # without drafts at first
JUDGED_TOKENS = 48  # with them before it is judged whether they pay: the first ones come late
WORTH = 0.98  # drafted_s must be below this share of plain_s
LONGEST_PAUSE = 16  # answers without drafts after they did not pay, then another attempt
FIRST, DEEPEST, WIDEST = 4, 8, 3
LEAST = 0.04  # a node costs the verifier and the link about as much of what a token saves
IN_TURN = 16  # tokens at most while the verifier waits: the chance ends a draft before
UNMEASURED = 0.4  # the least chance until it is known what a drafted token costs
SUREST = 0.9  # a drafter of which more is asked drafts nothing


def _wall_s() -> float:
    return time.monotonic()  # looked up at each call: virtual time puts another in its place


@dataclass(slots=True)
class Rate:
    """Seconds a token, of late."""

    seconds: float = 0.0
    tokens: float = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """So many tokens took so long."""
        kept = (1 - 1 / WINDOW_TOKENS) ** tokens
        self.seconds = kept * self.seconds + seconds
        self.tokens = kept * self.tokens + tokens

    @property
    def token_s(self) -> float | None:
        """None where nothing was measured."""
        return self.seconds / self.tokens if self.tokens else None


@dataclass(slots=True)
class Growth:
    """What each further token of a draft takes, of late: the slope of a line through drafts' lengths and
    seconds. What a draft of any length takes is not in it: whether to draft at all is not asked here."""

    weight: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0
    tokens_squared: float = 0.0
    product: float = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """A draft of so many tokens took so long."""
        kept = 1 - 1 / WINDOW_DRAFTS
        self.weight = kept * self.weight + 1
        self.tokens = kept * self.tokens + tokens
        self.seconds = kept * self.seconds + seconds
        self.tokens_squared = kept * self.tokens_squared + tokens**2
        self.product = kept * self.product + tokens * seconds

    @property
    def token_s(self) -> float | None:
        """None where all drafts were as long as each other."""
        spread = self.weight * self.tokens_squared - self.tokens**2
        if spread <= 1e-9 * self.weight**2:
            return None
        return (self.weight * self.product - self.tokens * self.seconds) / spread


@dataclass(slots=True)
class Pace:
    """What was measured between one drafter and one verifier; lives as long as they do."""

    plain: Rate = field(default_factory=Rate)  # without drafts
    drafted: Rate = field(default_factory=Rate)  # while there is drafting, also where it foresaw nothing
    step_s: float | None = None  # between two pieces of an answer: a pass of the verifier
    level_s: float | None = None  # of the drafter
    growth: Growth = field(default_factory=Growth)  # of drafts for which the verifier waits
    acceptance: float = 0.8  # of a drafted token whose predecessors were right
    spread: float = 0.7
    paused: int = 0  # answers yet to come without drafts
    next_pause: int = 1  # twice as long each time, until drafts pay again: one answer may be a bad one
    plain_tokens: int = 0
    drafted_tokens: int = 0
    clock: Callable[[], float] = _wall_s  # of the seconds that are to be saved

    def begins(self) -> bool:
        """An answer begins; whether it is to be drafted."""
        if self.paused:
            self.paused -= 1
            return False
        if self.drafted_tokens >= JUDGED_TOKENS and self.pays():
            self.next_pause = 1
        return True

    def is_trial(self) -> bool:
        """Whether it is yet to be measured how fast the verifier is without drafts."""
        return self.plain_tokens < TRIAL_TOKENS

    def pays(self) -> bool:
        """Whether drafts make tokens come sooner, as far as is known."""
        plain_s, drafted_s = self.plain.token_s, self.drafted.token_s
        if plain_s is None or drafted_s is None:
            return True
        if self.plain_tokens < TRIAL_TOKENS or self.drafted_tokens < JUDGED_TOKENS:
            return True
        return drafted_s < WORTH * plain_s

    def gave_up(self) -> None:
        """Drafts did not pay: pause, and forget how slow they were, to give the next attempt its chance."""
        self.paused, self.next_pause = self.next_pause, min(LONGEST_PAUSE, 2 * self.next_pause)
        self.drafted, self.drafted_tokens = Rate(), 0

    def shape(self, *, ahead: bool = False) -> DraftShape:
        """How far the next draft goes, which may continue one that the verifier does not know yet."""
        depth = DEEPEST if ahead else FIRST
        if self.step_s and self.level_s:
            depth = min(depth, max(2, round(self.step_s / (self.level_s * (1 if ahead else 2)))))
        return DraftShape(depth=depth, width=WIDEST, least=LEAST, spread=self.spread)

    def shape_in_turn(self, room: int) -> DraftShape:
        """How far the next draft goes, for which the verifier waits; no further than `room` tokens."""
        token_s, plain_s = self.growth.token_s, self.plain.token_s
        least = UNMEASURED if token_s is None or not plain_s else token_s / plain_s
        least = min(SUREST, max(LEAST, least))
        return DraftShape(depth=min(IN_TURN, room), width=1, least=least, spread=self.spread)

    def levels(self, levels: int, seconds: float) -> None:
        """A draft of so many levels took so long."""
        self.growth.add(levels, seconds)
        if levels:
            self.level_s = _averaged(self.level_s, seconds / levels)

    def came(
        self, tokens: int, seconds: float, *, pass_s: float | None = None, foreseen: bool, drafting: bool
    ) -> None:
        """A piece of so many tokens came so long after the one before, of which the verifier did not wait
        for `pass_s` (all of them); whether there was a draft of it, and whether drafts were wanted."""
        pass_s = seconds if pass_s is None else pass_s
        self.step_s = _averaged(self.step_s, pass_s)
        if not foreseen and tokens == 1:  # several were foreseen, if not by what is pending now
            self.plain.add(tokens, pass_s)
            self.plain_tokens += tokens
        if drafting:
            self.drafted.add(tokens, seconds)
            self.drafted_tokens += tokens

    def measured_ms(self) -> dict[str, float]:
        """What is known of the times, for the receipt."""
        known = {
            "plain_ms": self.plain.token_s,
            "drafted_ms": self.drafted.token_s,
            "step_ms": self.step_s,
            "level_ms": self.level_s,
        }
        return {name: round(1e3 * value, 3) for name, value in known.items() if value is not None}

    def judged(self, chance: float, right: bool) -> None:
        """A drafted token that was thought to have this chance was right, or not."""
        self.acceptance = _averaged(self.acceptance, float(right))
        # too sure: more spread
        self.spread = min(5.0, max(0.05, self.spread * math.exp(MEMORY * (chance - right))))


def _averaged(before: float | None, measured: float) -> float:
    return measured if before is None else before + MEMORY * (measured - before)
