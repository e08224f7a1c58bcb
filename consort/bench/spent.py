"""How long a run took over all the processes that worked on it: each goes on from what was written down.

Time that a killed process had not written down yet is not counted: of its work, no more than the unfinished
steps are missing. Does not time single steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from consort.files import whole_file

SPENT = "seconds"  # in the journal's folder


class Spent:
    """Seconds of a run: those that `file` tells of, where it is resumed, and since this was made."""

    def __init__(self, file: Path, *, resume: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._clock, self._started = file, clock, clock()
        self._before = _written(file) if resume else 0.0

    @property
    def seconds(self) -> float:
        """In all, until now."""
        return self._before + self._clock() - self._started

    def keep(self) -> None:
        """Write it down for whoever resumes; a full disk is told where a result is lost by it."""
        with suppress(OSError), whole_file(self._file) as file:
            file.write(f"{self.seconds:.3f}\n".encode())


def _written(file: Path) -> float:
    try:
        return float(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # of an earlier version, or cut by a crash
        return 0.0
