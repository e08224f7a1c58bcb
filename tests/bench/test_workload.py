"""Arrivals: read as they are, stretched without losing their shape, played whether or not anyone has time."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consort.bench.simulate import Processor, virtual_run
from consort.bench.workload import Call, at_rate, open_loop, poisson, read_arrivals
from consort.errors import DataError

gaps = st.lists(st.floats(0.001, 100), min_size=1, max_size=50)


def calls_after(gaps_s: list[float]) -> list[Call]:
    at_s, calls = 0.0, [Call(0.0, 10, 1)]
    for gap_s in gaps_s:
        at_s += gap_s
        calls.append(Call(at_s, 10, 1))
    return calls


def test_real_arrivals_are_read_in_order_from_second_0(shared_data: Path) -> None:
    expected = {"code": (8819, 4808, 10), "conv": (19366, 374, 44)}
    for kind, (num_calls, context, generated) in expected.items():
        calls = read_arrivals(shared_data / "traces" / f"arrivals_azure_{kind}.csv")
        assert len(calls) == num_calls
        assert calls[0] == Call(0.0, context, generated)
        assert 3400 < calls[-1].at_s < 3600
        assert all(earlier.at_s <= later.at_s for earlier, later in pairwise(calls))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("time,tokens\n", ":1: not a file of arrivals"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n", ":2: not an arrival"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:04,1\n", ":2: not an arrival"),
        (
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:04,1,2\n2023-11-16 18:17:03,1,2\n",
            "not in the order of time",
        ),
    ],
)
def test_a_file_of_something_else_is_told_apart(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "arrivals.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=told):
        read_arrivals(file)


@given(gaps, st.floats(0.01, 100))
def test_stretching_sets_the_mean_rate_and_keeps_the_bursts(gaps_s: list[float], per_s: float) -> None:
    calls = calls_after(gaps_s)
    stretched = at_rate(calls, per_s)
    assert len(gaps_s) / stretched[-1].at_s == pytest.approx(per_s)
    factor = stretched[-1].at_s / calls[-1].at_s
    for before, after in zip(calls, stretched, strict=True):
        assert after.at_s == pytest.approx(before.at_s * factor)


def test_poisson_arrivals_have_their_rate_and_follow_from_the_seed() -> None:
    lengths = [Call(0, 100, 5), Call(0, 7, 300)]
    calls = poisson(lengths, 4.0, 5000, seed=1)
    assert calls == poisson(lengths, 4.0, 5000, seed=1) != poisson(lengths, 4.0, 5000, seed=2)
    assert mean(later.at_s - earlier.at_s for earlier, later in pairwise(calls)) == pytest.approx(
        0.25, rel=0.05
    )
    assert {(call.context_tokens, call.generated_tokens) for call in calls} == {(100, 5), (7, 300)}


@given(gaps, st.floats(0.001, 100))
@settings(max_examples=30)
def test_one_processor_serves_in_turn_and_latency_counts_from_the_arrival(
    gaps_s: list[float], cost_s: float
) -> None:
    """Lindley's recursion: a call begins when it has arrived and the one before has been answered."""
    calls = calls_after(gaps_s)

    async def main() -> list[float]:
        processor = Processor()
        served = await open_loop(calls, lambda call: processor.spend(cost_s))
        assert [each.call for each in served] == calls
        return [each.latency_s for each in served]

    free_s, expected = 0.0, []
    for call in calls:
        free_s = max(free_s, call.at_s) + cost_s
        expected.append(free_s - call.at_s)
    assert virtual_run(main()) == pytest.approx(expected)


def test_a_call_that_is_never_answered_keeps_no_other_waiting() -> None:
    begun: list[float] = []

    async def serve(call: Call) -> None:
        begun.append(asyncio.get_running_loop().time())
        await asyncio.sleep(1000)

    virtual_run(open_loop(calls_after([1.0] * 10), serve))
    assert begun == list(range(11))
