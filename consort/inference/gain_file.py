"""A learned scorer on disk: one safetensors file, arrays beside a line of JSON. Never pickle: reading a file
runs nothing that the file says."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from consort.errors import ModelError
from consort.files import whole_file
from consort.inference.calibration import Calibration
from consort.inference.evidence import FEATURES, Group
from consort.inference.gain_model import FeaturePart, GainModel, TextPart
from consort.inference.ngrams import NUM_BUCKETS

FORMAT = "consort.gain/1"
_NUMBERS = ("mean_gain", "slope", "offset", "num_examples", "penalty")


@dataclass(frozen=True, slots=True)
class StoredScorer:
    """A scorer, the threshold that keeps its goals (None: none was asked for), and the scorer's values on the
    outcomes it was calibrated on, for `drift`."""

    model: GainModel
    calibration: Calibration | None = None
    scores: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))


def save_scorer(stored: StoredScorer, path: Path) -> None:
    """Write the whole file or nothing."""
    from safetensors.numpy import save

    model = stored.model
    arrays: dict[str, NDArray[Any]] = {"quantiles": model.quantiles, "scores": stored.scores}
    for name, text in model.texts.items():
        # most buckets are empty: only those that an example had are stored
        used = np.flatnonzero(text.rarity)
        arrays[f"text.{name}.buckets"] = used.astype(np.int32)
        arrays[f"text.{name}.rarity"] = text.rarity[used]
        arrays[f"text.{name}.weight"] = text.weight[used]
    for group, part in model.parts.items():
        arrays[f"part.{group}.mean"] = part.mean
        arrays[f"part.{group}.spread"] = part.spread
        arrays[f"part.{group}.examples"] = part.examples.astype(np.float32)
        arrays[f"part.{group}.coefficients"] = part.coefficients
    about = {name: getattr(model, name) for name in ("small", "large", "groups", *_NUMBERS)}
    about |= {"texts": list(model.texts), "features": {group: FEATURES[group] for group in model.groups}}
    about["calibration"] = dataclasses.asdict(stored.calibration) if stored.calibration else None
    with whole_file(path) as file:
        file.write(save(arrays, metadata={"format": FORMAT, "about": json.dumps(about)}))


def load_scorer(path: Path) -> StoredScorer:
    """Read a scorer; one of another version or with features unknown here is refused."""
    from safetensors import SafetensorError, safe_open

    hint = "write it anew with `consort calibrate`"
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ModelError("this file holds no scorer of this version", where=str(path), hint=hint)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        about = json.loads(metadata["about"])
        return StoredScorer(_model(about, arrays), _calibration(about["calibration"]), arrays["scores"])
    except FileNotFoundError:
        raise ModelError("there is no such scorer", where=str(path), hint=hint) from None
    except (SafetensorError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ModelError(f"the scorer is damaged: {error}", where=str(path), hint=hint) from error


def _calibration(about: dict[str, Any] | None) -> Calibration | None:
    return Calibration(**about | {"goals": tuple(about["goals"])}) if about else None


def _model(about: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> GainModel:
    groups: list[Group] = [group for group in get_args(Group) if group in about["groups"]]
    for group in groups:
        if tuple(about["features"][group]) != FEATURES[group]:
            raise ValueError(f"it was learned with other {group} features")
    texts = {}
    for name in about["texts"]:
        buckets = arrays[f"text.{name}.buckets"]
        rarity, weight = np.zeros(NUM_BUCKETS, np.float32), np.zeros(NUM_BUCKETS, np.float32)
        rarity[buckets], weight[buckets] = arrays[f"text.{name}.rarity"], arrays[f"text.{name}.weight"]
        texts[name] = TextPart(rarity, weight)
    parts = {
        group: FeaturePart(
            arrays[f"part.{group}.mean"],
            arrays[f"part.{group}.spread"],
            arrays[f"part.{group}.examples"].astype(np.float64),
            arrays[f"part.{group}.coefficients"],
        )
        for group in groups
    }
    numbers = {name: about[name] for name in _NUMBERS}
    return GainModel(
        small=about["small"],
        large=about["large"],
        groups=tuple(groups),
        texts=texts,
        parts=parts,
        quantiles=arrays["quantiles"],
        **numbers,
    )
