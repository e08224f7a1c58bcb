"""Alignment across tokenizers, measured: speed, coverage and wrong positions for every ordered pair of
eight.

Timed is `transfer` (finding the shared bytes, and carrying k=128 rows over), given the spans of both sides
and the teacher's rows; encoding the text is not. Teachers are bigram models of the same texts, so their 128
candidates are words that may really follow. Trains nothing.

python experiments/alignment.py [--repeats 15]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from provenance import commit, hardware
from rival_alignment import edit_distance_pairs, longest_prefix_map

from consort.align import (
    Spans,
    SparseRows,
    Vocabulary,
    align_rows,
    transfer,
    transfer_batch,
    vocab_map,
)
from consort.align.vocab_map import own_first_tokens
from tests.align.oracle import wrong_cuts
from tests.align.texts_and_teachers import NAMES, PIECES

RESULTS = Path(__file__).parent / "results"
DATA = Path(os.environ.get("CONSORT_DATA", Path(__file__).parents[2] / "shared" / "data"))
TASKS = ("school", "clinic", "bank", "assistant", "restaurant")
MAPS = (
    ("gpt-neox", "llama2"), ("gpt2", "llama2"), ("gpt2", "t5-unigram"), ("gpt2", "bert-wordpiece"),
    ("deepseek-llm", "llama2"),
)  # fmt: skip
SEED, SLOTS, NUM_TEXTS, UNICODE_TEXTS = 0, 128, 6, 3000


@dataclass(frozen=True)
class Bigrams:
    """The 128 tokens that followed each token most often, filled up with the most frequent ones."""

    ids: dict[int, np.ndarray]
    probs: dict[int, np.ndarray]
    start: int

    @staticmethod
    def of(vocabulary: Vocabulary, texts: Sequence[str]) -> Bigrams:
        follows: dict[int, Counter[int]] = defaultdict(Counter)
        for text in texts:
            tokens = vocabulary.encode(text)
            for before, after in zip([-1, *tokens], [*tokens, vocabulary.eos_id], strict=True):
                follows[before][after] += 1
        frequent = sum(follows.values(), Counter())
        ids, probs = {}, {}
        for before, after in follows.items():
            counts = after + Counter({token: 1 for token, _ in frequent.most_common(2 * SLOTS)})
            likely = counts.most_common(SLOTS)
            ids[before] = np.array([token for token, _ in likely], np.int32)
            probs[before] = np.array([count for _, count in likely], np.float32) / sum(counts.values())
        return Bigrams(ids, probs, -1)

    def rows(self, spans: Spans) -> SparseRows:
        before = [self.start, *spans.ids.tolist()]
        known = [token if token in self.ids else self.start for token in before]
        probs = np.stack([self.probs[token] for token in known])
        ids = np.stack([self.ids[token] for token in known])
        return SparseRows(ids, probs, 1 - probs.sum(axis=1), np.ones(len(before), bool))


def read_texts(words: int) -> list[str]:
    """Disjoint texts of about as many words, each from all tasks."""
    rows = [
        json.loads(line)
        for task in TASKS
        for line in (DATA / "tasks" / task / "train.jsonl").read_text().splitlines()[:1500]
    ]
    order = np.random.default_rng(SEED).permutation(len(rows))
    texts, current = [], ""
    for index in order:
        row = rows[index]
        current += f"{row['instruction']} {row['input']}\n{row['output']}\n\n"
        if len(current.split()) >= words:
            texts.append(current)
            current = ""
    return texts


def cut_to_tokens(text: str, vocabularies: Sequence[Vocabulary], tokens: int) -> str:
    """The beginning of `text` that has `tokens` tokens in the mean of all vocabularies."""
    low, high = 0, len(text)
    while high - low > 1:
        middle = (low + high) // 2
        mean = np.mean([len(vocabulary.encode(text[:middle])) for vocabulary in vocabularies])
        low, high = (middle, high) if mean <= tokens else (low, middle)
    return text[:low]


def milliseconds(call: Callable[[], object], repeats: int) -> tuple[list[float], list[float]]:
    """Wall time and processor time of this thread, of each repetition."""
    wall, cpu = [], []
    for _ in range(repeats):
        began, began_cpu = time.perf_counter(), time.thread_time()
        call()
        cpu.append(1e3 * (time.thread_time() - began_cpu))
        wall.append(1e3 * (time.perf_counter() - began))
    return wall, cpu


def measure_pair(
    source: Vocabulary, target: Vocabulary, texts: Sequence[str], teacher: Bigrams, repeats: int
) -> dict[str, float]:
    mapping = vocab_map(source, target)
    first, wall, cpu, shared, taught, rows = [], [], [], [], [], []
    for text in texts:
        spans, wanted = source.spans(text), target.spans(text)
        given = teacher.rows(spans)
        first += milliseconds(lambda: transfer(given, spans, wanted, mapping), 1)[0]  # noqa: B023 - called at once
        once = milliseconds(lambda: transfer(given, spans, wanted, mapping), repeats)  # noqa: B023 - called at once
        wall += once[0]
        cpu += once[1]
        shared.append(len(align_rows(spans, wanted).target) / (len(wanted.ids) + 1))
        taught.append(transfer(given, spans, wanted, mapping).mask.mean())
        rows.append(len(wanted.ids) + 1)
    return {
        "median_ms": float(np.median(wall)), "median_cpu_ms": float(np.median(cpu)), "best_ms": min(wall),
        "first_ms": float(np.median(first)), "student_rows": float(np.mean(rows)),
        "shared": float(np.mean(shared)), "taught": float(np.mean(taught)),
    }  # fmt: skip


def measure_map(source: Vocabulary, target: Vocabulary) -> tuple[float, float]:
    """Seconds to make the map anew: wall, and processor time of the whole process."""
    own_first_tokens([b"warm"], target)
    pieces = [piece or b"" for piece in source.token_bytes]
    began, began_cpu = time.perf_counter(), time.process_time()
    own_first_tokens(pieces, target)
    return time.perf_counter() - began, time.process_time() - began_cpu


def count_wrong(vocabularies: dict[str, Vocabulary]) -> tuple[int, int]:
    """Cuts over random Unicode texts, and how many of them are wrong for some tokenizer."""
    rng = np.random.default_rng(SEED)
    cuts = wrong = 0
    for _ in range(UNICODE_TEXTS):
        pieces = rng.choice(len(PIECES), rng.integers(1, 10))
        text = rng.choice(["", " "]).join(PIECES[piece] for piece in pieces)
        points = rng.integers(0, 0x3000, 4).tolist()
        text += "".join(chr(point) for point in points)
        for vocabulary in vocabularies.values():
            spans = vocabulary.spans(text)
            cuts += len(align_rows(spans, spans).source)
            wrong += len(wrong_cuts(vocabulary, text, spans))
    return cuts, wrong


def measure_rivals(vocabularies: dict[str, Vocabulary], texts: Sequence[str]) -> list[dict[str, object]]:
    """Where edit distance puts side by side what read different bytes, and longest prefixes are not the
    student's own.
    """
    lines = []
    for source, target in (("gpt-neox", "llama2"), ("llama2", "gpt-neox"), ("gpt2", "deepseek-llm")):
        a, b = vocabularies[source], vocabularies[target]
        wrong = total = 0
        for text in texts:
            spans, wanted = a.spans(text), b.spans(text)
            pairs = edit_distance_pairs(spans, wanted, a, b)
            aligned = align_rows(spans, wanted)
            right = set(zip(aligned.source.tolist(), aligned.target.tolist(), strict=True))
            wrong += sum(pair not in right for pair in pairs)
            total += len(pairs)
        ours, theirs = vocab_map(a, b).target_ids[:-1], longest_prefix_map(a, b)[:-1]
        lines.append(
            {
                "teacher": source,
                "student": target,
                "edit_distance_wrong": wrong / total,
                "longest_prefix_differs": float(np.mean(theirs[ours >= 0] != ours[ours >= 0])),
            }
        )
    return lines


def measure_batch(
    source: Vocabulary, target: Vocabulary, teacher: Bigrams, texts: Sequence[str]
) -> dict[str, float]:
    """Sixteen answers of 12 words, k=24: one by one, and as one batch."""
    answers = [" ".join(text.split()[i : i + 12]) for text in texts for i in range(0, 192, 12)][:16]
    pairs = [(source.spans(answer), target.spans(answer)) for answer in answers]
    rows = [_fewer(teacher.rows(spans), 24) for spans, _ in pairs]
    mapping = vocab_map(source, target)
    whole = SparseRows(
        *(np.concatenate([getattr(r, name) for r in rows]) for name in ("ids", "probs", "rest", "mask"))
    )
    alone = milliseconds(
        lambda: [transfer(r, s, t, mapping) for r, (s, t) in zip(rows, pairs, strict=True)], 200
    )
    batch = milliseconds(
        lambda: transfer_batch(whole, [s for s, _ in pairs], [t for _, t in pairs], mapping), 200
    )
    return {"one_by_one_ms": float(np.median(alone[1])), "batch_ms": float(np.median(batch[1]))}


def _fewer(rows: SparseRows, slots: int) -> SparseRows:
    probs = rows.probs[:, :slots]
    return SparseRows(rows.ids[:, :slots].copy(), probs.copy(), 1 - probs.sum(axis=1), rows.mask)


def as_markdown(result: dict) -> str:
    names, pairs = result["tokenizers"], result["pairs"]
    short, long = (
        {key: [pair[key] for pair in kind.values()] for key in next(iter(kind.values()))}
        for kind in (pairs, result["long_pairs"])
    )
    lines = [
        "## Alignment across tokenizers",
        "",
        f"`python experiments/alignment.py`. Commit {result['commit']}; {result['hardware']}; seed {SEED}; "
        f"other processes ran (load {result['load']:.1f}). Texts: {', '.join(TASKS)}, mixed; 700 (2,000) "
        f"tokens in the mean of the eight tokenizers. Timed: `transfer` with conditioning, k={SLOTS}, given "
        "the spans and the rows of bigram teachers. `cpu` is the thread's own time, "
        "`fastest` the least disturbed repetition.",
        "",
        "| | median pair | worst pair | pairs under 1 ms |",
        "|---|---|---|---|",
        *(
            f"| 700 tokens, {label} | {np.median(short[key]):.2f} ms | {max(short[key]):.2f} ms "
            f"| {sum(value < 1 for value in short[key])} of {len(pairs)} |"
            for label, key in (
                ("median, wall", "median_ms"), ("median, cpu", "median_cpu_ms"), ("fastest, wall", "best_ms"),
                ("first sight of a text, wall", "first_ms"),
            )
        ),
        *(
            f"| 2,000 tokens, {label} | {np.median(long[key]):.2f} ms | {max(long[key]):.2f} ms "
            f"| {sum(value < 2.5 for value in long[key])} of {len(pairs)} under 2.5 ms |"
            for label, key in (("median, cpu", "median_cpu_ms"), ("fastest, wall", "best_ms"))
        ),
        "",
        f"Wrong positions over {UNICODE_TEXTS} Unicode texts and eight tokenizers: {result['wrong']} of "
        f"{result['cuts']} cuts.",
        f"Sixteen answers of 12 words, k=24: {result['batch']['one_by_one_ms']:.2f} ms one by one, "
        f"{result['batch']['batch_ms']:.2f} ms as a batch.",
        "",
        "Share of the student's rows (columns) a teacher (lines) reaches: shared cuts → with conditioning.",
        "",
        "| | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]  # fmt: skip
    for source in names:
        cells = [
            "" if source == target
            else f"{pairs[f'{source} {target}']['shared']:.2f} → {pairs[f'{source} {target}']['taught']:.2f}"
            for target in names
        ]  # fmt: skip
        lines.append(f"| {source} | " + " | ".join(cells) + " |")
    lines += ["", "Vocabulary map, made anew (then cached):", "", "| | wall | cpu |", "|---|---|---|"]
    lines += [f"| {name} | {wall:.2f} s | {cpu:.2f} s |" for name, (wall, cpu) in result["maps"].items()]
    lines += [
        "",
        "Rivals: rows that edit distance pairs although different bytes were read, and tokens that the "
        "longest prefix sends elsewhere than the student's own encoding.",
        "",
        "| teacher | student | edit distance wrong | longest prefix differs |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {line['teacher']} | {line['student']} | {line['edit_distance_wrong']:.1%} "
        f"| {line['longest_prefix_differs']:.1%} |"
        for line in result["rivals"]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    vocabularies = {name: Vocabulary.of(DATA / "tokenizers" / f"{name}.json") for name in NAMES}
    everyone = list(vocabularies.values())
    corpus = read_texts(2600)[:40]
    short = [cut_to_tokens(text, everyone, 700) for text in corpus[:NUM_TEXTS]]
    long = [cut_to_tokens(text, everyone, 2000) for text in corpus[:2]]
    teachers = {
        name: Bigrams.of(vocabulary, [*short, *long, *corpus]) for name, vocabulary in vocabularies.items()
    }
    pairs, long_pairs = {}, {}
    for source in NAMES:
        for target in NAMES:
            if source != target:
                a, b, key = vocabularies[source], vocabularies[target], f"{source} {target}"
                pairs[key] = measure_pair(a, b, short, teachers[source], repeats)
                long_pairs[key] = measure_pair(a, b, long, teachers[source], repeats)
                print(key, {name: round(value, 3) for name, value in pairs[key].items()}, file=sys.stderr)
    cuts, wrong = count_wrong(vocabularies)
    neox, llama = vocabularies["gpt-neox"], vocabularies["llama2"]
    result = {
        "commit": commit(), "hardware": hardware(), "seed": SEED, "load": os.getloadavg()[0],
        "tokenizers": NAMES, "pairs": pairs, "long_pairs": long_pairs, "cuts": cuts, "wrong": wrong,
        "batch": measure_batch(neox, llama, teachers["gpt-neox"], short),
        "maps": {
            f"{a} ({vocabularies[a].size}) to {b} ({vocabularies[b].size})": measure_map(
                vocabularies[a], vocabularies[b]
            )
            for a, b in MAPS
        },
        "rivals": measure_rivals(vocabularies, [text[:600] for text in short]),
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "alignment.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "alignment.md").write_text(as_markdown(result))
    print(as_markdown(result))


if __name__ == "__main__":
    main()
