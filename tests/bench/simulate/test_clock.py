"""Virtual time: exact, in order, at once; and it stands still for what really computes."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consort.bench.simulate.clock import (
    Processor,
    held_clock,
    sleep_until,
    virtual_run,
)


def now_s() -> float:
    return asyncio.get_running_loop().time()


@given(st.lists(st.integers(0, 10**9).map(lambda tick: tick / 997), max_size=20))
@settings(max_examples=50)
def test_moments_are_reached_to_the_last_bit_and_in_order(moments: list[float]) -> None:
    reached: list[float] = []

    async def wait(at_s: float) -> None:
        await sleep_until(at_s)
        assert now_s() == at_s
        reached.append(at_s)

    async def main() -> float:
        await asyncio.gather(*map(wait, moments))
        return now_s()

    assert virtual_run(main()) == max(moments, default=0.0)
    assert reached == sorted(moments)


def test_a_day_of_waiting_and_a_deadline_within_it_take_no_time() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600):
                await asyncio.sleep(7200)
        assert now_s() == 3600
        await asyncio.sleep(30 * 86_400)
        return now_s()

    assert virtual_run(main()) == 3600 + 30 * 86_400


def test_code_that_measures_itself_is_told_virtual_seconds_and_nobody_else_is() -> None:
    async def main() -> tuple[float, float]:
        begun_s = time.monotonic(), time.perf_counter()
        await asyncio.sleep(3600)
        return time.monotonic() - begun_s[0], time.perf_counter() - begun_s[1]

    async def fails() -> None:
        raise LookupError

    real = time.monotonic, time.perf_counter
    assert virtual_run(main()) == (3600, 3600)
    assert (time.monotonic, time.perf_counter) == real
    with pytest.raises(LookupError):
        virtual_run(fails())
    assert (time.monotonic, time.perf_counter) == real


def test_cancelled_timers_do_not_stop_the_clock() -> None:
    async def main() -> float:
        waits = [asyncio.create_task(asyncio.sleep(second)) for second in (1, 2, 3)]
        await asyncio.sleep(0)
        waits[0].cancel()
        waits[1].cancel()
        await waits[2]
        return now_s()

    assert virtual_run(main()) == 3


def test_the_clock_stands_still_while_a_thread_computes() -> None:
    async def main() -> tuple[float, float]:
        other = asyncio.create_task(asyncio.sleep(5))
        await asyncio.to_thread(time.sleep, 0.02)
        after_thread_s = now_s()
        await other
        return after_thread_s, now_s()

    assert virtual_run(main()) == (0, 5)


def test_a_thread_of_its_own_is_waited_for_while_the_clock_is_held() -> None:
    async def main() -> tuple[float, float]:
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        other = asyncio.create_task(asyncio.sleep(5))
        thread = threading.Timer(0.02, loop.call_soon_threadsafe, (done.set,))
        with held_clock():
            thread.start()
            await done.wait()
        thread.join()
        after_thread_s = now_s()
        await other
        return after_thread_s, now_s()

    assert virtual_run(main()) == (0, 5)


def test_where_nothing_can_happen_any_more_it_says_so() -> None:
    async def main() -> None:
        await asyncio.sleep(2)
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match=r"second 2\.0"):
        virtual_run(main())


def test_a_processor_does_one_thing_at_a_time_in_order() -> None:
    async def main() -> tuple[list[float], float]:
        processor = Processor()

        async def work(seconds: float) -> float:
            await processor.spend(seconds)
            return now_s()

        return await asyncio.gather(work(1), work(2), work(4)), processor.busy_s

    assert virtual_run(main()) == ([1, 3, 7], 7)
