"""A run that survives `kill -9`: a finished step is on disk before the next begins, and is never done twice.

A step's result is stored whole (temporary file, fsync, rename, fsync of the directory); only then one line
naming it is appended to `journal/journal.jsonl`. `metrics.jsonl` is a view of those lines, rebuilt on open,
so a step's rows appear once or not at all. Does not make a step deterministic: that is the caller's part. One
thread, POSIX only (`flock`).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

from consort.errors import RunError
from consort.files import whole_file
from consort.problems import counted

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """What one step leaves behind; `meta` and `rows` are JSON, `rows` become lines of `metrics.jsonl`."""

    payload: bytes = b""
    meta: Mapping[str, Any] = field(default_factory=dict)
    rows: tuple[Mapping[str, Any], ...] = ()


Step: TypeAlias = Callable[[], Entry]
Compute: TypeAlias = Callable[[Mapping[str, Step]], Iterator[tuple[str, Entry]]]  # results as they are ready


def one_by_one(steps: Mapping[str, Step]) -> Iterator[tuple[str, Entry]]:
    """Every step here, in the order given."""
    for key, step in steps.items():
        yield key, step()


class Journal:
    """The finished steps of one run directory, held under an exclusive lock until `close`."""

    def __init__(self, run_dir: Path, lock_fd: int, records: dict[str, _Record], log: _Log) -> None:
        self._run_dir = run_dir
        self._lock_fd = lock_fd
        self._records = records
        self._log = log
        self._metrics = _Log(run_dir / "metrics.jsonl")
        self._unseen: list[_Record] = []  # recorded, their rows not yet in metrics.jsonl
        self.on_record: Callable[[], None] = lambda: None  # called after each step that is recorded

    @classmethod
    def open(
        cls, run_dir: Path, *, fingerprint: str, resume: bool, inputs: Mapping[str, str] | None = None
    ) -> Journal:
        """Start a journal, or continue one with `resume`; `fingerprint` is the configuration's hash, `inputs`
        those of what else the steps read, by name.

        Raises RunError if the directory holds finished steps and `resume` is off, if they belong to another
        fingerprint or other inputs (which it names), if another process holds the directory, or if it cannot
        be written.
        """
        folder = run_dir / "journal"
        with _as_run_error(run_dir):
            folder.mkdir(parents=True, exist_ok=True)
            lock_fd = _lock(folder / "lock", run_dir)
        try:
            with _as_run_error(run_dir):
                header = {"format": FORMAT, "fingerprint": fingerprint}
                header |= {"inputs": dict(inputs)} if inputs else {}
                return cls._open_locked(run_dir, lock_fd, header, resume=resume)
        except BaseException:
            os.close(lock_fd)
            raise

    @classmethod
    def _open_locked(cls, run_dir: Path, lock_fd: int, header: Mapping[str, Any], *, resume: bool) -> Journal:
        folder = run_dir / "journal"
        path = folder / "journal.jsonl"
        written, lines = _read_lines(path)
        if path.exists() and not lines:
            raise RunError(
                "the first line of the journal is damaged, so its configuration is unknown",
                where=str(path),
                hint="Choose another --run-dir, or remove this one.",
            )
        finished = lines[1:]
        if finished and not resume:
            raise RunError(
                f"{counted(len(finished), 'finished step')} of an earlier run are here",
                where=str(run_dir),
                hint="Continue it with --resume, or choose another --run-dir.",
            )
        if finished:
            _check_header(lines[0], header, run_dir)
        records = [_Record(**line) for line in finished]
        for leftover in folder.glob("*.tmp"):
            leftover.unlink()
        if not records:
            written = _line(header)
        if not path.exists() or path.read_bytes() != written:
            _store(path, written)
        journal = cls(run_dir, lock_fd, {record.key: record for record in records}, _Log(path, len(written)))
        journal._metrics.rewrite(_metrics_of(records))
        return journal

    @property
    def finished(self) -> int:
        """How many steps are recorded."""
        return len(self._records)

    def done(self, key: str) -> bool:
        """Whether the step was recorded as finished."""
        return key in self._records

    def once(self, key: str, work: Step) -> Entry:
        """The recorded result of step `key`; otherwise of `work()`, recorded before it is returned.

        A recorded result that is damaged is computed again, with a warning; where that gives other bytes, the
        steps recorded after it are forgotten, because they may have been computed from it. Raises RunError if
        the result cannot be stored: earlier steps stay as they are.
        """
        return self.once_each({key: work}, one_by_one)[key]

    def once_each(
        self,
        steps: Mapping[str, Step],
        compute: Compute,
        *,
        on_new: Callable[[str, Entry], None] = lambda key, entry: None,
    ) -> dict[str, Entry]:
        """`once` for several steps, none of which needs another's result; `compute` does the missing ones in
        any order.

        Each is recorded as soon as it is there, and `on_new` is told of it.
        """
        found: dict[str, Entry] = {}
        missing: dict[str, Step] = {}
        for key, step in steps.items():
            record = self._records.get(key)
            payload = self._payload(record) if record is not None else None
            if record is not None and payload is not None:
                found[key] = Entry(payload, record.meta, tuple(record.rows))
            else:
                missing[key] = step
                if record is not None:
                    text = f"step {key!r}: its stored result is damaged, computing it again"
                    warnings.warn(text, stacklevel=3)
        for key, entry in compute(missing):
            with _as_run_error(self._run_dir):
                record = self._record(key, entry, damaged=self._records.get(key))
            found[key] = Entry(
                entry.payload, record.meta, tuple(record.rows)
            )  # through JSON, as after a resume
            on_new(key, found[key])
            self.on_record()
        return found

    def close(self) -> None:
        """Let another process use the run directory."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _record(self, key: str, entry: Entry, *, damaged: _Record | None) -> _Record:
        digest = hashlib.sha256(entry.payload).hexdigest()
        name = f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', key)[:80]}.{digest[:16]}.bin"
        line = _line({"key": key, "file": name, "sha256": digest, "meta": entry.meta, "rows": entry.rows})
        record = _Record(**_parse(line))
        _store(self._log.path.parent / name, entry.payload)
        if damaged == record:
            return record
        if damaged is not None:
            self._forget_from(key)
        self._log.append(line)
        self._records[key] = record
        self._unseen.append(record)
        self._metrics.append(_metrics_of(self._unseen))
        self._unseen.clear()
        return record

    def _forget_from(self, key: str) -> None:
        """Drop `key` and every later step."""
        keys = list(self._records)
        kept = [self._records[k] for k in keys[: keys.index(key)]]
        header = self._log.path.read_bytes().split(b"\n", 1)[0] + b"\n"
        self._log.rewrite(header + b"".join(_line(asdict(record)) for record in kept))
        self._records = {record.key: record for record in kept}
        self._metrics.rewrite(_metrics_of(kept))

    def _payload(self, record: _Record) -> bytes | None:
        try:
            payload = (self._log.path.parent / record.file).read_bytes()
        except OSError:
            return None
        return payload if hashlib.sha256(payload).hexdigest() == record.sha256 else None


@dataclass(frozen=True, slots=True)
class _Record:
    """One line of the journal."""

    key: str
    file: str
    sha256: str
    meta: dict[str, Any]
    rows: list[dict[str, Any]]


class _Log:
    """A file that grows by whole blocks: a block that could not be written whole is cut off again."""

    def __init__(self, path: Path, size: int = 0) -> None:
        self.path = path
        self._size = size

    def append(self, block: bytes) -> None:
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _write_all(fd, block, offset=self._size)
            os.fsync(fd)
        except OSError:
            with suppress(OSError):
                os.ftruncate(fd, self._size)
            raise
        finally:
            os.close(fd)
        self._size += len(block)

    def rewrite(self, content: bytes) -> None:
        """Replace the file where it differs."""
        if not self.path.exists() or self.path.read_bytes() != content:
            _store(self.path, content)
        self._size = len(content)


def _check_header(found: Mapping[str, Any], expected: Mapping[str, Any], run_dir: Path) -> None:
    if any(found.get(key) != expected[key] for key in ("format", "fingerprint")):
        raise RunError(
            f"the finished steps here belong to configuration {found.get('fingerprint')} "
            f"(journal format {found.get('format')}), this is {expected['fingerprint']} (format {FORMAT})",
            where=str(run_dir),
            hint="Restore that run's configuration (config.toml in it), or choose another --run-dir.",
        )
    before, now = found.get("inputs", {}), expected.get("inputs", {})
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if changed:
        raise RunError(
            "the finished steps here were computed from other inputs; changed since: " + ", ".join(changed),
            where=str(run_dir),
            hint="Restore them, or choose another --run-dir.",
        )


def _lock(path: Path, run_dir: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise RunError(
            f"another process (pid {owner}) is writing this run directory",
            where=str(run_dir),
            hint="Wait for it, stop it, or choose another --run-dir.",
        ) from None
    with suppress(OSError):  # the number is a courtesy to the reader of the error above
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _store(path: Path, content: bytes) -> None:
    """Write `content` so that a crash leaves the old file or the new one, never a part."""
    with whole_file(path, durable=True) as file:
        file.write(content)


def _write_all(fd: int, content: bytes, *, offset: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _line(record: Mapping[str, Any]) -> bytes:
    """One JSON line that carries its own checksum."""
    body = _canonical(record)
    return _canonical({**record, "crc32": zlib.crc32(body)}) + b"\n"


def _parse(line: bytes) -> dict[str, Any]:
    """The record of a line written by `_line`; raises ValueError if it is damaged."""
    record = json.loads(line)
    if not isinstance(record, dict) or record.pop("crc32", None) != zlib.crc32(_canonical(record)):
        raise ValueError("checksum")
    return record


def _canonical(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()


def _read_lines(path: Path) -> tuple[bytes, list[dict[str, Any]]]:
    """Bytes and records of the journal up to its first damaged line; a torn last line is no damage."""
    content = path.read_bytes() if path.exists() else b""
    records, intact = [], 0
    for line in content.split(b"\n")[:-1]:
        try:
            records.append(_parse(line))
        except ValueError:
            message = f"{path}: line {len(records) + 1} is damaged; it and all later steps are done again"
            warnings.warn(message, stacklevel=5)
            break
        intact += len(line) + 1
    return content[:intact], records


def _metrics_of(records: list[_Record]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for record in records for row in record.rows)


@contextmanager
def _as_run_error(run_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        room, place = (
            "Free some space, then continue with --resume.",
            "Choose a --run-dir that can be written.",
        )
        kept = "; every finished step is kept" if _any_finished(run_dir) else ""
        raise RunError(
            f"cannot write the run directory ({error.strerror or error}){kept}",
            where=str(run_dir),
            hint=room if full else place,
        ) from error


def _any_finished(run_dir: Path) -> bool:
    try:
        return (run_dir / "journal" / "journal.jsonl").read_bytes().count(b"\n") > 1  # the first is a header
    except OSError:
        return False
