"""Numbers in 8 bits: symmetric codes in blocks of 64, one bfloat16 scale a block (1.03 bytes a number).

Blocks along a tensor's long axis, for the numbers of one row of A or one column of B are of one size.
Rounds to nearest; what rounding leaves out is the caller's (error feedback in `packets`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from consort.types import FloatArray

BLOCK = 64  # numbers that share a scale


_SMALLEST = np.uint16(0x0080)  # the smallest normal number, 1.2e-38


def quantise(blocks: FloatArray) -> tuple[NDArray[np.int8], NDArray[np.uint16]]:
    """Codes of -127..127 [N, BLOCK] and scales [N], rounded up so that no code leaves its range."""
    largest = np.abs(blocks).max(axis=1) / np.float32(127)
    scales = ((largest.view(np.uint32) + np.uint32(0xFFFF)) >> 16).astype(np.uint16)
    scales = np.maximum(scales, _SMALLEST)  # a scale below it would lose its digits, and 0 divides nothing
    return np.clip(np.rint(blocks / _as_float(scales)[:, None]), -127, 127).astype(np.int8), scales


def dequantise(codes: NDArray[np.int8], scales: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Numbers of codes and scales; not finite where the scales of a hostile packet are not."""
    with np.errstate(over="ignore", invalid="ignore"):
        return codes * _as_float(scales)[:, None]


def to_blocks(tensor: FloatArray) -> FloatArray:
    """The numbers [N, BLOCK] of a tensor along its longer axis, zeros at the end."""
    flat = (tensor.T if _is_tall(tensor.shape) else tensor).ravel()
    return np.concatenate([flat, np.zeros(-flat.size % BLOCK, flat.dtype)]).reshape(-1, BLOCK)


def from_blocks(blocks: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    """The tensor that `to_blocks` was given."""
    flat = blocks.ravel()[: int(np.prod(shape))]
    return flat.reshape(shape[::-1]).T.copy() if _is_tall(shape) else flat.reshape(shape)


def num_blocks(size: int) -> int:
    """Blocks that `size` numbers fill."""
    return -(-size // BLOCK)


def _is_tall(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and shape[0] > shape[1]


def _as_float(scales: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (scales.astype(np.uint32) << 16).view(np.float32)
