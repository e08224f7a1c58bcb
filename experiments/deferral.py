"""Quality against the share of tokens that the cloud writes: `defer` on the demo's co-tuned consort.

    consort demo --run-dir runs/demo
    python experiments/deferral.py label runs/demo      # what each token of validation answers is worth, once
    python experiments/deferral.py learn runs/demo      # the learned scorers, once
    python experiments/deferral.py curve runs/demo      # goes on where it stood
    python experiments/deferral_table.py runs/demo      # results/deferral.{json,md}

Four pairs: a device's co-tuned model and the co-tuned cloud, with different tokenizers. Each answers as many
test prompts of its own domain (there the edge alone knows the facts and the cloud has the skills better) as
of the public test set (general skills, where the cloud leads). Scorers learn from the device's validation
rows and more public ones, `states` from the edge's hidden states too; shares are calibrated on as many of
each, of which the learned scorers' values are those without the question's fold. The threshold then stays
(`Share.step` 0), so that prompts do not depend on each other. Beside it: the share kept online as when
served, calibrated (`online`) or from nothing (`uncalibrated`), one prompt after another; and a cloud that
goes on behind half a word as if it were a whole one (`unconditioned`). Greedy, at most 64 tokens.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from consort.bench.metrics import exact_match, rouge_l
from consort.config import RuntimeConfig
from consort.inference.divergence import Lesson, lesson
from consort.inference.duet import Duet
from consort.inference.reading import Reader
from consort.inference.share import STEP, Share
from consort.inference.token_file import load_token_need, save_token_need
from consort.inference.token_fit import fit_token_need
from consort.inference.token_need import SCORERS, SPREADS, Look, TokenScorer
from consort.inference.white_box import states_of, vocabulary_of
from consort.models.decoding.lm import LocalLM
from consort.training.answers import answer
from consort.training.data import Sample, prompt_ids, read_samples
from consort.training.tuned import load_tuned
from consort.types import Message, Request

DEVICES = ("bank", "clinic", "factory", "shop")
OWN, PUBLIC = 36, 36  # test prompts a device
LABEL_OWN, LABEL_PUBLIC = 42, 120
LEARNED = ("learned", "states")
TOKENS, CONTEXT = 64, 256
AT_ONCE = 8  # answers, so that the models read them in one pass
CELLS = (
    *((name, goal) for goal in (0.2, 0.35, 0.1, 0.5) for name in (*LEARNED, "doubt")),
    ("entropy", 0.2), ("margin", 0.2), ("doubt, unconditioned", 0.2), ("doubt, online", 0.2),
    ("doubt, uncalibrated", 0.2),
)  # fmt: skip


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
            LocalLM(
                model,
                answers=1,
                sessions=AT_ONCE,
                context_tokens=CONTEXT,
                alternatives=64,
                shows_states=model is self.small_model,
            )
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

    def looks(self, row: Sample) -> tuple[Look, ...]:
        """The small model's own path once more."""
        reader, duet, looks = Reader(self.small, asked(row)), Duet(asked(row), native=self.native), []
        piece: bytes | None = b""
        while piece is not None and duet.tokens < TOKENS:
            look, choice = duet.look(reader)
            looks.append(look)
            piece = duet.write(reader, choice, large=False)
        reader.close()
        return tuple(looks)

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
    """What the cloud's token would have gained, in every place of every validation row's answer."""
    for device in DEVICES:
        file = run / "deferral" / f"{device}-lessons.json"
        if file.exists():
            continue
        pair, begun = Pair(run, device), time.process_time()
        rows = pair.rows(run, device, "valid", LABEL_OWN, LABEL_PUBLIC)
        with ThreadPoolExecutor(AT_ONCE) as threads:
            lessons = list(threads.map(pair.lesson, [row for _, row in rows]))
        told = [
            {
                "domain": domain,
                "gains": one.gains,
                "differing": one.differing,
                "answer_gain": one.answer_gain,
            }
            for (domain, _), one in zip(rows, lessons, strict=True)
        ]
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(told))
        print(device, f"{time.process_time() - begun:.0f} s", flush=True)


def learn(run: Path) -> None:
    """Each device's scorers, and the needs of all scorers on as many own as public rows."""
    for device in DEVICES:
        file = run / "deferral" / f"{device}.json"
        if file.exists():
            continue
        pair, begun = Pair(run, device), time.process_time()
        rows = pair.rows(run, device, "valid", LABEL_OWN, LABEL_PUBLIC)
        labels = json.loads((run / "deferral" / f"{device}-lessons.json").read_text())
        with ThreadPoolExecutor(AT_ONCE) as threads:
            paths = list(threads.map(pair.looks, [row for _, row in rows]))
        lessons = [
            Lesson(path, tuple(one["gains"]), one["differing"], one["answer_gain"])
            for path, one in zip(paths, labels, strict=True)
        ]
        calibrating = balanced([domain for domain, _ in rows], [len(path) for path in paths])
        gains = np.concatenate([one.gains for one in lessons])
        looks = [look for path in paths for look in path]
        values = {name: np.array([scorer(look) for look in looks]) for name, scorer in SCORERS.items()}
        for name, states_sha256 in zip(LEARNED, ("", states_of(pair.small)), strict=True):
            unasked = fit_token_need(
                list(map(wordless, lessons)), vocabulary_of(pair.small), states_sha256=states_sha256
            )
            values[f"{name}, no words"] = unasked.needs
            model = fit_token_need(lessons, vocabulary_of(pair.small), states_sha256=states_sha256)
            values[name] = model.needs
            save_token_need(
                replace(model, needs=model.needs[calibrating]), run / "deferral" / f"{device}-{name}"
            )
        assert model.states is not None, "the last one learned from states"
        told = {
            "questions": len(lessons),
            "tokens": len(looks),
            "differing": sum(one.differing for one in lessons),
            "gaining": int((gains > 0).sum()),
            "losing": int((gains < 0).sum()),
            "answer_gain": float(np.mean([one.answer_gain for one in lessons])),
            "components": model.states.components,
            "state_width": len(model.states.mean),
            "correlation": {name: float(np.corrcoef(each, gains)[0, 1]) for name, each in values.items()},
            "learn_cpu_s": time.process_time() - begun,
            "needs": {name: each[calibrating].tolist() for name, each in values.items()},
        }
        file.write_text(json.dumps(told))
        print(device, {name: value for name, value in told.items() if name != "needs"}, flush=True)


def wordless(one: Lesson) -> Lesson:
    """The lesson of one who does not see the question."""
    return replace(one, looks=tuple(replace(look, question="") for look in one.looks))


def balanced(domains: list[str], lengths: list[int]) -> np.ndarray:
    """The tokens of as many questions of either domain, the first ones."""
    kept: dict[str, int] = {}
    fewest, chosen = min(domains.count("own"), domains.count("public")), []
    for domain, length in zip(domains, lengths, strict=True):
        kept[domain] = kept.get(domain, 0) + 1
        chosen += [kept[domain] <= fewest] * length
    return np.array(chosen)


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
            if name in LEARNED:
                scorer = load_token_need(
                    run / "deferral" / f"{device}-{name}",
                    vocabulary_of(pair.small),
                    states_sha256=states_of(pair.small),
                )
                spread = scorer.needs
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("verb", choices=("label", "learn", "curve"))
    parser.add_argument("run", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    {"label": label, "learn": learn, "curve": curve}[options.verb](options.run)


if __name__ == "__main__":
    main()
