"""Without llama.cpp, a GGUF file is one clear error, and nothing else asks for it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from consort.errors import MissingExtraError
from consort.models.gguf import library
from consort.models.gguf.model import load_gguf
from consort.training.export import write_gguf
from tests.tiny_models import CPU, tiny

pytest.importorskip("gguf", reason="the gguf package writes GGUF: pip install gguf")


def test_a_missing_extra_is_named_with_the_command_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(tiny(), file, precision="float32")
    monkeypatch.setitem(sys.modules, "llama_cpp", None)  # as where it is not installed
    library.llama_cpp_library.cache_clear()
    with pytest.raises(MissingExtraError, match=r"pip install 'consort-lm\[gguf\]'"):
        load_gguf(file, runtime=CPU)
