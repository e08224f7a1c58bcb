"""What can be wrong with the data a configuration names: missing, malformed, empty, learned and tested."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias

from consort.config import Config
from consort.errors import DataError
from consort.problems import Problem, first_few
from consort.training.data import RowsRead, Sample, read_rows

Use: TypeAlias = Literal["", "learned", "asked", "answered"]


@dataclass(frozen=True, slots=True)
class Placed:
    """A row, where it is written, as file:line, and what a run does with it: it is `learned`, the models are
    `asked` it before tuning and after, or it is learned once the proxy has `answered` it."""

    sample: Sample
    where: str
    used: Use = ""


@dataclass(frozen=True, slots=True)
class Rows:
    """What one party's data holds, by split, as far as it could be read."""

    read: Mapping[str, RowsRead] = field(default_factory=dict)

    @property
    def splits(self) -> dict[str, list[Sample]]:
        """The samples alone."""
        return {split: read.samples for split, read in self.read.items()}

    @property
    def samples(self) -> list[Sample]:
        """All splits together."""
        return [placed.sample for placed in self.placed]

    @property
    def placed(self) -> list[Placed]:
        """All splits together, each row with its place."""
        return [
            Placed(sample, f"{read.file}:{line}")
            for read in self.read.values()
            for sample, line in zip(read.samples, read.lines, strict=True)
        ]

    def used(self, limit: int) -> list[Placed]:
        """All rows. Asked are the first `limit` (0: all) of the test split, else of the valid split, else of
        the last tenth of the training rows, which is then not learned."""
        splits = {split: Rows({split: read}).placed for split, read in self.read.items()}
        train = splits.pop("train", [])
        test = splits.pop("test", []) or splits.pop("valid", [])
        if not test and train:
            held_out = max(1, len(train) // 10)
            train, test = train[:-held_out], train[-held_out:]
        asked = len(test) if limit == 0 else limit
        spare = [*test[asked:], *(row for rows in splits.values() for row in rows)]
        return [
            *(replace(row, used="learned") for row in train),
            *(replace(row, used="asked") for row in test[:asked]),
            *spare,
        ]

    def unlabelled(self, limit: int) -> list[Placed]:
        """All rows without their answers; the proxy answers the first `limit`."""
        bare = [replace(row, sample=Sample(row.sample.prompt, None)) for row in self.placed]
        return [*(replace(row, used="answered") for row in bare[:limit]), *bare[limit:]]


def read_data(config: Config) -> tuple[dict[str, Rows], list[Problem]]:
    """Rows by the key that named them (`public`, `devices.0.data`), and what is wrong."""
    sources = [("public", config.public, True)]
    for index, device in enumerate(config.devices):
        sources.append((f"devices.{index}.data", device.data, True))
        sources.append((f"devices.{index}.unlabelled", device.unlabelled, False))
    rows: dict[str, Rows] = {}
    found: list[Problem] = []
    for key, path, labelled in sources:
        if path:
            rows[key] = _read(Path(path), key, labelled=labelled, found=found)
    return rows, [*found, *_leaks(rows)]


def _read(path: Path, key: str, *, labelled: bool, found: list[Problem]) -> Rows:
    if not os.path.exists(path):
        hint = "name a JSONL file, or a directory with train/valid/test.jsonl"
        found.append(Problem(key, f"no such file or directory: {path}", hint, key))
        return Rows()
    read: dict[str, RowsRead] = {}
    names = ("train", "valid", "test") if path.is_dir() and labelled else ("train",)
    present = [name for name in names if name == "train" or (path / f"{name}.jsonl").exists()]
    for split in present:
        try:
            read[split] = read_rows(path, split, labelled=labelled)
        except DataError as error:
            found.append(Problem(error.where, error.what, error.hint, key))
            continue
        malformed = [Problem(e.where, e.what, e.hint, key) for e in read[split].malformed]
        found += first_few(malformed, "malformed rows")
    if labelled:
        found += _held_out(read, present, path, key)
    return Rows(read)


def _held_out(read: Mapping[str, RowsRead], present: list[str], path: Path, key: str) -> Iterator[Problem]:
    """What answers are measured on, where that is not a test split."""
    train = read.get("train")
    if present == ["train"] and train and len(train.samples) == 1 and not train.malformed:
        what = f"{train.file} holds one row: it would be measured on, and nothing is left to learn"
        yield Problem(key, what, "add rows, or test rows in a directory with train/valid/test.jsonl", key)
    elif path.is_dir() and "test" not in present:
        instead = (
            "valid.jsonl" if "valid" in present else "the last tenth of train.jsonl, which is not learned"
        )
        yield Problem(key, f"{path} holds no test.jsonl: measured on {instead}", key=key, level="warning")


def _leaks(rows: Mapping[str, Rows]) -> Iterator[Problem]:
    """Held-out prompts that are learned anywhere: by their own device, in public, by another device."""
    learned = {
        read.file: {sample.prompt for sample in read.samples}
        for each in rows.values()
        for split, read in each.read.items()
        if split == "train"
    }
    for key, each in rows.items():
        for split, read in each.read.items():
            if split == "train":
                continue
            places = {
                file: sum(sample.prompt in prompts for sample in read.samples)
                for file, prompts in learned.items()
            }
            shared = sum(
                any(sample.prompt in prompts for prompts in learned.values()) for sample in read.samples
            )
            if shared:
                where = ", ".join(f"{count} in {file}" for file, count in places.items() if count)
                what = f"{shared} of {len(read.samples)} prompts of {read.file} are learned too ({where})"
                yield Problem(key, what, "scores on them mean little", key, level="warning")
