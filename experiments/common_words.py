"""Counts the ordinary English words that redaction takes for nobody's name.

A word is ordinary when it is written small more than twice as often as large inside a sentence, in the public
English texts of the tasks and prompts. Writes consort/inference/redaction/words.txt. Never reads the labelled
documents that redaction is measured on.

python experiments/common_words.py [--least 5]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

DATA = Path(os.environ.get("CONSORT_DATA", Path(__file__).parents[2] / "shared" / "data"))
WORDS = Path(__file__).parents[1] / "consort" / "inference" / "redaction" / "words.txt"
FILES = (
    "tasks/school/train.jsonl", "tasks/clinic/train.jsonl", "tasks/bank/train.jsonl",
    "tasks/sni/*/train.jsonl", "prompts/spec_bench.jsonl", "outcomes/mmlu.jsonl",
)  # fmt: skip
WORD = re.compile(r"(?<![\w'@/.])[A-Za-z][a-z']*[a-z](?![\w@/])")
INSIDE = re.compile(r"[a-z,] ")  # what stands before a word inside a sentence


def texts() -> Iterator[str]:
    for pattern in FILES:
        for file in sorted(DATA.glob(pattern)):
            for line in file.read_text(encoding="utf-8").split("\n"):
                if line:
                    values = json.loads(line).values()
                    yield "\n".join(value for value in values if isinstance(value, str))


def common_words(least: int) -> list[str]:
    small, large = Counter[str](), Counter[str]()
    for text in texts():
        for match in WORD.finditer(text):
            word, at = match[0], match.start()
            if word[0].islower():
                small[word] += 1
            elif at >= 2 and INSIDE.fullmatch(text, at - 2, at):
                large[word.lower()] += 1
    return sorted(word for word, count in small.items() if count >= least and count > 2 * large[word])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--least", type=int, default=5, help="times a word must stand there")
    least = parser.parse_args().least
    if not DATA.is_dir():
        sys.exit(f"no data at {DATA}: set CONSORT_DATA to the folder with tasks/ and prompts/")
    words = common_words(least)
    WORDS.write_text(textwrap.fill(" ".join(words), 110, break_on_hyphens=False) + "\n", encoding="utf-8")
    print(f"{len(words)} words, {WORDS.stat().st_size} bytes")
