"""A GGUF header is read as it was written, and anything broken is one clear error."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consort.errors import ModelError
from consort.models.gguf.file import is_gguf, read_metadata

gguf = pytest.importorskip("gguf", reason="the gguf package writes GGUF: pip install gguf")

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gguf")


def write(file: Path, **values: Any) -> Path:
    writer = gguf.GGUFWriter(file, "llama")
    for name, value in values.items():
        add = {bool: writer.add_bool, int: writer.add_int64, float: writer.add_float64,
               str: writer.add_string, list: writer.add_array}[type(value)]  # fmt: skip
        add(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@given(
    text=TEXT.filter(bool),
    texts=st.lists(TEXT, min_size=1, max_size=4),
    number=st.integers(-(2**63), 2**63 - 1),
    numbers=st.lists(st.integers(-9, 9), min_size=1, max_size=4),
    real=st.floats(allow_nan=False),
    flag=st.booleans(),
)
def test_what_was_written_is_read(folder: Path, **values: Any) -> None:
    found = read_metadata(write(folder / "m.gguf", **values))
    assert found.pop("general.architecture") == "llama"
    assert found == values


def test_a_file_cut_off_anywhere_in_its_header_is_refused(folder: Path) -> None:
    whole = (
        write(folder / "whole.gguf", text="some", numbers=[1, 2], texts=["a", "b"]).read_bytes().rstrip(b"\0")
    )
    cut = folder / "cut.gguf"
    for length in range(len(whole) - 1):
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelError, match="no whole GGUF file"):
            read_metadata(cut)


@given(damage=st.binary(min_size=1, max_size=12), place=st.integers(0, 100))
def test_a_damaged_file_is_read_or_refused_and_nothing_else(folder: Path, damage: bytes, place: int) -> None:
    file = folder / "damaged.gguf"
    whole = bytearray(write(file, text="some", numbers=[1, 2], texts=["a", "b"]).read_bytes())
    whole[place : place + len(damage)] = damage
    file.write_bytes(whole)
    with contextlib.suppress(ModelError):
        read_metadata(file)


def test_what_is_no_file_or_another_kind_of_file_is_said(folder: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        read_metadata(folder / "nowhere.gguf")
    with pytest.raises(ModelError, match="cannot be read"):
        read_metadata(folder)
    other = folder / "other.gguf"
    other.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(ModelError, match="begins with"):
        read_metadata(other)
    assert [is_gguf(name) for name in ("a/b.gguf", "B.GGUF", "zoo:cloud", "gguf")] == [
        True,
        True,
        False,
        False,
    ]
