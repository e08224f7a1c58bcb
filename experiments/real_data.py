"""The real consortium: four devices with private rows, and a public set that lacks half of one device's
domains.

Rows come from `shared/data/tasks` (its README names sources and licences). Device `assistant` works in ten
domains, of which the public set has rows of five; the cloud's gain on the other five is what devices teach
it.
"""

from __future__ import annotations

import json
import os
import random
from dataclasses import dataclass
from pathlib import Path

from consort.training.data import Sample
from consort.types import Message

DEVICES = ("bank", "restaurant", "clinic", "assistant")
LACKED_DOMAINS = ("travel", "work", "home", "auto_and_commute", "kitchen_and_dining")
PRIVATE_ROWS, UNLABELLED_ROWS, PUBLIC_ROWS, VALID_ROWS = 300, 1500, 3000, 200
OTHER_TASKS = (
    "database",
    "school",
    "sni/task073_commonsenseqa_answer_generation",
    "sni/task1572_samsum_summary",
    "sni/task1590_diplomacy_text_generation",
    "sni/task1687_sentiment140_classification",
    "sni/task1729_personachat_generate_next",
    "sni/task363_sst2_polarity_classification",
    "sni/task591_sciq_answer_generation",
    "sni/task639_multi_woz_user_utterance_generation",
)


@dataclass(frozen=True, slots=True)
class DeviceRows:
    """What one device owns: labelled rows, further inputs without answers, rows to choose a recipe by, and
    rows to be measured on."""

    train: list[Sample]
    unlabelled: list[Sample]
    valid: list[Sample]
    test: list[Sample]


@dataclass(frozen=True, slots=True)
class RealData:
    """The consortium's data. `lacked` are test rows of the domains that the public set does not have."""

    devices: dict[str, DeviceRows]
    public: dict[str, list[Sample]]  # by task
    public_test: list[Sample]
    lacked: list[Sample]


def data_dir() -> Path:
    """Where the real data lies: CONSORT_DATA, or beside the repository."""
    return Path(os.environ.get("CONSORT_DATA", Path(__file__).parents[2] / "shared" / "data"))


def load(seed: int, *, test_rows: int = 200) -> RealData:
    """The consortium drawn with this seed; public rows do not depend on it, so pretrained models serve every
    seed."""
    devices, public, public_test, lacked = {}, {}, [], []
    for name in DEVICES:
        rows = _rows(name, "train")
        random.Random(f"public {name}").shuffle(rows)
        covered = [row for row in rows if row.get("domain") not in LACKED_DOMAINS]
        public[name] = [_sample(row) for row in covered[:PUBLIC_ROWS]]
        taken = {(row["instruction"], row["input"]) for row in covered[:PUBLIC_ROWS]}
        own = [row for row in rows if (row["instruction"], row["input"]) not in taken]
        random.Random(f"device {name} {seed}").shuffle(own)
        test = _unseen(_rows(name, "test"), rows)
        random.Random(f"test {name}").shuffle(test)
        used = PRIVATE_ROWS + UNLABELLED_ROWS
        devices[name] = DeviceRows(
            train=[_sample(row) for row in own[:PRIVATE_ROWS]],
            unlabelled=[Sample(_sample(row).prompt, None) for row in own[PRIVATE_ROWS:used]],
            valid=[_sample(row) for row in own[used : used + VALID_ROWS]],
            test=[_sample(row) for row in test[:test_rows]],
        )
        lacked += [_sample(row) for row in test if row.get("domain") in LACKED_DOMAINS][:test_rows]
        public_test += [_sample(row) for row in test[test_rows:] if row.get("domain") not in LACKED_DOMAINS][
            :50
        ]
    for name in OTHER_TASKS:
        public[name] = [_sample(row) for row in _rows(name, "train")]
        public_test += [_sample(row) for row in _unseen(_rows(name, "test"), _rows(name, "train"))[:20]]
    return RealData(devices, public, public_test, lacked)


def _rows(task: str, split: str) -> list[dict[str, str]]:
    with (data_dir() / "tasks" / task / f"{split}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _unseen(test: list[dict[str, str]], train: list[dict[str, str]]) -> list[dict[str, str]]:
    """Test rows whose prompt, as it is cut here, is no training row's: some tasks repeat a few."""
    known = {_sample(row).prompt for row in train}
    return [row for row in test if _sample(row).prompt not in known]


def _sample(row: dict[str, str]) -> Sample:
    # long articles would fill the tiny models' context: an input keeps its first 400 characters
    return Sample((Message("user", f"{row['instruction'][:200]}\n{row['input'][:400]}"),), row["output"])
