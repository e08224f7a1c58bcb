"""llama.cpp's cache as slots that share passes, each slot one of its sequences.

Chooses no tokens, and reads no trees of drafts: for branches llama.cpp wants one cache shared by all texts.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consort.errors import ModelError
from consort.models.drafts import is_chain
from consort.models.gguf.library import Weights, complaint

PASS_TOKENS = 512  # that llama.cpp computes at once
PAGE_TOKENS = 256  # llama.cpp rounds a text's part of the cache up to whole ones


class LlamaNetwork:
    """llama.cpp's cache of `slots` texts (`decoding.batch.Network`); each is one of its sequences."""

    branches = False
    shows_states = False
    states: NDArray[np.float32] | None = None  # never

    def __init__(self, weights: Weights, *, slots: int, positions: int, threads: int, exact: bool) -> None:
        self.slots, self.positions = slots, positions
        self._weights, self._cpp = weights, weights.cpp
        self._sequences = list(range(slots))  # by slot
        self._held = [0] * slots  # tokens by sequence
        self._input = _Input(self._cpp)
        params = self._cpp.llama_context_default_params()
        params.n_ctx = slots * -(-positions // PAGE_TOKENS) * PAGE_TOKENS
        params.n_seq_max = slots
        params.n_batch = params.n_ubatch = PASS_TOKENS
        params.n_threads = params.n_threads_batch = threads
        if exact:  # llama.cpp's fused attention computes in float16: 0.01 of a logit on the bundled models
            params.type_k = params.type_v = self._cpp.GGML_TYPE_F32
            params.flash_attn_type = self._cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = self._cpp.llama_init_from_model(self._weights.model, params)
        if not self._context:
            raise ModelError(
                f"llama.cpp has no cache of {slots} texts of {positions} tokens: {complaint()}",
                hint="lower context_tokens or answers",
            )
        weakref.finalize(self, self._cpp.llama_free, self._context).atexit = False  # as in `Weights`
        self._memory = self._cpp.llama_get_memory(self._context)

    def read(
        self,
        rows: Sequence[Sequence[int]],
        *,
        slots: Sequence[int],
        starts: Sequence[int],
        every: bool,
        trees: Sequence[Sequence[int]] | None = None,
    ) -> NDArray[np.float32]:
        """As `batch.Network` says."""
        if trees is not None:
            assert all(map(is_chain, trees))
            starts = [
                start + len(tree) - len(row) for start, tree, row in zip(starts, trees, rows, strict=True)
            ]
        sequences = [self._sequences[slot] for slot in slots]
        for sequence, start, row in zip(sequences, starts, rows, strict=True):
            self._forget(sequence, start)
            self._held[sequence] = start + len(row)
        lengths = np.array([len(row) for row in rows])
        ends = lengths.cumsum()
        wanted = np.ones(ends[-1], np.int8) if every else np.zeros(ends[-1], np.int8)
        wanted[ends - 1] = 1
        tokens = np.concatenate([np.asarray(row, np.int32) for row in rows])
        positions = np.arange(ends[-1]) + np.repeat(np.asarray(starts) - ends + lengths, lengths)
        whose = np.repeat(np.asarray(sequences), lengths)
        logits = []
        for begin in range(0, len(tokens), PASS_TOKENS):
            part = slice(begin, begin + PASS_TOKENS)
            logits.append(self._pass(tokens[part], positions[part], whose[part], wanted[part]))
        return logits[0] if len(logits) == 1 else np.concatenate(logits)

    def swap(self, slot: int, other: int, num_tokens: int) -> None:
        """Exchange two slots: nothing moves."""
        texts = self._sequences
        texts[slot], texts[other] = texts[other], texts[slot]

    def keep(self, slot: int, start: int, nodes: Sequence[int]) -> None:
        """As `batch.Network` says: a chain lies where it belongs."""

    def _forget(self, sequence: int, start: int) -> None:
        """Drop what a sequence holds from `start` on: a text that left its slot, or tokens taken back."""
        if self._held[sequence] > start and not self._cpp.llama_memory_seq_rm(
            self._memory, sequence, start, -1
        ):
            raise ModelError(
                "this kind of model cannot take tokens back", hint="recurrent models hold no token apart"
            )

    def _pass(
        self, tokens: NDArray[Any], positions: NDArray[Any], whose: NDArray[Any], wanted: NDArray[Any]
    ) -> NDArray[np.float32]:
        """Logits [wanted tokens, V], a copy: llama.cpp uses the memory again."""
        code = self._cpp.llama_decode(self._context, self._input.filled(tokens, positions, whose, wanted))
        if code:
            raise ModelError(f"llama.cpp failed with code {code}: {complaint()}")
        count = int(np.count_nonzero(wanted))
        if not count:
            return np.empty((0, self._weights.rows), np.float32)
        logits: NDArray[np.float32] = np.ctypeslib.as_array(
            self._cpp.llama_get_logits(self._context), (count, self._weights.rows)
        )
        return logits.copy()


class _Input:
    """llama.cpp's batch over arrays of ours, filled anew for each pass."""

    def __init__(self, cpp: Any) -> None:
        numbers = ctypes.POINTER(ctypes.c_int32)
        self._tokens, self._positions, self._whose = (np.zeros(PASS_TOKENS, np.int32) for _ in range(3))
        self._ones = np.ones(PASS_TOKENS, np.int32)  # every token belongs to one sequence
        self._wanted = np.zeros(PASS_TOKENS, np.int8)
        first = self._whose.ctypes.data
        self._places = np.arange(first, first + 4 * PASS_TOKENS, 4, dtype=np.uint64)
        self._batch = cpp.llama_batch(
            0,
            self._tokens.ctypes.data_as(numbers),
            None,
            self._positions.ctypes.data_as(numbers),
            self._ones.ctypes.data_as(numbers),
            self._places.ctypes.data_as(ctypes.POINTER(numbers)),
            self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def filled(
        self, tokens: NDArray[Any], positions: NDArray[Any], whose: NDArray[Any], wanted: NDArray[Any]
    ) -> Any:
        """The batch of these tokens; valid until the next call."""
        self._batch.n_tokens = count = len(tokens)
        self._tokens[:count], self._positions[:count] = tokens, positions
        self._whose[:count], self._wanted[:count] = whose, wanted
        return self._batch
