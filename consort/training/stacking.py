"""Several LoRAs of one model as a single one, exactly: updates that add up are one update of the sum of their
ranks. So the proxy's travelling and private adapters can be served as one PEFT directory. Does not merge into
weights (`peft_directory.merge_adapters` does)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from consort.models.local import LocalModel
from consort.training.adapters import (
    add_lora,
    lora_parameters,
    read_adapter,
    use_adapters,
    write_parameters,
)
from consort.types import FloatArray


def stack_adapters(model: LocalModel, names: Sequence[str], *, into: str) -> None:
    """Put a LoRA `into` on the model that computes what `names` compute together, and use it in their place.
    All must be on the same layers."""
    parts = [read_adapter(model, name) for name in names]
    stacked: dict[str, FloatArray] = {}
    for key in parts[0].tensors:
        below = key.endswith("lora_A")
        factors = [part.tensors[key] * (1.0 if below else part.scaling) for part in parts]
        stacked[key] = np.concatenate(factors, axis=0 if below else 1)
    rank = next(value.shape[0] for key, value in stacked.items() if key.endswith("lora_A"))
    layers = {key.rsplit(".", 2)[-2] for key in stacked}
    add_lora(model, into, rank=rank, alpha=float(rank), targets=",".join(sorted(layers)), seed=0)
    write_parameters(lora_parameters(model, into), stacked, where=model.name)
    use_adapters(model, [into])
