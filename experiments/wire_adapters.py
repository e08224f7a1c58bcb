"""The adapters' half of experiments/wire.py: bytes and error of packets, and what 8 bits do to training.

FedLoRA of four devices on one base for ten rounds, the same run with 32 bits, 8 bits, and 8 bits with error
feedback. The loss is of whole rows, the model tiny: this shows what rounding does to training, not how good
the answers are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it

from consort.config import RuntimeConfig
from consort.federated.aggregate import apply_change, average_adapters, change, check_update
from consort.federated.packets import decode_adapter, encode_adapter
from consort.models.local import LocalModel, load_model
from consort.training.adapters import add_lora, lora_parameters, read_adapter, write_adapter
from consort.types import Adapter

SEED = 0
DEVICES = ("bank", "restaurant", "clinic", "assistant")
ROUNDS, STEPS, BATCH_ROWS, TOKENS = 10, 10, 8, 96


def adapter_tables(directory: Path, tasks: Path) -> tuple[list[dict], list[dict]]:
    """Sizes and errors of packets, and FedLoRA with each way of sending."""
    runs = [fed_lora(directory, tasks, arm, seed) for seed in range(3) for arm in ("32", "8", "8 + feedback")]
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
    normal = [
        Adapter({n: rng.normal(size=s).astype(np.float32) for n, s in modules}, 2.0, "0" * 64)
        for _ in range(ROUNDS)
    ]
    packets = [packet_line("normal numbers, rank 8, width 128", normal)]
    packets += [packet_line(f"trained, seed {seed}", run["changes"]) for seed, run in exact.items()]
    return packets, lines


def fed_lora(directory: Path, tasks: Path, arm: str, seed: int) -> dict:
    """Four devices train one LoRA on their own texts; only changes of it travel."""
    model = load_model(directory, runtime=RuntimeConfig())
    add_lora(model, "shared", rank=8, alpha=16.0, seed=seed)
    train = [rows_of(model, tasks / name / "train.jsonl", 300) for name in DEVICES]
    test = torch.cat([rows_of(model, tasks / name / "test.jsonl", 50) for name in DEVICES])
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


def rows_of(model: LocalModel, path: Path, num_rows: int) -> torch.Tensor:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:num_rows]]
    rows = torch.full((len(lines), TOKENS), model.eos_id)
    for i, line in enumerate(lines):
        ids = model.vocabulary.encode(f"{line['instruction']}\n{line['input']}\n{line['output']}")[-TOKENS:]
        rows[i, : len(ids)] = torch.tensor(ids)
    return rows


def packet_line(label: str, changes: Sequence[Adapter]) -> dict:
    """Bytes a parameter; relative error of the first packet, and of the sum with and without feedback."""
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
