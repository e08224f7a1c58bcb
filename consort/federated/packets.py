"""What travels between cloud and devices: adapters in 8 bits, and what a teacher knows about some texts.

An adapter is quantised symmetrically in blocks along its long axis; what rounding left out is handed back as
a residual and sent with the next change (error feedback, Seide et al., Interspeech 2014). Knowledge is each
row's nucleus: the most likely tokens up to a probability mass, their log-probabilities in steps of
`step_nats`, ids as gaps. Never pickle; every number of a packet is checked before it is used, for the sender
may be anyone. Does not encrypt, authenticate or anonymise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from consort.align import SparseRows
from consort.errors import PacketError, UpdateError
from consort.federated.frames import MAX_BYTES, Frame, seal, unseal
from consort.federated.quantise import BLOCK, dequantise, from_blocks, num_blocks, quantise, to_blocks
from consort.types import Adapter

if TYPE_CHECKING:
    from consort.types import FloatArray

ADAPTER, KNOWLEDGE = 1, 2  # packet kinds
MIN_STEP = 0.05  # nats
Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]


# ---- adapters


def encode_adapter(
    adapter: Adapter,
    *,
    bits: Literal[8, 32],
    residual: Adapter | None = None,
) -> tuple[bytes, Adapter | None]:
    """Pack an adapter, or a change of one, plus the `residual` of the last packet.

    Returns the packet and the new residual; 32 bits are exact and leave none. Raises UpdateError if a number
    is not finite.
    """
    tensors: dict[str, FloatArray] = {n: np.asarray(t, np.float32) for n, t in adapter.tensors.items()}
    if residual is not None:
        if {n: t.shape for n, t in residual.tensors.items()} != {n: t.shape for n, t in tensors.items()}:
            raise UpdateError("the residual has other tensors than the adapter", hint="Start without one.")
        tensors = {name: tensor + residual.tensors[name] for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise UpdateError("the adapter holds numbers that are not finite", where=name)
    shapes = [(name, list(tensor.shape)) for name, tensor in tensors.items()]
    header = {"base": adapter.base_sha256, "scaling": float(adapter.scaling), "bits": bits, "tensors": shapes}
    blocks = np.concatenate([np.zeros((0, BLOCK), np.float32), *map(to_blocks, tensors.values())])
    if bits == 32:
        return seal(ADAPTER, header, [blocks.astype("<f4").tobytes()]), None
    codes, scales = quantise(blocks)
    sent = _tensors(shapes, dequantise(codes, scales))
    rest = {name: tensor - sent[name] for name, tensor in tensors.items()}
    packet = seal(ADAPTER, header, [scales.astype("<u2").tobytes(), codes.tobytes()])
    return packet, Adapter(rest, scaling=adapter.scaling, base_sha256=adapter.base_sha256)


def decode_adapter(packet: bytes, *, base_sha256: str | None = None, max_bytes: int = MAX_BYTES) -> Adapter:
    """The adapter in a packet; raises PacketError if it is damaged, or of another base (None: any)."""
    frame = unseal(packet, kind=ADAPTER, max_bytes=max_bytes)
    header = frame.header
    base, scaling, shapes = header.get("base"), header.get("scaling"), _shapes(header.get("tensors"))
    if not isinstance(base, str) or (base_sha256 is not None and base != base_sha256):
        raise PacketError(
            f"the adapter belongs to base {str(base)[:12]}, here is {str(base_sha256)[:12]}",
            hint="Use the same proxy on both sides.",
        )
    if not isinstance(scaling, float) or not math.isfinite(scaling):
        raise PacketError("the adapter's scaling is no number")
    total = sum(num_blocks(math.prod(shape)) for _, shape in shapes)
    if header.get("bits") == 32:
        (values,) = _sized(frame, [4 * BLOCK * total])
        blocks = np.frombuffer(values, "<f4").astype(np.float32).reshape(-1, BLOCK)
    elif header.get("bits") == 8:
        scales, codes = _sized(frame, [2 * total, BLOCK * total])
        blocks = dequantise(np.frombuffer(codes, np.int8).reshape(-1, BLOCK), np.frombuffer(scales, "<u2"))
    else:
        raise PacketError("the adapter has an unknown number of bits")
    if not np.isfinite(blocks).all():
        raise PacketError("the adapter holds numbers that are not finite")
    return Adapter(_tensors(shapes, blocks), scaling=scaling, base_sha256=base)


def _tensors(shapes: list[tuple[str, list[int]]], blocks: NDArray[np.float32]) -> dict[str, FloatArray]:
    tensors: dict[str, FloatArray] = {}
    start = 0
    for name, shape in shapes:
        end = start + num_blocks(math.prod(shape))
        tensors[name] = from_blocks(blocks[start:end], tuple(shape))
        start = end
    return tensors


def _shapes(tensors: object) -> list[tuple[str, list[int]]]:
    """The header's list of tensors, checked."""
    if not isinstance(tensors, list):
        raise PacketError("the adapter does not list its tensors")
    shapes: dict[str, list[int]] = {}
    for entry in tensors:
        match entry:
            case [str(name), list(shape)] if (
                name not in shapes and len(shape) <= 8 and all(_is_size(d) and d for d in shape)
            ):
                shapes[name] = shape
            case _:
                raise PacketError("the adapter lists a tensor that cannot be")
    return list(shapes.items())


# ---- knowledge


def encode_knowledge(
    texts: Mapping[str, SparseRows],
    *,
    tokenizer_sha256: str,
    mass: float = 0.97,
    top_k: int = 128,
    step_nats: float = 0.1,
) -> bytes:
    """Pack a teacher's next-token distributions of some texts, each under a key both sides know.

    A row keeps its most likely tokens up to probability `mass` and at most `top_k` (1..255) of them, each
    within `step_nats` / 2 (0.05 to 1) of its log-probability; the rest is one number. A row without tokens
    reads as one without a teacher. Raises PacketError if a row is no distribution.
    """
    assert 1 <= top_k <= 255
    assert MIN_STEP <= step_nats <= 1
    least = math.exp(-255 * step_nats)  # the largest code; below 3e-6 at any step
    kept = [_nucleus(key, rows, mass=mass, top_k=top_k, least=least) for key, rows in texts.items()]
    counts, ids, probs, rest = (
        np.concatenate([np.zeros(0), *(text[part] for text in kept)]) for part in range(4)
    )
    first = np.zeros(len(ids), bool)
    first[(np.cumsum(counts) - counts)[counts > 0].astype(np.int64)] = True
    gaps = (ids - np.where(first, 0, np.roll(ids, 1) + 1)).astype(np.int64)
    if (gaps < 0).any() or (gaps >= 1 << 24).any():
        raise PacketError("a row of the teacher names a token twice, or one that cannot be")
    header = {
        "tokenizer": tokenizer_sha256,
        "step": float(step_nats),
        "texts": [[key, len(rows.ids)] for key, rows in texts.items()],
    }
    planes = gaps & 255, gaps >> 8 & 255, gaps >> 16
    streams = counts, _log_codes(rest, step_nats), _log_codes(probs, step_nats), *planes
    return seal(KNOWLEDGE, header, [stream.astype(np.uint8).tobytes() for stream in streams])


def decode_knowledge(
    packet: bytes, *, tokenizer_sha256: str, vocabulary_size: int, max_bytes: int = MAX_BYTES
) -> dict[str, SparseRows]:
    """The distributions in a packet, ids of a row ascending.

    Raises PacketError if the packet is damaged, malformed, made with another tokenizer, or fills over
    `max_bytes`.
    """
    frame = unseal(packet, kind=KNOWLEDGE, max_bytes=max_bytes)
    if frame.header.get("tokenizer") != tokenizer_sha256:
        raise PacketError(
            f"made with tokenizer {str(frame.header.get('tokenizer'))[:12]}, here is {tokenizer_sha256[:12]}",
            hint="Teacher and reader of a packet share one tokenizer: use the same proxy on both sides.",
        )
    step, lengths = frame.header.get("step"), _lengths(frame.header.get("texts"))
    if not isinstance(step, float) or not MIN_STEP <= step <= 1:
        raise PacketError("the packet's step of log-probability is out of range")
    num_rows = sum(lengths.values())
    num_kept = sum(frame.sections[0]) if frame.sections else 0
    sections = _sized(frame, [num_rows, num_rows, *[num_kept] * 4])
    counts, rest_codes, codes, *planes = (
        np.frombuffer(section, np.uint8).astype(np.int64) for section in sections
    )
    width = max(1, int(counts.max(initial=0)))
    if 8 * width * num_rows > max_bytes:
        raise PacketError(
            f"the packet's rows fill more than {max_bytes} bytes", hint="Send fewer texts a packet."
        )
    # 1) ids from gaps, which start again at every row
    starts = np.cumsum(counts) - counts
    row = np.repeat(np.arange(num_rows), counts)
    steps = np.cumsum(planes[0] + (planes[1] << 8) + (planes[2] << 16) + 1)
    ids = steps - np.concatenate([[0], steps])[starts][row] - 1
    if ids.max(initial=0) >= vocabulary_size:
        raise PacketError(f"the packet names token {ids.max()} of a vocabulary of {vocabulary_size}")
    # 2) probabilities; what rounding did to their sum is shared out in proportion
    probs, rest = np.exp(-step * codes), np.exp(-step * rest_codes)
    totals = rest + np.bincount(row, weights=probs, minlength=num_rows)
    slot = np.arange(num_kept) - starts[row]
    ids_RK, probs_RK = np.zeros((num_rows, width), np.int32), np.zeros((num_rows, width), np.float32)
    ids_RK[row, slot], probs_RK[row, slot] = ids, probs / totals[row]
    all_rows = SparseRows(ids_RK, probs_RK, (rest / totals).astype(np.float32), counts > 0)
    return _by_text(all_rows, counts, lengths)


def _nucleus(
    key: str, rows: SparseRows, *, mass: float, top_k: int, least: float
) -> tuple[Ints, Ints, Floats, Floats]:
    """How many tokens each row keeps, their ids ascending and probabilities, and each row's rest."""
    probs_RK = rows.probs.astype(np.float64)
    if not (probs_RK >= 0).all() or (probs_RK.sum(axis=1) > 1.001).any():  # a NaN is not >= 0
        raise PacketError("a row of the teacher is no distribution", where=key)
    order = np.lexsort((rows.ids, -probs_RK), axis=1)
    probs_RK = np.take_along_axis(probs_RK, order, axis=1)
    before_RK = np.cumsum(probs_RK, axis=1) - probs_RK
    keep_RK = (before_RK < mass) & (probs_RK >= least) & rows.mask[:, None]
    keep_RK[:, top_k:] = False
    rest = 1 - np.sum(probs_RK * keep_RK, axis=1)
    unused = np.iinfo(np.int64).max
    ids_RK = np.where(keep_RK, np.take_along_axis(rows.ids.astype(np.int64), order, axis=1), unused)
    ascending = np.argsort(ids_RK, axis=1)
    ids_RK, probs_RK = (
        np.take_along_axis(ids_RK, ascending, axis=1),
        np.take_along_axis(probs_RK, ascending, axis=1),
    )
    kept = ids_RK != unused
    return keep_RK.sum(axis=1), ids_RK[kept], probs_RK[kept], np.clip(rest, 0, 1)


def _log_codes(probs: Floats, step_nats: float) -> Floats:
    return np.minimum(np.rint(-np.log(np.maximum(probs, 1e-300)) / step_nats), 255)


def _by_text(rows: SparseRows, counts: Ints, lengths: Mapping[str, int]) -> dict[str, SparseRows]:
    texts: dict[str, SparseRows] = {}
    start = 0
    for key, length in lengths.items():
        part = slice(start, start + length)
        width = max(1, int(counts[part].max(initial=0)))
        texts[key] = SparseRows(
            rows.ids[part, :width], rows.probs[part, :width], rows.rest[part], rows.mask[part]
        )
        start += length
    return texts


def _lengths(texts: object) -> dict[str, int]:
    """The header's list of texts, checked: rows by key."""
    if not isinstance(texts, list):
        raise PacketError("the packet does not list its texts")
    lengths: dict[str, int] = {}
    for entry in texts:
        match entry:
            case [str(key), length] if key not in lengths and _is_size(length):
                lengths[key] = length
            case _:
                raise PacketError("the packet lists a text that cannot be")
    return lengths


def _is_size(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 1 << 31


def _sized(frame: Frame, sizes: list[int]) -> tuple[bytes, ...]:
    """The frame's sections, if they have the sizes that its header implies."""
    if [len(section) for section in frame.sections] != sizes:
        raise PacketError("the packet's sections have other sizes than its header says")
    return frame.sections
