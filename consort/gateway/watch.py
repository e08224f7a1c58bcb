"""The drift alarm at the endpoint: live scores against those that the scorer was calibrated on.

Rings once, on stderr, in `/metrics` and on the dashboard. Starts anew with the process: evidence of an
earlier one is about an earlier configuration.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from consort.gateway.ledger import Row
from consort.gateway.meters import Meters
from consort.inference.drift import DriftAlarm

# the notes that carry a score of the edge's answer, or of the prompt; each decision is counted once
AFTER = frozenset({("cascade", "accepted"), ("cascade", "deferred")})
BEFORE = frozenset({("route", "kept"), ("route", "deferred")})


@dataclass(slots=True)
class Watch:
    """One scorer's alarm, and the notes that carry its values."""

    alarm: DriftAlarm
    decisions: frozenset[tuple[str, str]]
    observed: int = 0

    def observe(self, row: Row, meters: Meters) -> None:
        """The scores of a finished request."""
        for note in row.notes:
            score = note.get("score")
            if (note["strategy"], note["event"]) not in self.decisions or not isinstance(score, float):
                continue
            was_ringing = self.alarm.ringing
            self.observed += 1
            if self.alarm.observe(score) and not was_ringing:
                print(
                    f"drift: after {self.observed} requests, scores are no longer those of the calibration; "
                    "thresholds may not keep their goals: calibrate anew (consort calibrate --ledger)",
                    file=sys.stderr,
                )
            meters.drift.set(self.alarm.evidence)
            meters.ringing.set(float(self.alarm.ringing))
