"""Exported GGUF files served by llama.cpp against the models they were made of: same tokens, what speed.

Every bundled model is exported in float32, float16 and q8_0, and answers the same prompts as `LocalModel`,
one at a time through the same batch: greedy, and drawn at temperature 1 with the same seeds. Counted are
answers that are equal to their end, and single tokens: those of our answer that llama.cpp chooses too when it
has read everything before them. Speed is tokens a CPU second, greedy, one thread, with the reading of the
prompt; transformers' `generate` is measured in turn with ours and llama.cpp's on each prompt.

    nice -n 19 env OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python experiments/gguf_files.py [--prompts 16]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from decoding import LONG, NEW_TOKENS, RESULTS, cpu_s, theirs
from provenance import commit, hardware

from consort.bench.suite import generate_suite
from consort.config import RuntimeConfig
from consort.models.decoding.batch import Batch, Row
from consort.models.decoding.lm import Decodable
from consort.models.decoding.sampling import Sampling, choose, token_keys
from consort.models.gguf.model import GgufModel, load_gguf
from consort.models.local import LocalModel, load_model
from consort.models.zoo import NAMES
from consort.training.data import Sample, prompt_ids
from consort.training.export import Precision, write_gguf
from consort.types import Message

PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "q8_0")
CPU = RuntimeConfig(device="cpu")


class Writer:
    """One model's cache, and its answers from it, one at a time."""

    def __init__(self, model: Decodable) -> None:
        self.model = model
        self.network = model.open_network(slots=1, positions=model.context_tokens)

    def write(self, ids: Sequence[int], sampling: Sampling) -> list[int]:
        batch, row = Batch(self.network, self.model.vocabulary), Row(list(ids), NEW_TOKENS, sampling)
        batch.add(row)
        while batch.rows:
            batch.step(len(ids))
        return row.written

    def choices(self, ids: Sequence[int], answer: Sequence[int], sampling: Sampling) -> list[int]:
        """What the model takes in each place of a given answer."""
        read = [*ids, *answer[:-1]]
        logits = self.network.read([read], slots=[0], starts=[0], every=True)[len(ids) - 1 :]
        count = len(answer)
        keys = token_keys(self.model.vocabulary)
        return choose(logits[:, : len(keys)], [sampling] * count, range(count), keys)


def agreement(ours: Writer, other: Writer, prompts: Sequence[Sequence[int]], temperature: float) -> dict:
    answers, tokens, same = 0, 0, 0
    for seed, ids in enumerate(prompts):
        sampling = Sampling(temperature, seed=seed)
        answer = ours.write(ids, sampling)
        answers += answer == other.write(ids, sampling)
        chosen = other.choices(ids, answer, sampling)
        tokens += len(answer)
        same += sum(one == two for one, two in zip(answer, chosen, strict=True))
    return {"answers": answers, "of": len(prompts), "tokens_differ": tokens - same, "tokens": tokens}


def speed(
    model: LocalModel, ours: Writer, others: dict[str, Writer], prompts: Sequence[Sequence[int]]
) -> dict:
    greedy = Sampling()
    rates: dict[str, list[float]] = {name: [] for name in ("generate", "ours", *others)}
    for ids in [prompts[0], *prompts]:  # the first warms up
        for name in rates:
            answers: list[list[int]] = []
            if name == "generate":
                seconds = cpu_s(lambda ids=ids, into=answers: into.append(theirs(model, [ids])[0]))
            else:
                writer = ours if name == "ours" else others[name]
                seconds = cpu_s(lambda w=writer, ids=ids, into=answers: into.append(w.write(ids, greedy)))
            rates[name].append(len(answers[0]) / seconds)
    kept = {name: found[1:] for name, found in rates.items()}
    ratios = {
        name: statistics.quantiles([one / two for one, two in zip(found, kept["ours"], strict=True)], n=4)
        for name, found in kept.items()
    }
    return {
        "tokens_s": {name: statistics.median(found) for name, found in kept.items()},
        "against_ours_quartiles": ratios,
    }


def measure(name: str, texts: Sequence[str], folder: Path) -> dict[str, Any]:
    model = load_model(f"zoo:{name}", runtime=CPU)
    room = model.context_tokens - LONG
    prompts = [prompt_ids(Sample((Message("user", text),), None), model)[-room:] for text in texts]
    ours, others, sizes = Writer(model), {}, {}
    for precision in PRECISIONS:
        file = folder / f"{name}-{precision}.gguf"
        write_gguf(model, file, precision=precision)
        loaded: GgufModel = load_gguf(file, runtime=CPU)
        others[precision], sizes[precision] = Writer(loaded), file.stat().st_size
    found = {
        precision: {
            "bytes": sizes[precision],
            "greedy": agreement(ours, other, prompts, 0.0),
            "drawn": agreement(ours, other, prompts, 1.0),
        }
        for precision, other in others.items()
    }
    return {"model": name, "agreement": found, **speed(model, ours, others, prompts)}


def at_most(count: int, total: int) -> float:
    """The upper end of Wilson's 95 % interval of a share."""
    z, share = 1.96, count / total
    middle = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return (middle + spread) / (1 + z * z / total)


def as_markdown(result: dict[str, Any]) -> str:
    lines = [
        "# GGUF files in llama.cpp against the models they were made of",
        "",
        f"Commit {result['commit']}; {result['hardware']}; llama-cpp-python {result['llama_cpp']}; load "
        f"{result['load']:.1f}. {result['prompts']} prompts a model, at most {NEW_TOKENS} tokens each.",
        "",
        "Equal answers, and single tokens chosen otherwise in the same place (in brackets the upper end of "
        "the 95 % interval of their share):",
        "",
        "| model | file | kB | greedy: equal | tokens that differ | drawn at 1: equal | tokens that differ |",
        "|---" * 7 + "|",
    ]
    for row in result["models"]:
        for precision, found in row["agreement"].items():
            cells = [row["model"], precision, f"{found['bytes'] / 1000:.0f}"]
            for kind in ("greedy", "drawn"):
                one = found[kind]
                bound = 100 * at_most(one["tokens_differ"], one["tokens"])
                cells.append(f"{one['answers']} of {one['of']}")
                cells.append(f"{one['tokens_differ']} of {one['tokens']} ({bound:.2f} %)")
            lines.append(f"| {' | '.join(cells)} |")
    names = list(result["models"][0]["tokens_s"])
    titles = [name if name in ("generate", "ours") else f"llama.cpp {name}" for name in names]
    lines += [
        "",
        "Greedy, one at a time, tokens a CPU second with the reading of the prompt, medians; in brackets the "
        "median of the prompts' ratios to ours, and its quartiles:",
        "",
        f"| model | {' | '.join(titles)} |",
        "|---" * (len(names) + 1) + "|",
    ]
    for row in result["models"]:
        cells = [row["model"]]
        for name in names:
            low, middle, high = row["against_ours_quartiles"][name]
            ratio = "" if name == "ours" else f" ({middle:.2f}; {low:.2f}, {high:.2f})"
            cells.append(f"{row['tokens_s'][name]:.0f}{ratio}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--models", nargs="+", default=list(NAMES), choices=NAMES)
    options = parser.parse_args()
    import llama_cpp

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*llama.cpp reads characters a Unigram vocabulary lacks")
    rows = generate_suite().public["test"][: options.prompts]
    texts = [f"{row.instruction}\n{row.input}" for row in rows]
    models = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            print(f"measuring {name}", file=sys.stderr)
            models.append(measure(name, texts, Path(folder)))
    result = {
        "commit": commit(),
        "hardware": hardware(),
        "llama_cpp": llama_cpp.__version__,
        "load": float(Path("/proc/loadavg").read_text().split()[0]),
        "prompts": len(texts),
        "models": models,
    }
    print(as_markdown(result))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "gguf_files.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "gguf_files.md").write_text(as_markdown(result))


if __name__ == "__main__":
    main()
