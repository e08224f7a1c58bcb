"""The ledger: one row a finished request, and its labels, in SQLite, safe from `kill -9`, never waited for.

A row is first one line appended to a spool (in the kernel's hands at once, so a killed process loses none),
then a batch of a writer thread's. Opening the ledger takes in what a killed process left in its spools. Text
is kept only where the caller hands it over (`log_text`).
"""

from __future__ import annotations

import fcntl
import os
import queue
import sqlite3
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any

import orjson

from consort.errors import ConsortError
from consort.gateway.labels import ASKED, Label
from consort.inference.metering import Call

BATCH_S = 0.1  # rows are gathered for so long: the spool holds them meanwhile
SPOOL_BYTES = 4 << 20  # then a new spool is begun, and the old one leaves once its rows are stored


@dataclass(frozen=True, slots=True)
class Row:
    """A finished request. `spans` are (author, bytes) in the answer's order; money is in serve.currency."""

    id: str
    at: float  # seconds since 1970
    key: str
    model: str  # what was asked for
    strategy: str
    outcome: str  # "done", an error's code, or "client_left"
    streamed: bool
    latency_s: float
    first_s: float | None
    prompt_tokens: int
    completion_tokens: int
    edge_tokens: int
    cloud_tokens: int
    cloud_bytes: int
    cost: float
    cost_all_cloud: float
    spans: tuple[tuple[str, int], ...]
    calls: tuple[Mapping[str, object], ...]
    notes: tuple[Mapping[str, object], ...]
    redactions: Mapping[str, int] = field(default_factory=dict)
    prompt: str | None = None
    answer: str | None = None


COLUMNS = tuple(Row.__dataclass_fields__)
LABEL_COLUMNS = tuple(Label.__dataclass_fields__)
OF_ROW, OF_LINE = attrgetter(*COLUMNS), itemgetter(*COLUMNS)
OUTCOME = LABEL_COLUMNS.index("outcome")
OF_LABEL, OF_LABEL_LINE = attrgetter(*LABEL_COLUMNS), itemgetter(*LABEL_COLUMNS)
SCHEMA = (
    f"CREATE TABLE IF NOT EXISTS requests ({', '.join(COLUMNS)}, PRIMARY KEY (id))",
    "CREATE INDEX IF NOT EXISTS requests_by_time ON requests (at)",
    f"CREATE TABLE IF NOT EXISTS labels ({', '.join(LABEL_COLUMNS)}, PRIMARY KEY (request))",
)
PLACES, LABEL_PLACES = (f"({', '.join('?' * len(columns))})" for columns in (COLUMNS, LABEL_COLUMNS))
# what a label became replaces what was asked, never the other way round, whatever the order of spools
INSERT_ASKED = f"INSERT OR IGNORE INTO labels VALUES {LABEL_PLACES}"
INSERT_LABEL = INSERT_ASKED.replace("IGNORE", "REPLACE")
ANSWERED = ("done", "client_left")  # outcomes of requests that did not fail
SHARED = frozenset({"defer", "mix"})  # whose answers several models wrote: no call of theirs is an answer
ROWS_AT_ONCE = 32  # each statement hands Python's lock over twice, and requests wait for it


def told_of(call: Call, cost: float) -> dict[str, Any]:
    """One model's part in a request, as a row keeps it."""
    return {
        "model": call.model,
        "side": call.side,
        "prompt_tokens": call.prompt_tokens,
        "completion_tokens": call.completion_tokens,
        "counted": call.counted,
        "sent_bytes": call.sent_bytes,
        "first_s": None if call.first_s is None else round(call.first_s, 6),
        "answer_s": round(call.answer_s, 6),
        "cost": cost,
        "outcome": call.outcome,
    }


class Ledger:
    """The open ledger of one folder. One process writes it; anyone may read it meanwhile."""

    def __init__(self, folder: Path) -> None:
        """Open or begin it, taking in what a killed process left. ConsortError if another process has it."""
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "ledger.sqlite"
        self._folder = folder
        self._lock = os.open(folder / "ledger.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            hint = "stop it, or give this one its own serve.state"
            raise ConsortError("another gateway writes here", where=str(folder), hint=hint) from None
        self._database = _opened(self.path)
        self._take_in()
        self._queue: queue.SimpleQueue[Row | Label | Path | None] = queue.SimpleQueue()
        self._number = 0
        self._spool, self._spooled = self._new_spool(), 0
        self._warned = False
        self._closing = threading.Event()
        self._writer = threading.Thread(target=self._write, name="ledger", daemon=True)
        self._writer.start()

    def record(self, row: Row | Label) -> None:
        """Store a row or label: safe from a killed process on return, to be queried a moment later."""
        line = orjson.dumps(row) + b"\n"
        try:
            os.write(self._spool, line)
        except OSError as error:  # a full disk must not cost the client its answer
            self._warn(error)
        self._queue.put(row)
        self._spooled += len(line)
        if self._spooled > SPOOL_BYTES:
            full = self._spool_path()
            os.close(self._spool)
            self._spool, self._spooled = self._new_spool(), 0
            self._queue.put(full)

    def spent_since(self, at: float) -> dict[str, float]:
        """Money a key has cost since then. Called before the first `record`."""
        rows = self._database.execute("SELECT key, SUM(cost) FROM requests WHERE at >= ? GROUP BY key", (at,))
        return {key: cost or 0.0 for key, cost in rows}

    def shadowed_since(self, at: float) -> float:
        """Money that labels have cost since then. Called before the first `record`."""
        ((cost,),) = self._database.execute("SELECT SUM(cost) FROM labels WHERE at >= ?", (at,))
        return cost or 0.0

    def close(self) -> None:
        """Store what is waiting and let the folder go."""
        self._closing.set()
        self._queue.put(None)
        self._writer.join()
        self._database.close()
        os.close(self._spool)
        self._spool_path().unlink(missing_ok=True)
        os.close(self._lock)

    # ---- the writer thread

    def _write(self) -> None:
        while True:
            batch = [self._queue.get()]
            self._closing.wait(BATCH_S)
            while not self._queue.empty():
                batch.append(self._queue.get())
            try:
                self._store(
                    [OF_ROW(item) for item in batch if isinstance(item, Row)],
                    [OF_LABEL(item) for item in batch if isinstance(item, Label)],
                )
            except sqlite3.Error as error:  # the rows stay in their spool
                self._warn(error)
                continue
            for item in batch:
                if isinstance(item, Path):
                    item.unlink(missing_ok=True)
            if None in batch:
                return

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            print(f"ledger: rows cannot be stored: {error}", file=sys.stderr)

    # ---- spools

    def _spool_path(self) -> Path:
        return self._folder / f"ledger.{os.getpid()}-{self._number}.spool"

    def _new_spool(self) -> int:
        self._number += 1
        return os.open(self._spool_path(), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def _take_in(self) -> None:
        """Rows of spools whose process is gone; a line that was cut off by a crash of the machine is left."""
        for spool in sorted(self._folder.glob("ledger.*.spool")):
            lines = spool.read_bytes().split(b"\n")[:-1]
            stored = [orjson.loads(line) for line in lines]
            self._store(
                [OF_LINE(line) for line in stored if not _is_label(line)],
                [OF_LABEL_LINE(line) for line in stored if _is_label(line)],
            )
            spool.unlink()

    def _store(self, rows: Sequence[tuple[object, ...]], labels: Sequence[tuple[object, ...]]) -> None:
        with self._database:
            for start in range(0, len(rows), ROWS_AT_ONCE):
                part = rows[start : start + ROWS_AT_ONCE]
                statement = f"INSERT OR IGNORE INTO requests VALUES {', '.join([PLACES] * len(part))}"
                self._database.execute(statement, [_stored(value) for row in part for value in row])
            for label in labels:  # rare, and asked for in the background
                statement = INSERT_ASKED if label[OUTCOME] == ASKED else INSERT_LABEL
                self._database.execute(statement, [_stored(value) for value in label])


def _opened(path: Path) -> sqlite3.Connection:
    try:
        database = sqlite3.connect(path, check_same_thread=False, timeout=10)
        os.chmod(path, 0o600)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=NORMAL")
        with database:
            for statement in SCHEMA:
                database.execute(statement)
    except sqlite3.Error as error:
        hint = "move the file away to begin a new one"
        raise ConsortError(f"the ledger cannot be opened: {error}", where=str(path), hint=hint) from None
    return database


def _is_label(line: Mapping[str, object]) -> bool:
    return "request" in line  # which a label names


def _stored(value: object) -> object:
    return orjson.dumps(value).decode() if isinstance(value, (tuple, list, dict)) else value
