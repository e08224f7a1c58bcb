"""Quality against the share of tokens that the cloud writes: `defer` on the demo's co-tuned consort.

    consort demo --run-dir runs/demo
    python experiments/deferral.py label runs/demo      # lessons of the learned scorers, once
    python experiments/deferral.py curve runs/demo      # goes on where it stood
    python experiments/deferral.py table runs/demo      # results/deferral.{json,md}

Four pairs: a device's co-tuned model and the co-tuned cloud, with different tokenizers. Each answers as many
test prompts of its own domain (there the edge alone knows the facts and the cloud has the skills better) as
of the public test set (general skills, where the cloud leads). Scorers learn from, and shares are calibrated
on, the device's validation rows and public validation rows; the threshold then stays (`Share.step` 0), so
that prompts do not depend on each other. Beside it: the share kept online as when served, calibrated
(`online`) or from nothing (`uncalibrated`), one prompt after another; and a cloud that goes on behind half a
word as if it were a whole one (`unconditioned`). Greedy, at most 64 tokens. EM and Rouge-L against the
references. The line between edge and cloud is what asking the cloud for whole answers at random reaches at
the same share. Share is counted three ways: tokens (each in its writer's), bytes of the answer, and tokens
over those of the cloud writing all alone. Intervals are 95 %, over 1,000 resamples of prompts, edge, cloud
and share resampled with them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from provenance import commit, hardware

from consort.bench.metrics import exact_match, rouge_l
from consort.config import RuntimeConfig
from consort.inference.divergence import Lesson, lesson
from consort.inference.duet import Duet
from consort.inference.reading import Reader
from consort.inference.share import STEP, Share
from consort.inference.token_file import load_token_need, save_token_need
from consort.inference.token_fit import fit_token_need
from consort.inference.token_need import SCORERS, SPREADS, TokenScorer
from consort.inference.white_box import vocabulary_of
from consort.models.decoding.lm import LocalLM
from consort.training.answers import answer
from consort.training.data import Sample, prompt_ids, read_samples
from consort.training.tuned import load_tuned
from consort.types import Message, Request

RESULTS = Path(__file__).parent / "results"
DEVICES = ("bank", "clinic", "factory", "shop")
OWN, PUBLIC = 36, 36  # test prompts a device
LABEL_OWN, LABEL_PUBLIC = 24, 16
TOKENS, CONTEXT = 64, 256
AT_ONCE = 8  # answers, so that the models read them in one pass
CELLS = (
    ("learned", 0.2), ("doubt", 0.2), ("learned", 0.35), ("doubt", 0.35), ("learned", 0.1), ("doubt", 0.1),
    ("learned", 0.5), ("doubt", 0.5), ("entropy", 0.2), ("margin", 0.2), ("doubt, unconditioned", 0.2),
    ("doubt, online", 0.2), ("doubt, uncalibrated", 0.2),
)  # fmt: skip
RESAMPLES = 1000


class Pair:
    """One device's model and the cloud's, opened for sessions."""

    def __init__(self, run: Path, device: str) -> None:
        runtime = RuntimeConfig(device="cpu")
        models = [
            load_tuned(str(run / "adapters" / name), adapter=None, runtime=runtime)
            for name in (device, "cloud")
        ]
        self.small_model, self.large_model = models
        self.small, self.large = (
            LocalLM(model, answers=1, sessions=AT_ONCE, context_tokens=CONTEXT, alternatives=64)
            for model in models
        )
        self.native = vocabulary_of(self.small).sha256 == vocabulary_of(self.large).sha256

    def rows(self, run: Path, device: str, split: str, own: int, public: int) -> list[tuple[str, Sample]]:
        """Own and public rows that leave room for an answer, in one shuffled stream."""
        found = []
        for name, folder, count in (
            ("own", run / "suite" / "devices" / device, own),
            ("public", run / "suite" / "public", public),
        ):
            fit = [row for row in read_samples(folder, split) if self._fits(row)]
            found += [(name, row) for row in fit[:count]]
        order = np.random.default_rng(0).permutation(len(found))
        return [found[index] for index in order]

    def _fits(self, row: Sample) -> bool:
        return all(
            len(prompt_ids(row, model)) + TOKENS <= CONTEXT for model in (self.small_model, self.large_model)
        )

    def lesson(self, row: Sample) -> Lesson:
        return lesson(self.small, self.large, asked(row), partial(score, row))

    def deferred(
        self, request: Request, scorer: TokenScorer, share: Share, reader: type[Reader]
    ) -> dict[str, object]:
        """One answer, as `inference.deferral` writes it, without its event loop."""
        small, large = Reader(self.small, request), None
        duet, by_large, large_bytes = Duet(request, native=self.native), False, 0
        try:
            piece: bytes | None = b""
            while piece is not None and duet.tokens < request.max_tokens:
                look, choice = duet.look(small)
                by_large = share.asks(scorer(look)) if duet.whole else by_large
                if by_large:
                    large = large or reader(self.large, request)
                    choice = duet.asked(large)
                piece = duet.write(large if by_large and large else small, choice, large=by_large)
                share.count(large=by_large)
                large_bytes += len(piece or b"") if by_large else 0
            return {
                "text": duet.answer.decode(errors="replace"),
                "tokens": duet.tokens,
                "large_tokens": duet.large_tokens,
                "bytes": len(duet.answer),
                "large_bytes": large_bytes,
                "round_trips": large.looks + 1 if large else 0,
            }
        finally:
            small.close()
            if large is not None:
                large.close()


class Unconditioned(Reader):
    """A cloud that goes on behind half a word as if it were a whole one."""

    def before_last(self) -> None:
        return None


def asked(row: Sample) -> Request:
    if isinstance(row.prompt, str):
        return Request((), max_tokens=TOKENS, prompt=row.prompt)
    return Request(tuple(Message(turn.role, turn.content) for turn in row.prompt), max_tokens=TOKENS)


def label(run: Path) -> None:
    """Learn each device's scorer, and keep the needs of the training-free ones on the same rows."""
    for device in DEVICES:
        file = run / "deferral" / f"{device}.safetensors"
        if file.exists():
            continue
        pair = Pair(run, device)
        begun = time.process_time()
        rows = [row for _, row in pair.rows(run, device, "valid", LABEL_OWN, LABEL_PUBLIC)]
        with ThreadPoolExecutor(AT_ONCE) as threads:
            lessons = list(threads.map(pair.lesson, rows))
        model = fit_token_need(lessons, vocabulary_of(pair.small))
        looks = [look for one in lessons for look in one.looks]
        needs = {name: sorted(scorer(look) for look in looks) for name, scorer in SCORERS.items()}
        told = {
            "questions": len(lessons),
            "tokens": len(looks),
            "differing": sum(one.differing for one in lessons),
            "gaining": sum(gain > 0 for one in lessons for gain in one.gains),
            "losing": sum(gain < 0 for one in lessons for gain in one.gains),
            "answer_gain": float(np.mean([one.answer_gain for one in lessons])),
            "cpu_s": time.process_time() - begun,
            "needs": needs,
        }
        file.parent.mkdir(exist_ok=True)
        file.with_suffix(".json").write_text(json.dumps(told))
        save_token_need(model, file)
        print(device, {name: value for name, value in told.items() if name != "needs"}, flush=True)


def score(row: Sample, text: str) -> float:
    return (rouge_l(text, row.answer or "") + exact_match(text, row.answer or "")) / 2


def curve(run: Path) -> None:
    """Every cell of every device; a cell that is there is not answered again."""
    pairs = {device: Pair(run, device) for device in DEVICES}
    for device, pair in pairs.items():
        file = run / "deferral" / f"{device}-alone.json"
        if not file.exists():
            rows = pair.rows(run, device, "test", OWN, PUBLIC)
            samples = [row for _, row in rows]
            small, large = (
                answer(model, samples, max_new_tokens=TOKENS)
                for model in (pair.small_model, pair.large_model)
            )
            counts = [len(pair.large_model.vocabulary.encode(text)) + 1 for text in large]
            told = [
                {
                    "domain": domain,
                    "reference": row.answer,
                    "edge": one,
                    "cloud": other,
                    "cloud_tokens": count,
                }
                for (domain, row), one, other, count in zip(rows, small, large, counts, strict=True)
            ]
            file.write_text(json.dumps(told))
    for name, goal in CELLS:
        for device, pair in pairs.items():
            file = run / "deferral" / f"{device}-{name}-{goal}.json"
            if file.exists():
                continue
            needs = json.loads((run / "deferral" / f"{device}.json").read_text())["needs"]
            scored_by, _, variant = name.partition(", ")
            if name == "learned":
                model = load_token_need(run / "deferral" / f"{device}.safetensors", vocabulary_of(pair.small))
                scorer, spread = model, model.needs
            else:
                even = variant == "uncalibrated"
                spread = np.linspace(*SPREADS[scored_by], 101) if even else needs[scored_by]
                scorer = SCORERS[scored_by]
            online = variant in ("online", "uncalibrated")
            reader = Unconditioned if variant == "unconditioned" else Reader
            begun = time.process_time()
            rows = [row for _, row in pair.rows(run, device, "test", OWN, PUBLIC)]
            share = Share(goal, spread, step=STEP if online else 0.0)
            answered = partial(pair.deferred, scorer=scorer, share=share, reader=reader)
            with ThreadPoolExecutor(1 if online else AT_ONCE) as threads:
                found = list(threads.map(answered, map(asked, rows)))
            file.write_text(json.dumps(found))
            spent = time.process_time() - begun
            print(name, goal, device, f"{spent:.0f} s", flush=True)


def table(run: Path) -> None:
    """Every cell that was answered, over all pairs together, as JSON and Markdown."""
    alone = {
        device: json.loads((run / "deferral" / f"{device}-alone.json").read_text()) for device in DEVICES
    }
    cells = []
    for name, goal in sorted(CELLS):
        files = [run / "deferral" / f"{device}-{name}-{goal}.json" for device in DEVICES]
        if all(file.exists() for file in files):
            rows = [
                base | told
                for device, file in zip(DEVICES, files, strict=True)
                for base, told in zip(alone[device], json.loads(file.read_text()), strict=True)
            ]
            for domain in ("both", "own", "public"):
                chosen = [row for row in rows if domain in ("both", row["domain"])]
                for metric, measured in (("rouge_l", rouge_l), ("em", exact_match)):
                    cells.append({"scorer": name, "goal": goal, "domain": domain, "metric": metric}
                                 | judged(chosen, measured))  # fmt: skip
    labels = {device: json.loads((run / "deferral" / f"{device}.json").read_text()) for device in DEVICES}
    for told in labels.values():
        del told["needs"]
    found = {
        "commit": commit(),
        "hardware": hardware(),
        "seed": 0,
        "prompts": sum(map(len, alone.values())),
        "labels": labels,
        "cells": cells,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "deferral.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "deferral.md").write_text(page(found))
    print(page(found))


def judged(rows: list[dict], measured: Callable[[str, str], float]) -> dict[str, object]:
    """Quality, shares, and what quality has above the line between edge and cloud, with intervals."""
    texts = {
        name: np.array([measured(row[key], row["reference"]) for row in rows])
        for name, key in (("edge", "edge"), ("cloud", "cloud"), ("deferred", "text"))
    }
    counted = ("tokens", "large_tokens", "bytes", "large_bytes", "cloud_tokens", "round_trips")
    columns = {name: np.array([row[name] for row in rows], float) for name in counted}
    rng, drawn = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        drawn.append(_figures(texts, columns, rng.integers(len(rows), size=len(rows))))
    low, high = np.quantile([list(one.values()) for one in drawn], [0.025, 0.975], axis=0)
    value = _figures(texts, columns, np.arange(len(rows)))
    return {name: [value[name], float(low[i]), float(high[i])] for i, name in enumerate(value)}


def _figures(
    texts: dict[str, np.ndarray], columns: dict[str, np.ndarray], rows: np.ndarray
) -> dict[str, float]:
    edge, cloud, quality = (float(texts[name][rows].mean()) for name in ("edge", "cloud", "deferred"))
    total = {name: float(column[rows].sum()) for name, column in columns.items()}
    shares = {
        "token_share": total["large_tokens"] / total["tokens"],
        "byte_share": total["large_bytes"] / max(1.0, total["bytes"]),
        "cloud_work": total["large_tokens"] / total["cloud_tokens"],
    }
    above = {
        f"above_line_by_{name}": quality - edge - share * (cloud - edge) for name, share in shares.items()
    }
    trips = {"round_trips": total["round_trips"] / len(rows)}
    return {"edge": edge, "cloud": cloud, "quality": quality} | shares | above | trips


def page(found: dict) -> str:
    """The results as Markdown."""
    lines = [
        "# Token deferral: quality against the share of the cloud's tokens",
        "",
        f"Commit {found['commit']}; {found['hardware']}; {found['prompts']} prompts, four pairs of models.",
        "`experiments/deferral.py` says what learns from what. Percent (95 % interval); in bold where the",
        "whole interval lies above the line between edge and cloud. Work: cloud tokens over those of the",
        "cloud alone.",
    ]
    for metric, title in (("rouge_l", "Rouge-L"), ("em", "EM")):
        for domain, where in (("both", "own and public prompts together"), ("own", "the device's own domain"),
                              ("public", "public prompts")):  # fmt: skip
            cells = [c for c in found["cells"] if (c["metric"], c["domain"]) == (metric, domain)]
            if not cells:
                continue
            edge, cloud = (_cell(cells[0][name]) for name in ("edge", "cloud"))
            lines += ["", f"**{title}, {where}**: edge alone {edge}, cloud alone {cloud}.", ""]
            lines += [
                "| scorer | goal | tokens | bytes | work | quality | above the line, by tokens | by bytes "
                "| by work |",
                "|" + "---|" * 9,
            ]
            for c in cells:
                shares = [f"{100 * c[name][0]:.1f}" for name in ("token_share", "byte_share", "cloud_work")]
                above = [
                    _above(c[f"above_line_by_{name}"]) for name in ("token_share", "byte_share", "cloud_work")
                ]
                cell = [c["scorer"], f"{c['goal']:g}", *shares, _cell(c["quality"]), *above]
                lines.append(f"| {' | '.join(cell)} |")
    head = "| device | questions labelled | tokens | differing | gaining | losing | cloud answer's gain |"
    lines += ["", head, "|" + "---|" * 7]
    for device, told in found["labels"].items():
        numbers = [str(told[name]) for name in ("questions", "tokens", "differing", "gaining", "losing")]
        lines.append(f"| {device} | {' | '.join(numbers)} | {told['answer_gain']:.3f} |")
    return "\n".join([*lines, ""])


def _cell(figure: list[float]) -> str:
    value, low, high = (100 * number for number in figure)
    return f"{value:.1f} ({low:.1f}, {high:.1f})"


def _above(figure: list[float]) -> str:
    value, low, high = (100 * number for number in figure)
    text = f"{value:+.1f} ({low:+.1f}, {high:+.1f})"
    return f"**{text}**" if low > 0 else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("verb", choices=("label", "curve", "table"))
    parser.add_argument("run", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    {"label": label, "curve": curve, "table": table}[options.verb](options.run)


if __name__ == "__main__":
    main()
