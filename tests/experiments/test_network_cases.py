"""The conversations that both networks are compared by: their closed forms in virtual time."""

from __future__ import annotations

import pytest
from network import PREFIX_BYTES, constant_links, in_virtual_time
from network_cases import CASES, DRAFT_S, GAMMA, TOKEN_S

from consort.bench.simulate import Link


@pytest.mark.parametrize("rtt_s", [0.02, 0.1])
def test_each_conversation_takes_its_closed_form(rtt_s: float) -> None:
    link = Link(rtt_s, up_mbit_s=8.0, down_mbit_s=4.0)  # a microsecond a byte, and two

    def up_s(num_bytes: int) -> float:
        return (num_bytes + PREFIX_BYTES + link.header_bytes) * 1e-6

    def down_s(num_bytes: int) -> float:
        return 2 * up_s(num_bytes)

    measured = in_virtual_time(link, seed=0)
    assert measured["ping"] == pytest.approx([rtt_s + up_s(100) + down_s(1000)] * 12)
    assert measured["tokens"] == pytest.approx([rtt_s + up_s(200) + 50 * TOKEN_S + down_s(5)])
    assert measured["draft and verify"] == pytest.approx(
        [GAMMA * DRAFT_S + up_s(8) + rtt_s + TOKEN_S + down_s(5)] * 10
    )
    assert measured["bulk"][0] > 200_000 * 2e-6 + rtt_s


def test_every_link_of_the_experiment_is_gone_through_in_virtual_time_alike_each_time() -> None:
    links = constant_links()
    assert len(links) == 24
    for link in links.values():
        measured = in_virtual_time(link, seed=1)
        assert measured.keys() == CASES.keys()
        assert measured == in_virtual_time(link, seed=1)
