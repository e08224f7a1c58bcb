"""Steps in processes of their own: the same results as here, errors keep their words, no process is left."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from consort.errors import DataError, RunError
from consort.federated.journal import Entry, Journal, one_by_one
from consort.federated.workers import side_by_side


def square(number: int) -> Entry:
    return Entry(str(number * number).encode(), {"by": os.getpid()})


def broken() -> Entry:
    raise DataError("not JSON", where="rows.jsonl:7", hint="repair the line")


def killed() -> Entry:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("dead by now")


def sleeping(file: Path) -> Entry:
    file.write_text(str(os.getpid()))
    time.sleep(600)
    return Entry()


def test_processes_give_what_one_by_one_gives_and_record_it() -> None:
    steps = {f"square/{number}": partial(square, number) for number in range(5)}
    here = dict(one_by_one(steps))
    with side_by_side(2) as compute:
        there = dict(compute(steps))
    assert {key: entry.payload for key, entry in there.items()} == {
        key: entry.payload for key, entry in here.items()
    }
    assert os.getpid() not in {entry.meta["by"] for entry in there.values()}


def test_only_missing_steps_are_computed_and_told_of(tmp_path: Path) -> None:
    steps = {str(number): partial(square, number) for number in range(3)}
    told: list[str] = []
    with Journal.open(tmp_path, fingerprint="one", resume=False) as journal:
        journal.once("1", steps["1"])
        found = journal.once_each(steps, one_by_one, on_new=lambda key, entry: told.append(key))
    assert told == ["0", "2"]
    assert [found[key].payload for key in steps] == [b"0", b"1", b"4"]


def test_an_error_of_ours_comes_back_whole_and_ends_the_processes() -> None:
    with (
        pytest.raises(DataError, match=r"rows.jsonl:7: not JSON\n  repair the line"),
        side_by_side(2) as compute,
    ):
        dict(compute({"bad": broken, "good": partial(square, 2)}))
    assert not multiprocessing.active_children()


def test_a_killed_process_is_one_clear_error() -> None:
    with pytest.raises(RunError, match=r"out of memory"), side_by_side(2) as compute:
        dict(compute({"bad": killed}))


def test_no_process_outlives_a_run_that_is_killed(tmp_path: Path) -> None:
    """The run's own process is killed outright, so nobody is left to tell its processes."""
    code = (
        "from functools import partial; from pathlib import Path; import sys\n"
        "from tests.federated.test_workers import sleeping\n"
        "from consort.federated.workers import side_by_side\n"
        "if __name__ == '__main__':\n"
        "    with side_by_side(2) as compute:\n"
        "        dict(compute({'long': partial(sleeping, Path(sys.argv[1]))}))\n"
    )
    script, mark = tmp_path / "run.py", tmp_path / "pid"
    script.write_text(code)
    root = Path(__file__).resolve().parents[2]
    run = subprocess.Popen(
        [sys.executable, script, mark], cwd=root, env=os.environ | {"PYTHONPATH": str(root)}
    )
    assert _soon(lambda: mark.exists() and mark.read_text() != "")
    child = int(mark.read_text())
    run.kill()
    run.wait()
    assert _soon(lambda: not _alive(child))


def _soon(condition: object, seconds: float = 30.0) -> bool:
    assert callable(condition)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.05)
    return False


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
