"""What a run reads beside its configuration, as hashes by name: rows, chat templates, local models.

Kept in the run's journal, so that a resumed run can say which of them is no longer what it was. A model from
the Hub is known by its id alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from consort.bench.assemble import RunData
from consort.config import Config
from consort.models.zoo import located
from consort.training.data import Sample

_SMALL = ("*.json", "*.jinja")  # configuration, tokenizer, template: read whole
_WHOLE_BYTES = 1 << 26  # weights up to 64 MiB are read whole; of larger files this much, at even distances
_PIECES = 64


def input_hashes(config: Config, data: RunData) -> dict[str, str]:
    """A short hash of every input, by what a person calls it."""
    found = {
        f"public training rows ({config.public})": _rows(data.public_train),
        f"public test rows ({config.public})": _rows(data.public_test),
    }
    models = [("cloud", config.cloud.model, config.cloud.chat_template), ("proxy", config.proxy.model, "")]
    for device in config.devices:
        rows = data.devices[device.name]
        for kind, samples in (("training", rows.train), ("test", rows.test)):
            found[f"{device.name}'s {kind} rows ({device.data})"] = _rows(samples)
        found[f"{device.name}'s unlabelled rows ({device.unlabelled})"] = _rows(rows.unlabelled)
        models.append((device.name, device.slm.model, device.slm.chat_template))
    for owner, model, template in models:
        if template:
            found[f"{owner}'s chat template ({template})"] = _sha256(Path(template).read_bytes())
        if model and (folder := Path(located(model))).is_dir():
            found[f"{owner}'s model ({model})"] = _model(folder)
    return found


def _rows(samples: Sequence[Sample]) -> str:
    plain = [
        [
            sample.prompt
            if isinstance(sample.prompt, str)
            else [[turn.role, turn.content] for turn in sample.prompt],
            sample.answer,
        ]
        for sample in samples
    ]
    return _sha256(json.dumps(plain).encode())


def _model(folder: Path) -> str:
    parts = [[file.name, _sha256(file.read_bytes())] for kind in _SMALL for file in sorted(folder.glob(kind))]
    parts += [[file.name, _weights(file)] for file in sorted(folder.glob("*.safetensors"))]
    return _sha256(json.dumps(parts).encode())


def _weights(file: Path) -> str:
    """Of size and content; a larger file is sampled, for other training moves every weight."""
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as content:
        if size <= _WHOLE_BYTES:
            digest.update(content.read())
        else:
            piece = _WHOLE_BYTES // _PIECES
            for number in range(_PIECES):
                content.seek(number * (size - piece) // (_PIECES - 1))
                digest.update(content.read(piece))
    return digest.hexdigest()[:16]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
