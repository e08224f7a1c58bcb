"""Redaction measured on labelled documents: recall and precision by kind, and milliseconds a kilobyte.

The rules were made on half of the documents; the other half was held out. The halves share no sentence: a
document belongs to the half that the hash of its text without private spans and numbers says. Also measured:
how much of ordinary prompts is hidden, where nothing is labelled. Compares no other detector.

python experiments/redaction.py [--resamples 2000] [--repeats 9]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from provenance import commit, hardware

from consort.inference.redaction import builtin
from consort.inference.redaction.restoring import Restorer
from consort.inference.redaction.spans import Span
from consort.inference.redaction.structured import structured
from consort.inference.redaction.vault import hidden

RESULTS = Path(__file__).parent / "results"
DATA = Path(os.environ.get("CONSORT_DATA", Path(__file__).parents[2] / "shared" / "data"))
SEED = 0
STRUCTURED = (
    "CREDIT_CARD", "IBAN_CODE", "PHONE_NUMBER", "EMAIL_ADDRESS", "IP_ADDRESS", "DOMAIN_NAME", "US_SSN",
    "US_DRIVER_LICENSE",
)  # fmt: skip
# The labels' names for our kinds; a title stands in the person's span, a code in the address's.
SAME = {
    "CREDIT_CARD": {"card"}, "IBAN_CODE": {"iban"}, "PHONE_NUMBER": {"phone"}, "EMAIL_ADDRESS": {"email"},
    "IP_ADDRESS": {"ip"}, "DOMAIN_NAME": {"url"}, "US_SSN": {"id"}, "US_DRIVER_LICENSE": {"id"},
    "PERSON": {"person"}, "TITLE": {"person"}, "ORGANIZATION": {"organisation"}, "GPE": {"place", "address"},
    "STREET_ADDRESS": {"address"}, "ZIP_CODE": {"postcode", "address"}, "NRP": {"nationality"},
    "DATE_TIME": {"date"}, "AGE": {"age"},
}  # fmt: skip
BARS = {"recall of structured kinds": 0.97, "recall": 0.85, "precision": 0.85}
RULE = (
    "A labelled span is found when every letter and digit of it is hidden, whatever kind it was taken for; "
    "`same kind` asks for the kind as well, `same span` for the very same characters and the kind. "
    "A hidden span is right when at least half of its letters and digits are labelled."
)


@dataclass(frozen=True)
class Judged:
    """One document: for each label whether it was found, for each hidden span whether it was right."""

    sentence: str
    labels: list[tuple[str, bool, bool, bool]]  # type, found, of the same kind, the same span
    hidden: list[tuple[str, bool]]  # kind, right


def documents() -> list[dict]:
    return [json.loads(line) for line in (DATA / "pii" / "docs.jsonl").read_text().split("\n") if line]


def sentence_of(document: dict) -> str:
    """The document without its private spans and numbers."""
    text = document["text"]
    for span in sorted(document["spans"], key=lambda span: -span["start"]):
        text = text[: span["start"]] + "<>" + text[span["end"] :]
    return re.sub(r"\d+", "#", re.sub(r"(<>\W*)+", "<> ", text))


def is_held_out(document: dict) -> bool:
    return int(hashlib.sha256(sentence_of(document).encode()).hexdigest(), 16) % 2 == 1


def judge(document: dict) -> Judged:
    text = document["text"]
    spans = builtin(text)
    kind_at = {place: span.kind for span in spans for place in range(span.start, span.end)}
    labelled = {place for label in document["spans"] for place in range(label["start"], label["end"])}
    labels = []
    for label in document["spans"]:
        kinds = {kind_at.get(place) for place in content(text, label["start"], label["end"])}
        same = kinds <= SAME[label["type"]]
        exact = any(
            (span.start, span.end) == (label["start"], label["end"]) and span.kind in SAME[label["type"]]
            for span in spans
        )
        labels.append((label["type"], None not in kinds, same, exact))
    return Judged(
        sentence_of(document), labels, [(span.kind, is_right(text, span, labelled)) for span in spans]
    )


def content(text: str, start: int, end: int) -> list[int]:
    return [place for place in range(start, end) if text[place].isalnum()]


def is_right(text: str, span: Span, labelled: set[int]) -> bool:
    places = content(text, span.start, span.end)
    return 2 * sum(place in labelled for place in places) >= len(places)


def share(counts: Sequence[tuple[str, int, int]], resamples: int) -> dict[str, float]:
    """The pooled share of (sentence, successes, trials), and its bootstrap interval over sentences: documents
    that differ in their private spans only stand or fall together."""
    sentences: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for sentence, successes, trials in counts:
        sentences[sentence][0] += successes
        sentences[sentence][1] += trials
    pairs = np.array([*sentences.values()])
    total = pairs.sum(axis=0)
    if not total[1]:
        return {"share": float("nan"), "low": float("nan"), "high": float("nan"), "num": 0}
    rng = np.random.default_rng(SEED)
    drawn = rng.multinomial(len(pairs), np.full(len(pairs), 1 / len(pairs)), size=resamples) @ pairs
    drawn = drawn[drawn[:, 1] > 0]
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    return {"share": float(total[0] / total[1]), "low": float(low), "high": float(high), "num": int(total[1])}


def table(judged: Sequence[Judged], resamples: int) -> dict[str, dict[str, float]]:
    """Every share by its name."""

    def labels(passes: Callable[[tuple], bool], index: int) -> dict[str, float]:
        counted = [(one.sentence, [each[index] for each in one.labels if passes(each)]) for one in judged]
        return share([(sentence, sum(some), len(some)) for sentence, some in counted], resamples)

    def hides(passes: Callable[[tuple], bool]) -> dict[str, float]:
        counted = [(one.sentence, [each[1] for each in one.hidden if passes(each)]) for one in judged]
        return share([(sentence, sum(some), len(some)) for sentence, some in counted], resamples)

    rows = {
        "recall": labels(lambda each: True, 1),
        "recall of structured kinds": labels(lambda each: each[0] in STRUCTURED, 1),
        "recall, same kind": labels(lambda each: True, 2),
        "recall, same span": labels(lambda each: True, 3),
        "precision": hides(lambda each: True),
    }
    for kind in SAME:
        rows[f"recall of {kind}"] = labels(lambda each, kind=kind: each[0] == kind, 1)
    for kind in sorted({kind for one in judged for kind, _ in one.hidden}):
        rows[f"precision of {kind}"] = hides(lambda each, kind=kind: each[0] == kind)
    return rows


def ms_per_kb(work: Callable[[str], object], texts: Sequence[str], repeats: int) -> float:
    """Median processor time of the whole set."""
    taken = []
    for _ in range(repeats):
        began = time.process_time()
        for text in texts:
            work(text)
        taken.append(time.process_time() - began)
    return 1000 * statistics.median(taken) / (sum(len(text.encode()) for text in texts) / 1000)


def hide_and_give_back(text: str) -> str:
    become, vault = hidden([text], builtin, again=structured)
    restorer = Restorer(vault)
    shown = become[text]
    parts = [restorer.feed("", shown[at : at + 4]) for at in range(0, len(shown), 4)]  # as tokens arrive
    return "".join(text for part in [*parts, restorer.rest()] for _, text in part)


def speed(texts: dict[str, list[str]], repeats: int) -> dict[str, dict[str, float]]:
    return {
        name: {
            "texts": len(each),
            "median_bytes": statistics.median(len(text.encode()) for text in each),
            "find_ms_per_kb": ms_per_kb(builtin, each, repeats),
            "hide_ms_per_kb": ms_per_kb(
                lambda text: hidden([text], builtin, again=structured), each, repeats
            ),
            "hide_and_give_back_ms_per_kb": ms_per_kb(hide_and_give_back, each, repeats),
        }
        for name, each in texts.items()
    }


def prompts() -> list[str]:
    lines = (DATA / "prompts" / "spec_bench.jsonl").read_text().split("\n")
    return ["\n".join(json.loads(line)["turns"]) for line in lines if line]


def measure(resamples: int, repeats: int) -> dict:
    docs = documents()
    held_out = [is_held_out(document) for document in docs]
    judged = [judge(document) for document in docs]
    halves = {
        "held out": [one for one, out in zip(judged, held_out, strict=True) if out],
        "all": judged,
        "developed on": [one for one, out in zip(judged, held_out, strict=True) if not out],
    }
    texts = [document["text"] for document in docs]
    lines = ["\n".join(texts[at : at + 12]) for at in range(0, len(texts), 12)]
    ordinary = prompts()
    hides: dict[str, int] = defaultdict(int)
    for text in ordinary:
        for span in builtin(text):
            hides[span.kind] += len(text[span.start : span.end].split())
    words = sum(len(text.split()) for text in ordinary)
    return {
        "commit": commit(), "hardware": hardware(), "seed": SEED, "rule": RULE, "resamples": resamples,
        "documents": {name: len(some) for name, some in halves.items()},
        "shares": {name: table(some, resamples) for name, some in halves.items()},
        "given_back_exactly": statistics.fmean(hide_and_give_back(text) == text for text in texts + ordinary),
        "hidden_words_of_ordinary_prompts": {
            "share": sum(hides.values()) / words, "words": words, "by_kind": dict(sorted(hides.items())),
        },
        "speed": speed(
            {"documents": texts, "twelve documents each": lines, "Spec-Bench prompts": ordinary}, repeats
        ),
    }  # fmt: skip


def report(result: dict) -> str:
    lines = [
        "# Redaction", "",
        f"Commit {result['commit']}; {result['hardware']}; seed {result['seed']}. 95 % intervals, "
        f"{result['resamples']} bootstrap resamples of sentences: documents that differ in their private "
        f"spans only are one. {result['rule']}", "",
        "Documents: " + ", ".join(f"{num} {name}" for name, num in result["documents"].items()) + ".", "",
        "| | held out | all | developed on | bar |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for row in result["shares"]["all"]:
        cells = [cell(result["shares"][half].get(row)) for half in ("held out", "all", "developed on")]
        lines.append(f"| {row} | {' | '.join(cells)} | {BARS.get(row, '')} |")
    plain = result["hidden_words_of_ordinary_prompts"]
    lines += [
        "", f"Given back exactly: {result['given_back_exactly']:.1%} of all texts.", "",
        f"Of {plain['words']} words in prompts (Spec-Bench, unlabelled, with much news) {plain['share']:.1%} "
        "are hidden: "
        + ", ".join(f"{num} {kind}" for kind, num in plain["by_kind"].items()) + ".", "",
        "| processor time, ms a kB | texts | median bytes | find | hide | hide and give back in a stream |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, row in result["speed"].items():
        times = [
            f"{row[key]:.2f}" for key in ("find_ms_per_kb", "hide_ms_per_kb", "hide_and_give_back_ms_per_kb")
        ]
        lines.append(f"| {name} | {row['texts']} | {row['median_bytes']:.0f} | {' | '.join(times)} |")
    return "\n".join(lines) + "\n"


def cell(row: dict[str, float] | None) -> str:
    if not row or not row["num"]:
        return "–"
    return f"{row['share']:.3f} [{row['low']:.3f}, {row['high']:.3f}] of {row['num']}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"no data at {DATA}: set CONSORT_DATA to the folder with pii/ and prompts/")
    outcome = measure(arguments.resamples, arguments.repeats)
    (RESULTS / "redaction.json").write_text(json.dumps(outcome, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "redaction.md").write_text(report(outcome), encoding="utf-8")
    print(report(outcome))
