"""Laws of the journal: however often a run dies, it ends as if it had not; no room is one error."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consort.errors import RunError
from consort.federated.journal import Entry, Journal

# eight steps, each computed from the one before, each with rows; slow enough to be killed in the middle of
# anything
RUN = """
import hashlib, sys, time
from pathlib import Path
from consort.federated.journal import Entry, Journal

def step(i, before):
    time.sleep(0.01)
    payload = hashlib.sha256(before + bytes([i])).digest() * 4000
    rows = tuple({"step": i, "row": r, "loss": 1 / (i + r + 3)} for r in range(20))
    return Entry(payload, {"step": i}, rows)

with Journal.open(Path(sys.argv[1]), fingerprint="f", resume=True) as journal:
    payload = b""
    for i in range(8):
        payload = journal.once(f"step/{i}", lambda: step(i, payload)).payload
    print(hashlib.sha256(payload).hexdigest())
"""


def start(run_dir: Path, *, kill_after_s: float | None = None) -> str | None:
    """The digest that a run printed; None if it was killed first."""
    process = subprocess.Popen([sys.executable, "-c", RUN, str(run_dir)], stdout=subprocess.PIPE, text=True)
    try:
        out, _ = process.communicate(timeout=kill_after_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return None
    assert process.returncode == 0
    return out.strip()


def opened(run_dir: Path, *, resume: bool = False, fingerprint: str = "f") -> Journal:
    return Journal.open(run_dir, fingerprint=fingerprint, resume=resume)


def entry(name: str) -> Entry:
    return Entry(name.encode() * 100, {"name": name}, ({"name": name, "loss": 0.1},))


def never() -> Entry:
    raise AssertionError("a finished step was done again")


def metrics(run_dir: Path) -> list[str]:
    return [json.loads(line)["name"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def written(run_dir: Path, *names: str) -> None:
    with opened(run_dir) as journal:
        for name in names:
            journal.once(name, lambda name=name: entry(name))


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_moments_ends_like_one_that_is_not(tmp_path: Path) -> None:
    began = time.monotonic()
    expected = start(tmp_path / "calm")
    whole_s = time.monotonic() - began
    rng = random.Random(7)
    kills = 0
    while kills < 10:
        run_dir = tmp_path / f"stormy {kills}"
        digest = None
        while digest is None:
            digest = start(run_dir, kill_after_s=rng.uniform(0.2, 1.0) * whole_s)
            kills += digest is None
        assert digest == expected
        assert (run_dir / "metrics.jsonl").read_bytes() == (tmp_path / "calm" / "metrics.jsonl").read_bytes()
        assert not list(run_dir.rglob("*.tmp"))


def test_a_journal_cut_at_any_byte_is_continued_to_the_same_end(tmp_path: Path) -> None:
    """The states that a kill can leave behind: the log and the metrics end anywhere."""
    names = ["a", "b", "c"]
    written(tmp_path, *names)
    log, view = tmp_path / "journal" / "journal.jsonl", tmp_path / "metrics.jsonl"
    whole, whole_view = log.read_bytes(), view.read_bytes()
    first = whole.index(b"\n") + 1
    for length in [*range(first, len(whole), 41), *(i + 1 for i, byte in enumerate(whole) if byte == 10)]:
        log.write_bytes(whole[:length])
        view.write_bytes(whole_view[: length % len(whole_view)])
        with opened(tmp_path, resume=True) as journal:
            assert metrics(tmp_path) == [name for name in names if journal.done(name)]
            for name in names:
                assert journal.once(name, lambda name=name: entry(name)).payload == entry(name).payload
        assert (log.read_bytes(), view.read_bytes()) == (whole, whole_view)


@settings(max_examples=20)
@given(keys=st.lists(st.text(max_size=30), unique=True, max_size=4), payload=st.binary(max_size=50))
def test_a_resumed_run_sees_exactly_what_the_first_one_saw(tmp_path_factory, keys, payload) -> None:
    run_dir = tmp_path_factory.mktemp("run")
    made = {key: Entry(payload, {"key": key, "pair": (1, 2.5)}, ({"key": key},)) for key in keys}
    with opened(run_dir) as journal:
        first = {key: journal.once(key, lambda key=key: made[key]) for key in keys}
    with opened(run_dir, resume=True) as journal:
        assert {key: journal.once(key, never) for key in keys} == first
        assert all(journal.done(key) for key in keys)
        assert not journal.done("another")


def test_a_step_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        with pytest.raises(ZeroDivisionError):
            journal.once("a", lambda: Entry(bytes(1 // 0)))
        assert not journal.done("a")
        assert journal.once("a", lambda: entry("a")).meta == {"name": "a"}
    assert metrics(tmp_path) == ["a"]


def test_an_earlier_run_is_not_overwritten(tmp_path: Path) -> None:
    written(tmp_path, "a")
    with pytest.raises(RunError, match=r"--resume.*another --run-dir"):
        opened(tmp_path)
    with pytest.raises(RunError, match=r"configuration f .*this is g"):
        opened(tmp_path, resume=True, fingerprint="g")
    with opened(tmp_path, resume=True) as journal:
        assert journal.once("a", never) == entry("a")


def test_a_run_without_a_finished_step_is_no_run(tmp_path: Path) -> None:
    written(tmp_path)
    with opened(tmp_path, fingerprint="g") as journal:
        journal.once("a", lambda: entry("a"))
    with pytest.raises(RunError, match="configuration g"):
        opened(tmp_path, resume=True)


def test_only_one_process_writes_a_run_directory(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(RunError, match=f"another process .pid {os.getpid()}"):
        opened(tmp_path, resume=True)
    opened(tmp_path, resume=True).close()


# ---- damage


def payload_file(run_dir: Path, name: str) -> Path:
    (path,) = (run_dir / "journal").glob(f"{name}.*.bin")
    return path


@pytest.mark.parametrize("damage", [b"", b"other bytes", None])
def test_a_damaged_result_is_computed_again_with_a_warning(tmp_path: Path, damage: bytes | None) -> None:
    written(tmp_path, "a", "b")
    path = payload_file(tmp_path, "a")
    path.unlink() if damage is None else path.write_bytes(damage)
    with opened(tmp_path, resume=True) as journal:
        with pytest.warns(UserWarning, match="'a': its stored result is damaged"):
            assert journal.once("a", lambda: entry("a")) == entry("a")
        assert journal.once("b", never) == entry("b")
    with opened(tmp_path, resume=True) as journal:
        assert journal.once("a", never) == entry("a")
    assert metrics(tmp_path) == ["a", "b"]


def test_what_followed_a_result_that_came_out_differently_is_forgotten(tmp_path: Path) -> None:
    written(tmp_path, "a", "b", "c")
    payload_file(tmp_path, "b").write_bytes(b"")
    with opened(tmp_path, resume=True) as journal:
        with pytest.warns(UserWarning, match="damaged"):
            assert journal.once("b", lambda: entry("B")) == entry("B")
        assert journal.done("a")
        assert not journal.done("c")
        assert metrics(tmp_path) == ["a", "B"]
    with opened(tmp_path, resume=True) as journal:
        assert journal.once("b", never) == entry("B")
        assert not journal.done("c")


def test_a_damaged_line_ends_the_journal_with_a_warning(tmp_path: Path) -> None:
    written(tmp_path, "a", "b", "c")
    log = tmp_path / "journal" / "journal.jsonl"
    log.write_bytes(log.read_bytes().replace(b'{"name":"b"}', b'{"name":"x"}'))
    with pytest.warns(UserWarning, match="line 3 is damaged"):
        journal = opened(tmp_path, resume=True)
    with journal:
        assert [journal.done(name) for name in "abc"] == [True, False, False]
        assert metrics(tmp_path) == ["a"]


def test_a_journal_of_unknown_configuration_is_left_alone(tmp_path: Path) -> None:
    written(tmp_path, "a")
    log = tmp_path / "journal" / "journal.jsonl"
    log.write_bytes(b"x" + log.read_bytes())
    before = log.read_bytes()
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(RunError, match="first line"):
        opened(tmp_path, resume=True)
    assert log.read_bytes() == before


# ---- places that cannot be written


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=256k", "tmpfs") as place:
        yield place


class mounted:  # noqa: N801 -- reads as a word
    """Mount for the length of a `with`; skips the test where that is not permitted."""

    def __init__(self, place: Path, *arguments: str) -> None:
        self.place, self.arguments = place, arguments

    def __enter__(self) -> Path:
        self.place.mkdir(exist_ok=True)
        try:
            done = subprocess.run(["mount", *self.arguments, str(self.place)], capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no mount command")
        if done.returncode != 0:
            pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
        return self.place

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", str(self.place)], check=True)


def test_a_full_disk_is_one_error_and_nothing_is_lost(small_disk: Path) -> None:
    run_dir = small_disk / "run"
    large = Entry(random.Random(1).randbytes(1 << 18), {}, ({"name": "large"},))
    with opened(run_dir) as journal:
        journal.once("a", lambda: entry("a"))
        with pytest.raises(RunError, match=r"No space left.*kept") as caught:
            journal.once("large", lambda: large)
        assert caught.value.where == str(run_dir)
        assert not list(run_dir.rglob("*.tmp"))
        assert journal.once("a", never) == entry("a")
        assert journal.once("b", lambda: entry("b")) == entry("b")  # small enough
    with opened(run_dir, resume=True) as journal:
        assert [journal.done(name) for name in ("a", "large", "b")] == [True, False, True]
    assert metrics(run_dir) == ["a", "b"]


def test_a_disk_that_is_full_for_the_log_or_the_metrics_loses_nothing(small_disk: Path) -> None:
    """The payload still fits, its line or its rows do not: whichever step the room ends in."""
    for room in range(0, 20_000, 1024):
        run_dir, filler = small_disk / f"run {room}", small_disk / "filler"
        wide = Entry(b"x", {"m": "y" * 5000}, tuple({"name": "wide", "r": "z" * 100} for _ in range(50)))
        with opened(run_dir) as journal:
            journal.once("a", lambda: entry("a"))
            fill(filler, leave=room)
            try:
                journal.once("wide", lambda wide=wide: wide)
            except RunError:
                filler.unlink()
                again = journal.once("wide", lambda wide=wide: wide)
                assert again == wide
                journal.once("b", lambda: entry("b"))
            else:
                filler.unlink()
                journal.once("b", lambda: entry("b"))
            live = metrics(run_dir)
        with opened(run_dir, resume=True) as journal:
            assert all(journal.done(name) for name in ("a", "wide", "b"))
        assert metrics(run_dir) == live == ["a", *["wide"] * 50, "b"]
        subprocess.run(["rm", "-r", str(run_dir)], check=True)


def fill(path: Path, *, leave: int) -> None:
    with path.open("wb", buffering=0) as file:
        with suppress(OSError):  # no space left
            while True:
                file.write(bytes(512))
        file.truncate(max(0, file.tell() - leave))


def test_a_limit_on_file_size_is_one_error_and_nothing_is_lost(tmp_path: Path) -> None:
    """The same where nothing can be mounted: the kernel refuses to let files grow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(tmp_path) as journal:
        journal.once("a", lambda: entry("a"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            with pytest.raises(RunError, match="File too large"):
                journal.once("b", lambda: Entry(bytes(10_000)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not list(tmp_path.rglob("*.tmp"))
        assert journal.once("a", never) == entry("a")


def test_a_read_only_directory_is_one_error_and_nothing_is_lost(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    written(run_dir, "a")
    with mounted(run_dir, "--bind", str(run_dir)):
        done = subprocess.run(["mount", "-o", "remount,bind,ro", str(run_dir)], capture_output=True)
        if done.returncode != 0:
            pytest.skip("remounting read-only is not permitted here")
        with pytest.raises(RunError, match=r"Read-only file system\); every finished step is kept"):
            opened(run_dir, resume=True)
    with opened(run_dir, resume=True) as journal:
        assert journal.once("a", never) == entry("a")


def test_a_directory_below_a_file_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match=r"cannot write the run directory \(Not a directory\)\n"):
        opened(tmp_path / "file" / "run")
