"""Laws of a link: the closed form to the last bit, bytes in are bytes out, order, the seed decides."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consort.bench.simulate.link import SEGMENT_BYTES, Lane, Link, Outages, lanes, segments, trace_link
from consort.bench.simulate.trace import BYTES_PER_MBIT, Trace
from consort.bench.simulate.window import INITIAL_SEGMENTS
from consort.errors import ConfigError

seconds = st.floats(0, 10)
rates = st.floats(0.01, 1000)


@st.composite
def links(draw: st.DrawFn) -> Link:
    rtt_s = draw(st.floats(0, 0.5))
    rate = draw(st.one_of(rates, st.just(math.inf), st.just(Trace((1.0, 2.5, 3.0), (1.0, 0.0, 20.0)))))
    return Link(
        rtt_s, draw(st.floats(0, rtt_s / 2)), rate, rate, loss=draw(st.sampled_from((0.0, 0.01, 0.3)))
    )


writes = st.lists(st.tuples(st.floats(0, 2), st.integers(0, 50_000)), min_size=1, max_size=30)


@given(seconds, seconds, rates, st.one_of(st.integers(0, 14_480), st.integers(0, 10**6)))
def test_a_constant_link_is_its_closed_form_exactly(
    now_s: float, rtt_s: float, rate: float, num_bytes: int
) -> None:
    """Up to the first window; of any length where acknowledgements take no time."""
    rtt_s *= num_bytes <= INITIAL_SEGMENTS * SEGMENT_BYTES
    link = Link(rtt_s, up_mbit_s=rate)
    total = num_bytes + max(1, math.ceil(num_bytes / SEGMENT_BYTES)) * link.header_bytes
    arrival = lanes(link, seed=0)[0].send(now_s, num_bytes)[-1]
    assert arrival.at_s == now_s + total / (rate * BYTES_PER_MBIT) + rtt_s / 2


@settings(max_examples=50)
@given(links(), writes, st.integers())
def test_bytes_in_are_bytes_out_in_order_and_never_early(
    link: Link, gaps: list[tuple[float, int]], seed: int
) -> None:
    lane, now_s, last_s = lanes(link, seed)[0], 0.0, 0.0
    for gap_s, num_bytes in gaps:
        now_s += gap_s
        arrivals = lane.send(now_s, num_bytes)
        assert sum(size for _, size in arrivals) == num_bytes
        for at_s, _ in arrivals:
            assert at_s >= last_s
            assert at_s >= now_s + link.rtt_s / 2 - link.jitter_s - 1e-9
            last_s = at_s


@settings(max_examples=50)
@given(links(), writes, st.integers())
def test_the_seed_decides_everything(link: Link, gaps: list[tuple[float, int]], seed: int) -> None:
    def arrivals() -> list[object]:
        now_s, seen = 0.0, []
        pair = lanes(link, seed)
        for turn, (gap_s, num_bytes) in enumerate(gaps):
            now_s += gap_s
            seen.append(pair[turn % 2].send(now_s, num_bytes))
        return seen

    assert arrivals() == arrivals()


def test_other_seeds_and_the_other_direction_draw_otherwise() -> None:
    link = Link(0.1, 0.05)
    draws = {lane.send(0, 1)[0].at_s for seed in range(3) for lane in lanes(link, seed)}
    assert len(draws) == 6


@given(rates, st.lists(st.integers(0, 5000), min_size=2, max_size=10))
def test_a_trace_of_one_rate_is_that_rate(rate: float, sizes: list[int]) -> None:
    constant = lanes(Link(up_mbit_s=rate), 0)[0]
    steps = lanes(Link(up_mbit_s=Trace((0.5, 2.0), (rate, rate))), 0)[0]
    for num_bytes in sizes:
        expected = constant.send(0, num_bytes)[-1].at_s
        assert steps.send(0, num_bytes)[-1].at_s == pytest.approx(expected, rel=1e-9)


def test_a_link_of_a_trace_begins_where_it_is_told_and_sends_its_share(tmp_path: Path) -> None:
    file = tmp_path / "ride"
    file.write_text("1 8\n2 80\n")  # a byte a microsecond, then ten
    up, down = lanes(trace_link(file, rtt_s=0.1, start_s=1.5, up_share=0.5), seed=0)
    assert down.send(0, 9948)[-1].at_s == pytest.approx(0.05 + (9948 + 7 * 52) * 1e-7)
    assert up.send(0.6, 948)[-1].at_s == pytest.approx(0.6 + 0.05 + 2e-3)


@given(st.integers(0, 10**7))
def test_segments_hold_what_was_written(num_bytes: int) -> None:
    sizes = segments(num_bytes)
    assert sum(sizes) == num_bytes
    assert sizes
    assert max(sizes) <= SEGMENT_BYTES


class Losing(Random):
    """Loses exactly the transmissions whose turn it says."""

    def __init__(self, *lost: int) -> None:
        super().__init__(0)
        self.lost, self.drawn = lost, -1

    def random(self) -> float:
        self.drawn += 1
        return 0.0 if self.drawn in self.lost else 1.0


def arrival_times(link: Link, num_bytes: int, *lost: int) -> list[float]:
    return [at_s for at_s, _ in Lane(link, math.inf, Losing(*lost)).send(0, num_bytes)]


def test_a_loss_that_nothing_follows_waits_for_the_time_out_and_then_twice_as_long() -> None:
    link = Link(0.1, loss=0.5)
    assert link.rto_s == pytest.approx(0.3)
    assert arrival_times(link, 5) == [0.05]
    assert arrival_times(link, 5, 0) == [pytest.approx(0.35)]
    assert arrival_times(link, 5, 0, 1) == [pytest.approx(0.95)]  # 0.05 + 0.3 + 0.6


def test_a_loss_that_segments_follow_costs_a_round_trip_and_holds_back_what_is_behind() -> None:
    link = Link(0.1, loss=0.5)
    held = [0.05, pytest.approx(0.15), pytest.approx(0.15), pytest.approx(0.15), pytest.approx(0.15)]
    assert arrival_times(link, 5 * SEGMENT_BYTES, 1) == held
    assert (
        arrival_times(link, 5 * SEGMENT_BYTES, 3)[3:] == [pytest.approx(0.35)] * 2
    )  # one follows, not three


def test_slow_start_doubles_what_is_on_its_way_each_round_trip_and_begins_anew_after_a_rest() -> None:
    lane = Lane(Link(0.1), math.inf, Random(0))

    def rounds(begin_s: float, num_segments: int) -> list[int]:
        took = [at_s - begin_s for at_s, _ in lane.send(begin_s, num_segments * SEGMENT_BYTES)]
        return [sum(abs(s - (0.05 + 0.1 * turn)) < 1e-9 for s in took) for turn in range(4)]

    assert rounds(0, 80) == [10, 20, 40, 10]
    assert rounds(0.4, 80) == [80, 0, 0, 0]  # at once: the window has opened
    assert rounds(9, 25) == [10, 15, 0, 0]


def test_a_window_that_is_not_used_does_not_open() -> None:
    lane = Lane(Link(0.1), math.inf, Random(0))
    for token in range(100):
        lane.send(0.04 * token, 5)
    took = [at_s - 4 for at_s, _ in lane.send(4, 25 * SEGMENT_BYTES)]
    assert max(took) > 0.1


def test_a_loss_narrows_the_window_once_a_round_trip() -> None:
    def seconds_with(*lost: int) -> float:
        return arrival_times(Link(0.1, loss=0.5), 400 * SEGMENT_BYTES, *lost)[-1]

    assert seconds_with() < seconds_with(50) == seconds_with(50, 52) < seconds_with(50, 200)


def test_the_share_of_losses_and_the_mean_of_jitter_are_as_named() -> None:
    lane = lanes(Link(0.1, loss=0.02), 0)[0]
    late = [lane.send(10.0 * n, 1)[0].at_s - 10.0 * n > 0.06 for n in range(20_000)]
    assert mean(late) == pytest.approx(0.02, abs=0.003)
    lane = lanes(Link(0.1, 0.04), 0)[0]
    ways = [lane.send(10.0 * n, 1)[0].at_s - 10.0 * n for n in range(5000)]
    assert mean(ways) == pytest.approx(0.05, abs=0.001)
    assert min(ways) >= 0.01
    assert max(ways) <= 0.09


def test_breaks_come_as_given_and_at_random_by_the_seed() -> None:
    outages = Outages(Link(breaks_s=(5.0, 2.0), outage_s=1.0), seed=0)
    refused = {at_s: outages.refuses(at_s) for at_s in (1.9, 2.0, 2.9, 3.0, 5.5, 6.0)}
    assert [at_s for at_s, refuses in refused.items() if refuses] == [2.0, 2.9, 5.5]
    assert outages.next_s == math.inf

    def gaps(seed: int) -> list[float]:
        random, seen = Outages(Link(mean_up_s=4.0), seed), [0.0]
        for _ in range(4000):
            seen.append(random.next_s)
            random.begin(random.next_s)
        return [later - earlier for earlier, later in pairwise(seen)]

    assert gaps(1) == gaps(1) != gaps(2)
    assert mean(gaps(1)) == pytest.approx(4.0, rel=0.06)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"rtt_s": -1.0}, "rtt_s"),
        ({"rtt_s": 0.02, "jitter_s": 0.02}, "jitter_s"),
        ({"up_mbit_s": 0.0}, "rate"),
        ({"loss": 1.0}, "loss"),
        ({"outage_s": -1.0}, "outage_s"),
        ({"rtt_s": math.nan}, "rtt_s"),
    ],
)
def test_a_link_that_cannot_be_is_refused(wrong: dict[str, float], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Link(**wrong)
