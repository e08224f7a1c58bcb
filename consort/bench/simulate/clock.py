"""A clock that jumps: an asyncio loop on which waiting takes no time, so that real async code runs a
simulated hour in a moment, and always in the same order.

Where nothing is ready, the time moves to the next timer's. Code that runs here states what computing costs
(`Processor.spend`): real computing costs nothing on this clock, also in a thread that it hands work to. Real
sockets do not belong here: `wire` has connections in memory.
"""

from __future__ import annotations

import asyncio
import heapq
import selectors
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from contextvars import Context
from typing import Any, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Args = TypeVarTuple("Args")


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that starts at second 0 and never waits, except for work that `held_clock` or
    `asyncio.to_thread` announces."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._timers_s: list[float] = []  # a heap of when something was to happen, cancelled or not
        self._holds = 0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        """Virtual seconds since this loop was made."""
        return self._now_s

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Args]], object],
        *args: *Args,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """As any loop's; the moment is noted, for the clock to stop there to the last bit."""
        heapq.heappush(self._timers_s, when)
        return super().call_at(when, callback, *args, context=context)

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Args]], T], *args: *Args
    ) -> asyncio.Future[T]:
        """As any loop's; the clock stands still until the work is done."""
        work = super().run_in_executor(executor, func, *args)
        self.hold()
        work.add_done_callback(lambda _: self.release())
        return work

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """As any loop's; it waits for threads, however long they take."""
        self.hold()
        try:
            await super().shutdown_default_executor()
        finally:
            self.release()

    @property
    def stands_still(self) -> bool:
        """Whether real work is going on, which takes no virtual time."""
        return self._holds > 0

    def hold(self) -> None:
        """Stop the clock until `release` was called as often."""
        self._holds += 1

    def release(self) -> None:
        """Undo one `hold`."""
        self._holds -= 1

    def jump(self, seconds: float) -> None:
        """Move the clock to the timer that is so far away."""
        then_s = self._now_s + seconds
        resolution_s = 1e-9  # asyncio's own: now + (then - now) need not be then
        while self._timers_s and self._timers_s[0] <= then_s + resolution_s:
            self._now_s = max(self._now_s, heapq.heappop(self._timers_s))
            if self._now_s >= then_s - resolution_s:
                return
        self._now_s = then_s


@contextmanager
def held_clock() -> Iterator[None]:
    """Virtual time stands still in this block, for what really computes in a thread of its own, as a local
    model does; its cost is stated afterwards (`Processor.spend`). On other loops it does nothing."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, VirtualLoop):
        yield
        return
    loop.hold()
    try:
        yield
    finally:
        loop.release()


class _Jumping(selectors.SelectSelector):
    """Where an ordinary loop would wait, this one's clock jumps."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        at_once = timeout is not None and timeout <= 0
        if self._loop.stands_still and not at_once:
            return super().select(None)
        events = super().select(0)
        if events or at_once:
            return events
        if timeout is None:
            raise RuntimeError(
                f"nothing can happen any more at second {self._loop.time():.6f}: every task waits for another"
            )
        self._loop.jump(timeout)
        return []


def virtual_run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` in virtual time, from second 0, as `asyncio.run` does in real time.

    Code that measures itself is not left out: `time.monotonic` and `time.perf_counter` tell virtual seconds
    until this returns, in every thread of the process, wherever they are called by these two names.
    """
    with asyncio.Runner(loop_factory=VirtualLoop) as runner, _told_by(runner.get_loop().time):
        return runner.run(main)


@contextmanager
def _told_by(clock: Callable[[], float]) -> Iterator[None]:
    real = time.monotonic, time.perf_counter
    time.monotonic = time.perf_counter = clock
    try:
        yield
    finally:
        time.monotonic, time.perf_counter = real


async def sleep_until(at_s: float) -> None:
    """Wait for the running loop's second `at_s`, to the last bit: now + (at_s - now) need not be at_s."""
    loop = asyncio.get_running_loop()
    reached = loop.create_future()
    timer = loop.call_at(at_s, reached.set_result, None)
    try:
        await reached
    finally:
        timer.cancel()  # where the wait itself was cancelled


class Processor:
    """Something that computes one thing at a time, in the order it is asked: a device, a cloud's model.

    The cost of a piece of work is stated, not measured; on a `VirtualLoop` it passes at once.
    """

    def __init__(self) -> None:
        self._free = asyncio.Lock()
        self.busy_s = 0.0  # spent so far

    async def spend(self, seconds: float) -> None:
        """Wait for one's turn, then so long."""
        async with self._free:
            await asyncio.sleep(seconds)
            self.busy_s += seconds
