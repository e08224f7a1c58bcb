"""What can be wrong with the data a configuration names: missing, malformed, empty, learned and tested."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from consort.config import Config
from consort.errors import DataError
from consort.problems import Problem
from consort.training.data import Sample, read_samples


@dataclass(frozen=True, slots=True)
class Rows:
    """What one party's data holds, by split, as far as it could be read."""

    splits: Mapping[str, list[Sample]]

    @property
    def samples(self) -> list[Sample]:
        """All splits together."""
        return [sample for split in self.splits.values() for sample in split]


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
    return rows, found


def _read(path: Path, key: str, *, labelled: bool, found: list[Problem]) -> Rows:
    if not os.path.exists(path):
        hint = "name a JSONL file, or a directory with train/valid/test.jsonl"
        found.append(Problem(key, f"no such file or directory: {path}", hint, key))
        return Rows({})
    splits = {}
    names = ("train", "valid", "test") if path.is_dir() and labelled else ("train",)
    for split in names:
        file = path / f"{split}.jsonl"
        if path.is_dir() and not file.exists() and split != "train":
            if split == "test":
                what = f"{path} holds no test.jsonl: its answers cannot be measured"
                found.append(Problem(key, what, key=key, level="warning"))
            continue
        try:
            splits[split] = read_samples(path, split, labelled=labelled)
        except DataError as error:
            found.append(Problem(error.where, error.what, error.hint, key))
        except UnicodeDecodeError as error:
            found.append(Problem(str(file), f"not UTF-8 at byte {error.start}", "save it as UTF-8", key))
    found += _leaks(splits, path, key)
    return Rows(splits)


def _leaks(splits: Mapping[str, list[Sample]], path: Path, key: str) -> list[Problem]:
    learned = {sample.prompt for sample in splits.get("train", [])}
    found = []
    for split in ("valid", "test"):
        held_out = splits.get(split, [])
        shared = sum(sample.prompt in learned for sample in held_out)
        if shared:
            what = f"{shared} of {len(held_out)} prompts of {path / split}.jsonl are training prompts too"
            found.append(Problem(key, what, "scores on them mean little", key, level="warning"))
    return found
