"""A learned token scorer on disk: one safetensors file, arrays beside a line of JSON. Never pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consort.align import Vocabulary
from consort.errors import ModelError
from consort.files import whole_file
from consort.inference.ngrams import NUM_BUCKETS
from consort.inference.token_model import TokenNeed, Trees
from consort.inference.token_need import FEATURES
from consort.inference.token_states import StateGain

FORMAT = "consort.token-need/1"
_TREE_ARRAYS = ("feature", "threshold", "left", "right", "value")
_HINT = "learn it anew (inference.token_fit)"


def save_token_need(model: TokenNeed, path: Path) -> None:
    """Write the whole file or nothing."""
    from safetensors.numpy import save

    used = np.flatnonzero(model.words)
    arrays: dict[str, NDArray[Any]] = {f"trees.{name}": getattr(model.trees, name) for name in _TREE_ARRAYS}
    arrays |= {"words.buckets": used.astype(np.int32), "words.gains": model.words[used], "needs": model.needs}
    arrays["tokens"] = np.array(sorted(model.occurrences), np.int32)
    arrays["occurrences"] = np.array(
        [model.occurrences[token] for token in sorted(model.occurrences)], np.int32
    )
    about = {
        "vocabulary_sha256": model.vocabulary_sha256,
        "features": FEATURES,
        "base": model.trees.base,
        "depth": model.trees.depth,
        "mean_gain": model.mean_gain,
        "num_tokens": model.num_tokens,
    }
    if model.states is not None:
        arrays |= {"states.mean": model.states.mean, "states.direction": model.states.direction}
        about["states"] = {
            "sha256": model.states.sha256,
            "mean_gain": model.states.mean_gain,
            "components": model.states.components,
        }
    with whole_file(path) as file:
        file.write(save(arrays, metadata={"format": FORMAT, "about": json.dumps(about)}))


def load_token_need(path: Path, vocabulary: Vocabulary, *, states_sha256: str = "") -> TokenNeed:
    """Read a scorer for a small model whose sessions show the hidden states of these weights, or none.
    ModelError for one of another version, or learned with another small model's tokens or states."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ModelError(
                    "this file holds no token scorer of this version", where=str(path), hint=_HINT
                )
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        about = json.loads(metadata["about"])
        if tuple(about["features"]) != FEATURES:
            raise ValueError("it was learned with other features")
        model = _model(about, arrays)
    except FileNotFoundError:
        raise ModelError("there is no such token scorer", where=str(path), hint=_HINT) from None
    except (SafetensorError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ModelError(f"the token scorer is damaged: {error}", where=str(path), hint=_HINT) from error
    if model.vocabulary_sha256 != vocabulary.sha256:
        raise ModelError("this token scorer was learned with another tokenizer", where=str(path), hint=_HINT)
    if model.states is not None and not states_sha256:
        raise ModelError(
            "this token scorer reads hidden states, and the edge's model shows none",
            where=str(path),
            hint="serve the transformers model that it was learned with, or a scorer learned without states",
        )
    if model.states is not None and model.states.sha256 != states_sha256:
        raise ModelError(
            f"this token scorer reads the hidden states of weights {model.states.sha256[:12]}, "
            f"and the edge's are {states_sha256[:12]}",
            where=str(path),
            hint="learn it anew with the model that is served (inference.token_fit)",
        )
    return model


def _model(about: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> TokenNeed:
    words = np.zeros(NUM_BUCKETS)
    words[arrays["words.buckets"]] = arrays["words.gains"]
    columns = {name: arrays[f"trees.{name}"] for name in _TREE_ARRAYS}
    nodes = columns["value"].shape[1]
    if any(np.any((columns[name] < 0) | (columns[name] >= nodes)) for name in ("left", "right")):
        raise ValueError("a branch leads nowhere")
    states = _states(about.get("states"), arrays)
    if np.any((columns["feature"] < 0) | (columns["feature"] >= len(FEATURES) + 2 + (states is not None))):
        raise ValueError("a branch asks for a feature that is not there")
    return TokenNeed(
        vocabulary_sha256=about["vocabulary_sha256"],
        trees=Trees(**columns, base=float(about["base"]), depth=int(about["depth"])),
        occurrences=dict(zip(arrays["tokens"].tolist(), arrays["occurrences"].tolist(), strict=True)),
        words=words,
        mean_gain=float(about["mean_gain"]),
        needs=arrays["needs"],
        num_tokens=int(about["num_tokens"]),
        states=states,
    )


def _states(about: dict[str, Any] | None, arrays: dict[str, NDArray[Any]]) -> StateGain | None:
    if about is None:
        return None
    mean, direction = arrays["states.mean"], arrays["states.direction"]
    if mean.shape != direction.shape:
        raise ValueError("its states have two widths")
    return StateGain(
        str(about["sha256"]), mean, direction, float(about["mean_gain"]), int(about["components"])
    )
