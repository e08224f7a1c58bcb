"""llama.cpp's library and what it has loaded: the only file that imports llama_cpp, when a file is opened."""

from __future__ import annotations

import ctypes
import weakref
from collections import deque
from functools import lru_cache
from pathlib import Path
from typing import Any

from consort.errors import MissingExtraError, ModelError

INSTALL = "pip install 'consort-lm[gguf]' (builds from source: a C++ compiler, 5 to 30 minutes)"
ERROR = 4  # ggml's log level
_complaints: deque[str] = deque(maxlen=8)  # what llama.cpp wrote as errors of late


class Weights:
    """llama.cpp's pointers to a loaded file, freed with the last who holds them."""

    def __init__(self, file: Path, *, gpu: bool) -> None:
        self.cpp = llama_cpp_library()
        params = self.cpp.llama_model_default_params()
        params.n_gpu_layers = -1 if gpu else 0
        self.model = self.cpp.llama_model_load_from_file(str(file).encode(), params)
        if not self.model:
            hint = "copy or download it again; a newer architecture needs a newer llama-cpp-python"
            raise ModelError(f"llama.cpp cannot load it: {complaint()}", where=str(file), hint=hint)
        self.words = self.cpp.llama_model_get_vocab(self.model)
        self.rows = int(self.cpp.llama_vocab_n_tokens(self.words))
        freeing = weakref.finalize(self, self.cpp.llama_model_free, self.model)
        freeing.atexit = False  # a thread may still compute, and the memory goes with the process

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Ids as llama.cpp cuts the text."""
        raw = text.encode()
        room = len(raw) + 8  # mostly enough; a negative count says how many there are
        while True:
            ids = (ctypes.c_int32 * room)()
            count = self.cpp.llama_tokenize(self.words, raw, len(raw), ids, room, add_special, parse_special)
            if count >= 0:
                return list(ids[:count])
            room = -count


@lru_cache(maxsize=1)
def llama_cpp_library() -> Any:
    """llama_cpp, whose errors are kept for ours and whose other words are dropped."""
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:  # not there, or its library does not load
        raise MissingExtraError(
            f"GGUF files need llama-cpp-python, which cannot be imported: {error}",
            hint=INSTALL,
        ) from error
    llama_cpp.llama_log_set(_listener(llama_cpp), ctypes.c_void_p(0))
    return llama_cpp


@lru_cache(maxsize=1)
def _listener(cpp: Any) -> Any:
    """Kept alive by the cache: llama.cpp calls it as long as the process lives."""

    def listen(level: int, text: bytes, _: object) -> None:
        if level == ERROR:
            _complaints.append(text.decode(errors="replace").strip())

    return cpp.llama_log_callback(listen)


def complaint() -> str:
    """What llama.cpp said last, once."""
    said = "; ".join(_complaints) or "it does not say why"
    _complaints.clear()
    return said
