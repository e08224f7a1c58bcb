"""A ledger read back: its requests and its labels, oldest first, while a gateway may go on writing it.

What a killed gateway left in its spool is taken in when a gateway next opens the ledger. Does not write.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from consort.errors import DataError
from consort.gateway.labels import Label
from consort.gateway.ledger import COLUMNS, LABEL_COLUMNS, Row

DAY_S = 86_400.0
# columns that the ledger stores as JSON
NESTED = frozenset({"spans", "calls", "notes", "redactions", "features", "small_call", "large_call"})


@dataclass(frozen=True, slots=True)
class History:
    """Requests in the order in which they came, and the labels that were made of some, whole or not."""

    rows: tuple[Row, ...]
    labels: tuple[Label, ...]

    @property
    def graded(self) -> tuple[Label, ...]:
        """The labels that were made."""
        return tuple(label for label in self.labels if label.outcome == "done")


def read_history(folder: Path, *, days: float | None = None) -> History:
    """Everything, or the last `days` before the newest request. DataError where there is no ledger."""
    path = folder / "ledger.sqlite"
    if not path.is_file():
        hint = "give the folder that serve.state names"
        raise DataError("there is no ledger here", where=str(folder), hint=hint)
    try:
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10)
        ) as database:
            database.row_factory = sqlite3.Row
            newest = database.execute("SELECT MAX(at) FROM requests").fetchone()[0] or 0.0
            since = 0.0 if days is None else newest - days * DAY_S
            rows = _rows(database, "requests", COLUMNS, since)
            has_labels = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'labels'").fetchone()
            labels = _rows(database, "labels", LABEL_COLUMNS, since) if has_labels else []
    except sqlite3.Error as error:
        raise DataError(f"the ledger cannot be read: {error}", where=str(path)) from None
    return History(
        tuple(Row(**{**row, "streamed": bool(row["streamed"]), "spans": _spans(row)}) for row in rows),
        tuple(Label(**row) for row in labels),
    )


def _rows(
    database: sqlite3.Connection, table: str, columns: Sequence[str], since: float
) -> list[dict[str, Any]]:
    found = database.execute(f"SELECT {', '.join(columns)} FROM {table} WHERE at >= ? ORDER BY at", (since,))
    return [{c: orjson.loads(row[c]) if c in NESTED else row[c] for c in columns} for row in found]


def _spans(row: dict[str, Any]) -> tuple[tuple[str, int], ...]:
    return tuple((author, size) for author, size in row["spans"])
