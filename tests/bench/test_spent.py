"""A run's time is the sum of what its parts took, whoever ended them."""

from __future__ import annotations

from pathlib import Path

import pytest

from consort.bench.spent import Spent


def test_a_resumed_run_took_what_all_its_parts_took(tmp_path: Path) -> None:
    clock = iter([100.0, 811.0, 5.0, 7.0, 7.0, 50.0, 53.0])  # each process has its own zero
    file = tmp_path / "seconds"
    Spent(file, resume=False, clock=clock.__next__).keep()
    resumed = Spent(file, resume=True, clock=clock.__next__)
    assert resumed.seconds == pytest.approx(711 + 2)
    resumed.keep()
    assert Spent(file, resume=True, clock=clock.__next__).seconds == pytest.approx(711 + 2 + 3)


def test_a_run_begun_anew_starts_at_nothing_and_what_cannot_be_read_counts_nothing(tmp_path: Path) -> None:
    file = tmp_path / "seconds"
    for text, resume in (("711", False), ("7x", True), ("", True)):
        file.write_text(text)
        clock = iter([1.0, 3.0])
        assert Spent(file, resume=resume, clock=clock.__next__).seconds == 2


def test_a_time_that_cannot_be_written_is_no_failure_of_the_run(tmp_path: Path) -> None:
    Spent(tmp_path / "gone" / "seconds", resume=False).keep()
