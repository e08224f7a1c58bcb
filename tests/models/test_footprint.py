"""A model's size and needs are read from its files, without loading a weight."""

from __future__ import annotations

from pathlib import Path

import pytest

from consort.errors import ModelError
from consort.models.footprint import (
    FLOAT32_BYTES,
    LEARNED_BYTES,
    Footprint,
    lora_parameters,
    read_model_files,
    tuning_footprint,
)
from tests.tiny_consort import write_model


def footprint(folder: Path, *, full: bool = True, batch_rows: int = 2, max_tokens: int = 32) -> Footprint:
    files = read_model_files(str(folder))
    return tuning_footprint(
        files, full=full, rank=4, targets="all-linear", batch_rows=batch_rows, max_tokens=max_tokens
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path / "model", vocabulary=280)
    return tmp_path / "model"


def test_parameters_are_counted_from_the_headers(folder: Path) -> None:
    assert read_model_files(str(folder)).parameters == 280 * 8 + 2 * 2 * 32 * 8


def test_lora_is_counted_as_peft_makes_it(folder: Path) -> None:
    shapes = read_model_files(str(folder)).shapes
    assert lora_parameters(shapes, rank=4, targets="all-linear") == 4 * 4 * (32 + 8)
    assert lora_parameters(shapes, rank=4, targets="up_proj, nothing") == 2 * 4 * (32 + 8)


def test_what_learns_is_held_four_times_and_what_is_frozen_once(folder: Path) -> None:
    parameters = read_model_files(str(folder)).parameters
    assert footprint(folder).learned_bytes == parameters * LEARNED_BYTES
    assert footprint(folder).frozen_bytes == 0
    assert footprint(folder, full=False).frozen_bytes == parameters * FLOAT32_BYTES


def test_activations_grow_with_rows_and_tokens_up_to_the_context(folder: Path) -> None:
    one = footprint(folder).activation_bytes
    assert footprint(folder, batch_rows=4).activation_bytes == 2 * one
    assert footprint(folder, max_tokens=64).activation_bytes == 2 * one
    assert footprint(folder, max_tokens=640).activation_bytes == 2 * one


@pytest.mark.parametrize(
    "content", [b"", b"\x10", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"[", b"\x02" + b"\0" * 7 + b"[]"]
)
def test_damaged_weights_are_one_clear_error(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="not a safetensors file, or cut short"):
        read_model_files(str(folder))
