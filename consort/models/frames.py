"""What travels between a drafter's device and its verifier: WebSocket messages of two msgpack objects.

The first is the number of a session on this connection, the second what is said: a map (open, opened, the
end, an error), bytes (a draft one way, an answer's tokens the other), or a number (a single token). Ids are
packed into as many bits as the vocabulary needs, a tree's parents into as many as there are nodes before:
about two bytes a token. Knows neither sockets nor models.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import msgpack
import numpy as np

from consort.errors import RequestError
from consort.models.drafts import MOST_NODES, is_chain
from consort.types import Draft, Message, Request, TopK

Payload: TypeAlias = "Mapping[str, Any] | bytes | int | None"

CONTROL = 0  # the session number of what concerns the connection: a number comes back as it is
MAX_BYTES = 4 << 20  # of a message
OTHER_TOKENIZER = "other_tokenizer"  # the error's code where a session is opened for one that is not served
MOST_IDS = 1 << 18  # of an answer that goes on
PARKED_S = 30.0  # a session without a connection is kept for so long
_BEGINS_BITS, _CHAIN_BITS = 8, 1


def pack(session: int, payload: Payload) -> bytes:
    """One message."""
    packer = msgpack.Packer(autoreset=False)
    packer.pack(session)
    packer.pack(payload)
    return bytes(packer.bytes())


def unpack(data: bytes) -> tuple[int, Payload]:
    """A message's two objects. RequestError for anything else."""
    try:
        unpacker = msgpack.Unpacker(max_buffer_size=MAX_BYTES, strict_map_key=True)
        unpacker.feed(data)
        session, payload = unpacker.unpack(), unpacker.unpack()
        rest = len(data) - unpacker.tell()
    except (ValueError, msgpack.UnpackException, msgpack.BufferFull, RecursionError) as error:
        raise RequestError(f"no message of this protocol ({type(error).__name__})") from None
    if type(session) is not int or session < 0 or rest:
        raise RequestError("no message of this protocol")
    if not (payload is None or type(payload) in (dict, bytes, int)):
        raise RequestError(f"a message may not say {type(payload).__name__}")
    return session, payload


def token_bits(vocabulary_size: int) -> int:
    """Bits that tell this many tokens apart."""
    return max(8, (vocabulary_size - 1).bit_length())  # of fewer, the last byte could hold one more


def pack_ids(ids: Sequence[int], bits: int) -> bytes:
    """Ids side by side."""
    return _packed([(token, bits) for token in ids])


def unpack_ids(data: bytes, bits: int) -> list[int]:
    """What `pack_ids` packed. RequestError for more than any context holds."""
    count = 8 * len(data) // bits
    if count > MOST_IDS:
        raise RequestError(f"more than {MOST_IDS} tokens at once")
    fields_IB = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits).reshape(count, bits)
    ids: list[int] = (fields_IB @ (1 << np.arange(bits, dtype=np.int64)[::-1])).tolist()
    return ids


def pack_draft(begins: int, draft: Draft, bits: int) -> bytes:
    """A draft that begins after so many tokens of the answer. The receiver knows about how many there are, so
    eight bits of the number will do."""
    chain = is_chain(draft.parents)
    fields = [(begins % 256, _BEGINS_BITS), (int(chain), _CHAIN_BITS)]
    for node, (token, parent) in enumerate(zip(draft.ids, draft.parents, strict=True)):
        fields.append((token, bits))
        if not chain:
            fields.append((parent + 1, node.bit_length()))
    return _packed(fields)


def unpack_draft(data: bytes, bits: int, *, written: int) -> tuple[int, Draft]:
    """What `pack_draft` packed, when `written` tokens of the answer are known. RequestError if it is none."""
    if 8 * len(data) > 64 * (MOST_NODES + 1):  # no node takes more bits
        raise RequestError("too large a draft")
    reader = _Reader(data)
    if reader.left < _BEGINS_BITS + _CHAIN_BITS:
        raise RequestError("a draft without a place")
    begins = written + (reader.take(_BEGINS_BITS) - written + 128) % 256 - 128
    chain = bool(reader.take(_CHAIN_BITS))
    ids: list[int] = []
    parents: list[int] = []
    while reader.left >= bits + (0 if chain else len(ids).bit_length()):
        node = len(ids)
        ids.append(reader.take(bits))
        parents.append(node - 1 if chain else reader.take(node.bit_length()) - 1)
        if parents[-1] >= node or node == MOST_NODES:
            raise RequestError("a draft that is no tree, or too large a one")
    return begins, Draft(tuple(ids), tuple(parents))


def request_map(request: Request) -> dict[str, Any]:
    """A request that tokens alone can answer; of its deadline the seconds left, for clocks differ."""
    return {
        "messages": [[message.role, message.content] for message in request.messages],
        "prompt": request.prompt,
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
        "left_s": None if request.until_s is None else seconds_left(request, math.inf),
    }


def request_of(said: object) -> Request:
    """What `request_map` made. RequestError if it is none."""
    try:
        assert isinstance(said, dict)
        messages = tuple(Message(role, content) for role, content in said["messages"])
        seed, prompt, left_s = said["seed"], said["prompt"], said.get("left_s")
        request = Request(
            messages,
            max_tokens=int(said["max_tokens"]),
            temperature=float(said["temperature"]),
            top_p=float(said["top_p"]),
            seed=None if seed is None else int(seed),
            prompt=None if prompt is None else str(prompt),
            until_s=None if left_s is None else time.monotonic() + float(left_s),
        )
        assert all(message.role in ("system", "user", "assistant") for message in messages)
        assert all(isinstance(message.content, str) for message in messages)
        assert messages or prompt is not None
        assert 0 <= request.temperature <= 100
        assert 0 < request.top_p <= 1
        assert request.seed is None or 0 <= request.seed < 2**63
        assert left_s is None or 0 <= left_s < math.inf
    except (AssertionError, KeyError, TypeError, ValueError, OverflowError):
        raise RequestError("this is no request for tokens") from None
    return request


def seconds_left(request: Request, most_s: float) -> float:
    """How long whoever asked still waits for the answer, at most `most_s`."""
    if request.until_s is None:
        return most_s
    return min(most_s, max(0.0, request.until_s - time.monotonic()))


def pack_rows(rows: Sequence[TopK]) -> dict[str, Any]:
    """Next-token distributions, each of the same number of alternatives; log-probabilities in 32 bits."""
    return {
        "ids": np.concatenate([row.ids for row in rows]).astype("<u4").tobytes(),
        "logprobs": np.concatenate([row.logprobs for row in rows]).astype("<f4").tobytes(),
        "rest": [float(row.rest) for row in rows],
    }


def rows_of(said: Mapping[str, Any]) -> list[TopK]:
    """What `pack_rows` packed."""
    count = len(said["rest"])
    ids_TK = np.frombuffer(said["ids"], "<u4").astype(np.int64).reshape(count, -1)
    logp_TK = np.frombuffer(said["logprobs"], "<f4").astype(np.float64).reshape(count, -1)
    return [TopK(ids_TK[place], logp_TK[place], rest) for place, rest in enumerate(said["rest"])]


def frame_bytes(payload_bytes: int, *, masked: bool) -> int:
    """A WebSocket message on the wire (RFC 6455): its header, a client's mask, and what it carries."""
    header = 2 if payload_bytes < 126 else 4 if payload_bytes < 65536 else 10
    return header + 4 * masked + payload_bytes


def _packed(fields: Sequence[tuple[int, int]]) -> bytes:
    """Numbers in so many bits each, the first in the highest bits; the last byte is filled with zeros."""
    value = total = 0
    for number, bits in fields:
        value = value << bits | number
        total += bits
    return (value << -total % 8).to_bytes((total + 7) // 8, "big")


class _Reader:
    """Numbers out of packed bits."""

    def __init__(self, data: bytes) -> None:
        self._value, self.left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, bits: int) -> int:
        self.left -= bits
        return self._value >> self.left & ((1 << bits) - 1)
