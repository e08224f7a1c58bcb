"""What travels, measured: bytes and error of a token of teacher knowledge, and of a parameter of an adapter.

Knowledge: the next-token distributions of a real model on texts, packed and unpacked. Total variation is
against the full distribution, every cut token counted as lost (`TV`), and with the tail as one event, as
the losses read it (`TV, tail as one`). Intervals are 1.96 standard errors, clustered by text. Adapters:
FedLoRA of four devices on one base for ten rounds, the same run with 32 bits, 8 bits, and 8 bits with error
feedback. Does not measure answers: that is experiments/real_co_tuning.

    python experiments/wire.py [--model DIR --text FILE [--text FILE]] [--skip-adapters]

FILE is JSONL (the answers' rows are packed, prompts only read) or plain text (a paragraph is a text). By
default the model is stories260K of CONSORT_DATA, on texts that it samples itself and on the answers of the
clinic's test rows.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from provenance import commit, hardware
from wire_adapters import adapter_tables

from consort.align import SparseRows
from consort.config import RuntimeConfig
from consort.federated.packets import decode_knowledge, encode_knowledge
from consort.models.local import LocalModel, generate, load_model

RESULTS = Path(__file__).parent / "results"
DATA = Path(os.environ.get("CONSORT_DATA", Path(__file__).parents[2] / "shared" / "data"))
SEED = 0
MASSES = (0.95, 0.96, 0.97, 0.98)


@dataclass(frozen=True)
class Text:
    """Ids of a prompt, which is only read, and of the text whose rows are packed."""

    prompt: list[int]
    answer: list[int]


# ---- knowledge


def knowledge_table(model: LocalModel, texts: Sequence[Text], label: str) -> list[dict]:
    dense = [distributions(model, text) for text in texts]
    full = {str(i): top_rows(part) for i, part in enumerate(dense)}
    identity = {"tokenizer_sha256": model.vocabulary.sha256}
    num_rows = sum(map(len, dense))
    entropy = -sum(float((part * np.log(part + 1e-30)).sum()) for part in dense) / num_rows
    lines = []
    for mass in MASSES:
        packet = encode_knowledge(full, **identity, mass=mass)
        single = sum(len(encode_knowledge({key: rows}, **identity, mass=mass)) for key, rows in full.items())
        got = decode_knowledge(packet, **identity, vocabulary_size=dense[0].shape[1])
        errors = [distances(part, got[str(i)]) for i, part in enumerate(dense)]
        strict, strict_interval = clustered([error[0] for error in errors])
        bucket, bucket_interval = clustered([error[1] for error in errors])
        lines.append(
            {
                "model": model.name,
                "texts": label,
                "vocabulary": dense[0].shape[1],
                "num_texts": len(texts),
                "rows": num_rows,
                "entropy_nats": entropy,
                "mass": mass,
                "kept_tokens": sum(int((rows.probs > 0).sum()) for rows in got.values()) / num_rows,
                "bytes_per_token": len(packet) / num_rows,
                "bytes_per_token_one_text_a_packet": single / num_rows,
                "tv": strict,
                "tv_interval": strict_interval,
                "tv_bucket": bucket,
                "tv_bucket_interval": bucket_interval,
            }
        )
    return lines


@torch.no_grad()
def distributions(model: LocalModel, text: Text) -> np.ndarray:
    """[T + 1, V]: the row after t tokens of the answer, t = 0..T."""
    prompt = text.prompt[-(model.context_tokens - len(text.answer)) :]
    hidden = model.hidden(torch.tensor([prompt + text.answer], device=model.device))[0, len(prompt) - 1 :]
    weight, bias = model.head()
    return F.linear(hidden.float(), weight.float(), bias).softmax(-1).cpu().numpy()


def top_rows(dense_RV: np.ndarray) -> SparseRows:
    ids = np.argsort(-dense_RV, axis=1)[:, :255].astype(np.int32)
    probs = np.take_along_axis(dense_RV, ids, axis=1)
    return SparseRows(ids, probs, np.maximum(1 - probs.sum(1), 0), np.ones(len(ids), bool))


def distances(dense_RV: np.ndarray, got: SparseRows) -> tuple[np.ndarray, np.ndarray]:
    """Total variation of each row: cut tokens lost, and the tail as one event."""
    kept = got.probs > 0
    row, slot = np.nonzero(kept)
    found = np.zeros_like(dense_RV)
    found[row, got.ids[row, slot]] = got.probs[row, slot]
    tail = np.where(found > 0, 0, dense_RV).sum(1)
    off = np.where(found > 0, np.abs(dense_RV - found), 0).sum(1)
    return 0.5 * (off + tail + got.rest), 0.5 * (off + np.abs(tail - got.rest))


def clustered(parts: Sequence[np.ndarray]) -> tuple[float, float]:
    """Mean over rows, and 1.96 standard errors with texts as clusters."""
    total = sum(map(len, parts))
    mean = sum(float(part.sum()) for part in parts) / total
    spread = sum((float(part.sum()) - mean * len(part)) ** 2 for part in parts)
    return mean, 1.96 * (spread * len(parts) / max(1, len(parts) - 1)) ** 0.5 / total


def sampled_texts(model: LocalModel, num_texts: int) -> list[Text]:
    start = [start_id(model)]
    answers = generate(model, [start] * num_texts, max_new_tokens=200, temperature=1.0, seed=SEED)
    return [Text(start, answer) for answer in answers if answer]


def read_texts(model: LocalModel, path: Path, num_texts: int) -> list[Text]:
    encode, limit = model.vocabulary.encode, model.context_tokens // 2
    if path.suffix != ".jsonl":
        parts = [part for part in path.read_text(encoding="utf-8").split("\n\n") if part.strip()]
        return [Text([start_id(model)], encode(part)[:limit]) for part in parts[:num_texts]]
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:num_texts]]
    return [
        Text([start_id(model), *encode(f"{r['instruction']}\n{r['input']}\n")], encode(r["output"])[:limit])
        for r in rows
    ]


def start_id(model: LocalModel) -> int:
    first = model.tokenizer.bos_token_id
    return model.eos_id if first is None else first


# ---- report


def as_markdown(result: dict) -> str:
    lines = [
        "# What travels",
        "",
        f"Commit {result['commit']}; {result['hardware']}; seed {SEED}.",
        "",
        "## Knowledge: nucleus of the given mass, at most 128 tokens, log-probabilities in steps of 0.1 nats",
        "",
        "TV: total variation from the full distribution, and with the tail as one event.",
        "± is 1.96 standard errors, clustered by text.",
        "",
    ]
    lines += table(
        [
            "model",
            "texts",
            "rows",
            "nats",
            "mass",
            "kept",
            "bytes/token",
            "one text a packet",
            "TV",
            "TV, tail as one",
        ],
        [
            [
                f"{k['model']} ({k['vocabulary']})",
                k["texts"],
                k["rows"],
                f"{k['entropy_nats']:.2f}",
                k["mass"],
                f"{k['kept_tokens']:.1f}",
                f"**{k['bytes_per_token']:.1f}**",
                f"{k['bytes_per_token_one_text_a_packet']:.1f}",
                f"**{k['tv']:.4f}** ± {k['tv_interval']:.4f}",
                f"{k['tv_bucket']:.4f} ± {k['tv_bucket_interval']:.4f}",
            ]
            for k in result["knowledge"]
        ],
    )
    if not result["packets"]:
        return "\n".join(lines) + "\n"
    lines += ["", "## An adapter in 8 bits: relative error of its first packet, and of the sum of ten", ""]
    lines += table(
        [
            "adapter",
            "parameters",
            "bytes/parameter",
            "in 32 bits",
            "one packet",
            "sum, feedback",
            "sum, without",
        ],
        [
            [
                p["adapter"],
                p["parameters"],
                f"**{p['bytes_per_parameter']:.3f}**",
                f"{p['bytes_per_parameter_32']:.2f}",
                f"{p['error_first_packet']:.4f}",
                f"{p['error_of_sum_feedback']:.4f}",
                f"{p['error_of_sum_without']:.4f}",
            ]
            for p in result["packets"]
        ],
    )
    lines += [
        "",
        "## FedLoRA: four devices, ten rounds of ten steps; held-out nats a token",
        "",
    ]
    lines += table(
        ["bits", "seed", "before", "after", "minus 32 bits", "distance from 32 bits", "bytes up"],
        [
            [
                f["arm"],
                f["seed"],
                f"{f['loss_before']:.4f}",
                f"{f['loss_after']:.4f}",
                f"{f['loss_minus_32']:+.5f}",
                f"{f['distance_from_32']:.4f}",
                f"{f['uplink_bytes']:,}",
            ]
            for f in result["fed_lora"]
        ],
    )
    return "\n".join(lines) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    return ["| " + " | ".join(map(str, cells)) + " |" for cells in (head, ["---"] * len(head), *rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=DATA / "checkpoints" / "stories260K")
    parser.add_argument(
        "--text",
        type=Path,
        action="append",
        help="beside sampled texts; may be repeated",
    )
    parser.add_argument("--num-texts", type=int, default=100, help="texts of each kind")
    parser.add_argument("--skip-adapters", action="store_true", help="knowledge only; writes no result")
    options = parser.parse_args()
    model = load_model(options.model, runtime=RuntimeConfig())
    kinds = {"sampled by the model": sampled_texts(model, options.num_texts)}
    for path in options.text or [DATA / "tasks" / "clinic" / "test.jsonl"]:
        kinds[f"{path.parent.name}/{path.name}"] = read_texts(model, path, options.num_texts)
    knowledge = [line for label, texts in kinds.items() for line in knowledge_table(model, texts, label)]
    packets, runs = ([], []) if options.skip_adapters else adapter_tables(options.model, DATA / "tasks")
    result = {
        "commit": commit(),
        "hardware": hardware(),
        "seed": SEED,
        "knowledge": knowledge,
        "packets": packets,
        "fed_lora": runs,
    }
    print(as_markdown(result))
    if not options.skip_adapters:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "wire.json").write_text(json.dumps(result, indent=1) + "\n")
        (RESULTS / "wire.md").write_text(as_markdown(result))


if __name__ == "__main__":
    main()
