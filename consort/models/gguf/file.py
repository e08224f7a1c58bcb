"""What a GGUF file says of itself: the key-value header of llama.cpp's format, versions 2 and 3.

Source: llama.cpp's docs `ggml/docs/gguf.md`. Read here because the `gguf` package takes seconds for a large
vocabulary, and llama.cpp gives out no lists. Reads no tensors, and big-endian files not at all.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any, TypeAlias

from consort.errors import ModelError

Metadata: TypeAlias = dict[str, Any]  # strings, numbers, and lists of either, by key

SUFFIX = ".gguf"
_HINT = "copy or download it again, or export the model anew"
_VERSIONS = (2, 3)
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def is_gguf(model: str) -> bool:
    """Whether a model is named by its GGUF file."""
    return model.lower().endswith(SUFFIX)


def read_metadata(file: Path) -> Metadata:
    """All keys of the header; ModelError where this is no GGUF file or a broken one."""
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read_header(data)
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}"
        raise ModelError(what, where=str(file), hint="name a GGUF file that is there") from error
    except (struct.error, ValueError, KeyError, OverflowError, MemoryError) as error:
        raise ModelError(f"this is no whole GGUF file: {error}", where=str(file), hint=_HINT) from error


def _read_header(data: mmap.mmap) -> Metadata:
    magic, version, _, count = struct.unpack_from("<4sIQQ", data)
    if magic != b"GGUF" or version not in _VERSIONS:
        raise ValueError(f"it begins with {magic!r} and version {version}")
    place = struct.calcsize("<4sIQQ")
    found: Metadata = {}
    for _ in range(count):
        key, place = _string(data, place)
        (kind,) = struct.unpack_from("<I", data, place)
        found[key], place = _value(data, place + 4, kind)
    return found


def _value(data: mmap.mmap, place: int, kind: int) -> tuple[Any, int]:
    """A value of one of GGUF's types, and where the next one begins."""
    if kind == _STRING:
        return _string(data, place)
    if kind != _ARRAY:
        form = f"<{_NUMBERS[kind]}"
        return struct.unpack_from(form, data, place)[0], place + struct.calcsize(form)
    inner, count = struct.unpack_from("<IQ", data, place)
    place += struct.calcsize("<IQ")
    if inner in _NUMBERS:
        form = f"<{count}{_NUMBERS[inner]}"
        return list(struct.unpack_from(form, data, place)), place + struct.calcsize(form)
    if inner != _STRING:
        raise ValueError(f"a list of type {inner} is not known here")
    texts = []
    for _ in range(count):
        text, place = _string(data, place)
        texts.append(text)
    return texts, place


def _string(data: mmap.mmap, place: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, place)
    begin, end = place + 8, place + 8 + length
    if end > len(data):
        raise ValueError("it ends in the middle of its header")
    return data[begin:end].decode("utf-8"), end
