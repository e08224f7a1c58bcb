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
from loss import commit, hardware

from consort.align import SparseRows
from consort.config import RuntimeConfig
from consort.federated.aggregate import apply_change, average_adapters, change, check_update
from consort.federated.packets import decode_adapter, decode_knowledge, encode_adapter, encode_knowledge
from consort.models.local import LocalModel, generate, load_model
from consort.training.adapters import add_lora, lora_parameters, read_adapter, write_adapter
from consort.types import Adapter

RESULTS = Path(__file__).parent / "results"
DATA = Path(os.environ.get("CONSORT_DATA", Path(__file__).parents[2] / "shared" / "data"))
SEED = 0
MASSES = (0.95, 0.96, 0.97, 0.98)
DEVICES = ("bank", "restaurant", "clinic", "assistant")
ROUNDS, STEPS, BATCH_ROWS, TOKENS = 10, 10, 8, 96


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


# ---- adapters


def adapter_tables(directory: Path) -> tuple[list[dict], list[dict]]:
    """Sizes and errors of packets, and FedLoRA with each way of sending."""
    runs = [fed_lora(directory, arm, seed) for seed in range(3) for arm in ("32", "8", "8 + feedback")]
    exact = {run["seed"]: run for run in runs if run["arm"] == "32"}
    lines = []
    for run in runs:
        reference = exact[run["seed"]]["adapter"]
        away = check_update(run["adapter"], reference) / check_update(reference, nothing(reference))
        lines.append(
            {
                **{key: run[key] for key in ("arm", "seed", "loss_before", "loss_after", "uplink_bytes")},
                "loss_minus_32": run["loss_after"] - exact[run["seed"]]["loss_after"],
                "distance_from_32": away,
            }
        )
    rng = np.random.default_rng(SEED)
    modules = [
        (f"model.layers.{i}.proj.lora_{side}", shape)
        for i in range(39)
        for side, shape in (("A", (8, 128)), ("B", (128, 8)))
    ]
    normal = Adapter({n: rng.normal(size=s).astype(np.float32) * 0.01 for n, s in modules}, 2.0, "0" * 64)
    packets = [packet_line("normal numbers, rank 8, width 128", [normal] * 2)]
    packets += [packet_line(f"trained, seed {seed}", run["changes"]) for seed, run in exact.items()]
    return packets, lines


def fed_lora(directory: Path, arm: str, seed: int) -> dict:
    """Four devices train one LoRA on their own texts; only changes of it travel."""
    model = load_model(directory, runtime=RuntimeConfig())
    add_lora(model, "shared", rank=8, alpha=16.0, seed=seed)
    train = [rows_of(model, name, "train", 300) for name in DEVICES]
    test = torch.cat([rows_of(model, name, "test", 50) for name in DEVICES])
    shared, rng = read_adapter(model, "shared"), np.random.default_rng(seed)
    residuals: list[Adapter | None] = [None] * len(DEVICES)
    uplink, first_device = 0, []
    before = held_out_loss(model, test)
    for _ in range(ROUNDS):
        arrived = []
        for device, rows in enumerate(train):
            write_adapter(model, "shared", shared)
            train_lora(model, rows, rng)
            moved = change(read_adapter(model, "shared"), shared)
            first_device += [moved] * (device == 0)
            owed = residuals[device] if arm == "8 + feedback" else None
            packet, residuals[device] = encode_adapter(moved, bits=32 if arm == "32" else 8, residual=owed)
            uplink += len(packet)
            arrived.append(apply_change(shared, decode_adapter(packet, base_sha256=shared.base_sha256)))
        shared = average_adapters(arrived, [len(rows) for rows in train], previous=shared).adapter
    write_adapter(model, "shared", shared)
    return {
        "arm": arm,
        "seed": seed,
        "adapter": shared,
        "changes": first_device,
        "uplink_bytes": uplink,
        "loss_before": before,
        "loss_after": held_out_loss(model, test),
    }


def train_lora(model: LocalModel, rows: torch.Tensor, rng: np.random.Generator) -> None:
    parameters = list(lora_parameters(model, "shared").values())
    optimizer = torch.optim.AdamW([parameter.requires_grad_(True) for parameter in parameters], lr=3e-3)
    for _ in range(STEPS):
        loss = next_token_loss(model, rows[rng.integers(0, len(rows), BATCH_ROWS)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def held_out_loss(model: LocalModel, rows: torch.Tensor) -> float:
    """Nats a token."""
    return float(next_token_loss(model, rows))


def next_token_loss(model: LocalModel, rows: torch.Tensor) -> torch.Tensor:
    weight, bias = model.head()
    logits = F.linear(model.hidden(rows)[:, :-1], weight, bias)
    return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), ignore_index=model.eos_id)


def rows_of(model: LocalModel, name: str, split: str, num_rows: int) -> torch.Tensor:
    texts = read_texts(model, DATA / "tasks" / name / f"{split}.jsonl", num_rows)
    rows = torch.full((len(texts), TOKENS), model.eos_id)
    for i, text in enumerate(texts):
        ids = torch.tensor([*text.prompt, *text.answer][-TOKENS:])
        rows[i, : len(ids)] = ids
    return rows


def packet_line(label: str, changes: Sequence[Adapter]) -> dict:
    """Bytes a parameter, relative error of the first packet, and of the sum of all with and without feedback."""
    size = sum(tensor.size for tensor in changes[0].tensors.values())
    residual, packets, forgetful = None, [], []
    for moved in changes:
        packet, residual = encode_adapter(moved, bits=8, residual=residual)
        packets.append(packet)
        forgetful.append(encode_adapter(moved, bits=8)[0])
    return {
        "adapter": label,
        "parameters": size,
        "rounds": len(changes),
        "bytes_per_parameter": sum(map(len, packets)) / size / len(packets),
        "bytes_per_parameter_32": len(encode_adapter(changes[0], bits=32)[0]) / size,
        "error_first_packet": relative_error(packets[:1], changes[:1]),
        "error_of_sum_feedback": relative_error(packets, changes),
        "error_of_sum_without": relative_error(forgetful, changes),
    }


def relative_error(packets: Sequence[bytes], changes: Sequence[Adapter]) -> float:
    meant = flat_sum(changes)
    missed = flat_sum([decode_adapter(packet) for packet in packets]) - meant
    return float(np.linalg.norm(missed) / np.linalg.norm(meant))


def flat_sum(adapters: Sequence[Adapter]) -> np.ndarray:
    return sum(
        np.concatenate([t.ravel() for t in adapter.tensors.values()]).astype(np.float64)
        for adapter in adapters
    )


def nothing(adapter: Adapter) -> Adapter:
    return Adapter({n: t * 0 for n, t in adapter.tensors.items()}, adapter.scaling, adapter.base_sha256)


# ---- report


def as_markdown(result: dict) -> str:
    lines = [
        "# What travels",
        "",
        f"Commit {result['commit']}; {result['hardware']}; seed {SEED}.",
        "",
        "## Knowledge: nucleus of the given mass, at most 128 tokens, log-probabilities in steps of 0.1 nats",
        "",
        "TV: total variation from the full distribution, and with the tail as one event; ± is 1.96 standard errors,",
        "clustered by text.",
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
        f"## FedLoRA: {len(DEVICES)} devices, {ROUNDS} rounds of {STEPS} steps; held-out nats",
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
    packets, runs = ([], []) if options.skip_adapters else adapter_tables(options.model)
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
