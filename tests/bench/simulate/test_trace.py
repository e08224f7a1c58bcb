"""Laws of bandwidth over time: bytes are conserved wherever a trace is cut, and time runs forward."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consort.bench.simulate.trace import BYTES_PER_MBIT, Trace, read_trace
from consort.errors import DataError

steps = st.lists(st.tuples(st.floats(0.01, 60), st.one_of(st.just(0.0), st.floats(0.001, 2000))), min_size=1)
moments = st.floats(0, 1000)
sizes = st.integers(0, 10**8)


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    drawn = draw(steps.filter(lambda rows: any(rate for _, rate in rows)))
    return Trace(tuple(accumulate(seconds for seconds, _ in drawn)), tuple(rate for _, rate in drawn))


@settings(max_examples=50)
@given(traces(), moments, sizes)
def test_the_bytes_that_pass_until_it_is_finished_are_those_that_were_to_pass(
    trace: Trace, start_s: float, num_bytes: int
) -> None:
    finish_s = trace.finish_s(start_s, num_bytes)
    passed = trace.num_bytes(finish_s) - trace.num_bytes(start_s)
    # a moment is known to 1e-16 of itself: at the fastest rate that many bytes
    slack = 1e-9 * trace.num_bytes(finish_s) + 1e-13 * finish_s * max(trace.mbit_s) * BYTES_PER_MBIT
    assert passed == pytest.approx(num_bytes, abs=slack)


@settings(max_examples=50)
@given(traces(), moments, st.lists(sizes, max_size=5), sizes)
def test_finishing_in_parts_is_finishing_at_once(
    trace: Trace, start_s: float, parts: list[int], last: int
) -> None:
    at_s = start_s
    for num_bytes in (*parts, last):
        then_s = trace.finish_s(at_s, num_bytes)
        assert then_s >= at_s
        at_s = then_s
    whole = trace.num_bytes(trace.finish_s(start_s, sum(parts) + last))
    assert trace.num_bytes(at_s) == pytest.approx(whole, rel=1e-6, abs=1e-3)


@settings(max_examples=50)
@given(traces(), moments, moments)
def test_cutting_a_trace_at_any_point_conserves_its_bytes(trace: Trace, cut_s: float, more_s: float) -> None:
    turned = trace.since(cut_s)
    assert turned.length_s == pytest.approx(trace.length_s)
    assert turned.mean_mbit_s == pytest.approx(trace.mean_mbit_s, rel=1e-6)
    cut_s %= trace.length_s
    together = trace.num_bytes(cut_s) + turned.num_bytes(more_s)
    slack = 1e-9 * max(trace.mbit_s) * BYTES_PER_MBIT
    assert together == pytest.approx(trace.num_bytes(cut_s + more_s), rel=1e-9, abs=slack)


@settings(max_examples=50)
@given(traces(), moments, moments)
def test_more_time_lets_no_fewer_bytes_pass(trace: Trace, one_s: float, other_s: float) -> None:
    early_s, late_s = sorted((one_s, other_s))
    assert trace.num_bytes(early_s) <= trace.num_bytes(late_s) * (1 + 1e-12)


def test_nothing_passes_while_the_rate_is_zero() -> None:
    trace = Trace((1.0, 3.0, 4.0), (8.0, 0.0, 8.0))  # a megabyte a second, but for two of four seconds
    assert trace.finish_s(0.5, 500_000) == 1.0
    assert trace.finish_s(0.5, 500_001) == pytest.approx(3.000001)
    assert trace.finish_s(2.0, 1_000_000) == 4.0
    assert trace.finish_s(2.0, 1_500_000) == 4.5
    assert trace.finish_s(2.0, 0) == 2.0


def test_a_file_says_the_rate_since_the_row_before(tmp_path: Path) -> None:
    file = tmp_path / "ride"
    file.write_text("0.0\t100\n2.0\t1.5\n\n3\t 2\n")
    assert read_trace(file) == Trace((2.0, 3.0), (1.5, 2.0), "ride")
    file.write_text("1.0 361\n2.0 703\n")
    assert read_trace(file) == Trace((1.0, 2.0), (361.0, 703.0), "ride")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1 2\nabc 3\n", "ride:2: not"),
        ("1 2 3\n", "ride:1: not"),
        ("", "at least one"),
        ("1 2\n1 3\n", "must rise"),
        ("1 0\n2 0\n", "one of them more"),
        ("1 -1\n", "0 or more"),
        ("1 nan\n", "finite"),
    ],
)
def test_a_file_that_is_no_trace_is_told_apart(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "ride"
    file.write_text(text)
    with pytest.raises(DataError, match=told):
        read_trace(file)


def test_every_real_trace_reads_and_finishes(shared_data: Path) -> None:
    files = sorted((shared_data / "traces" / "bandwidth").iterdir())
    assert len(files) == 153
    for file in files:
        trace = read_trace(file)
        finish_s = trace.finish_s(trace.length_s * 0.9, 100_000)
        assert trace.num_bytes(finish_s) - trace.num_bytes(trace.length_s * 0.9) == pytest.approx(100_000)
