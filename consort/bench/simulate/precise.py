"""Real time, kept well: an asyncio loop that wakes when it should, and a place before other work.

What the proxy runs on, and what a program that measures through it should run on. Virtual time is `clock`.
"""

from __future__ import annotations

import asyncio
import os
import select
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def precise_run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` in real time with timers that are right to a fraction of a millisecond: the usual loops
    round each wait up to a whole one."""
    with asyncio.Runner(loop_factory=precise_loop) as runner:
        return runner.run(main)


def precise_loop() -> asyncio.SelectorEventLoop:
    """A loop that waits to the microsecond, not to the millisecond, where `epoll` is what it waits with."""
    rounds = hasattr(selectors, "EpollSelector")
    return asyncio.SelectorEventLoop(_Precise() if rounds else selectors.DefaultSelector())


class _Precise(selectors.DefaultSelector):
    """Waits with `select`, which takes microseconds, for `epoll`, which takes any number of files."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout > 0:
            select.select([self.fileno()], (), (), timeout)
        return super().select(0)


def take_precedence() -> bool:
    """Put this process before all ordinary work on the machine, so that it wakes when it should. For what
    mostly waits: a proxy, a measuring client. False where the system forbids it (on Linux it takes root)."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except (AttributeError, PermissionError):
        return False
    return True
