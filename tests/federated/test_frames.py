"""Laws of the envelope: what was sealed comes back, and bytes that are anything else are one PacketError."""

from __future__ import annotations

import hashlib
import struct

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from consort.errors import PacketError
from consort.federated.frames import seal, unseal

KIND = 7
PACKET = seal(KIND, {"name": "proxy", "numbers": [1, 2.5]}, [bytes(range(256)), b"", b"abc" * 50])


def signed(body: bytes) -> bytes:
    return body + hashlib.sha256(body).digest()


def by_hand(*packed: bytes, version: int = 1) -> bytes:
    lengths = struct.pack(f"<{len(packed)}I", *map(len, packed))
    return signed(struct.pack("<4sBBH", b"CNSO", version, KIND, len(packed)) + lengths + b"".join(packed))


@given(
    sections=st.lists(st.binary(max_size=200), max_size=5), header=st.dictionaries(st.text(), st.integers())
)
def test_what_was_sealed_comes_back(sections, header):
    frame = unseal(seal(KIND, header, sections), kind=KIND)
    assert frame.sections == tuple(sections)
    assert frame.header == header


def test_a_truncated_packet_is_refused_at_every_length():
    for length in range(len(PACKET)):
        with pytest.raises(PacketError):
            unseal(PACKET[:length], kind=KIND)
    with pytest.raises(PacketError):
        unseal(PACKET + b"x", kind=KIND)


def test_a_flipped_bit_is_found_wherever_it_is():
    for bit in range(8 * len(PACKET)):
        damaged = bytearray(PACKET)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PacketError):
            unseal(bytes(damaged), kind=KIND)


@given(st.binary(max_size=200))
def test_noise_is_refused_also_with_a_right_checksum(noise):
    for packet in (noise, signed(noise), signed(PACKET[:8] + noise)):
        with pytest.raises(PacketError):
            unseal(packet, kind=KIND)


def test_another_version_is_named():
    with pytest.raises(PacketError, match="version 9"):
        unseal(by_hand(zstandard.compress(b"{}"), version=9), kind=KIND)


def test_one_kind_of_packet_is_not_read_as_another():
    with pytest.raises(PacketError, match="kind 7"):
        unseal(PACKET, kind=KIND + 1)


def test_a_decompression_bomb_is_refused_before_memory_is_asked_for():
    bomb = by_hand(zstandard.compress(b"{}"), zstandard.compress(bytes(1 << 24)))
    assert len(bomb) < 2000
    with pytest.raises(PacketError, match="more than"):
        unseal(bomb, kind=KIND, max_bytes=1 << 20)


def test_many_small_sections_cannot_exceed_the_limit_together():
    part = zstandard.compress(bytes(1 << 12))
    with pytest.raises(PacketError, match="more than"):
        unseal(by_hand(zstandard.compress(b"{}"), *[part] * 300), kind=KIND, max_bytes=1 << 20)


def test_a_section_that_hides_its_size_is_refused():
    hidden = zstandard.ZstdCompressor(write_content_size=False).compress(b"{}")
    with pytest.raises(PacketError, match="does not say"):
        unseal(by_hand(hidden), kind=KIND)


@pytest.mark.parametrize(
    "packed", [b"no zstd", zstandard.compress(b"{}") + b"more", zstandard.compress(b"{}")[:-1]]
)
def test_a_section_that_is_no_single_zstd_frame_is_refused(packed):
    with pytest.raises(PacketError):
        unseal(by_hand(packed), kind=KIND)


@pytest.mark.parametrize("header", [b"[" * 100_000, b"\xff\xfe", b"[1]", b"", b"nul", b"9" * 10_000])
def test_a_header_that_is_no_object_is_refused(header):
    with pytest.raises(PacketError, match="header"):
        unseal(by_hand(zstandard.compress(header)), kind=KIND)


def test_a_packet_without_sections_is_refused():
    with pytest.raises(PacketError, match="sections"):
        unseal(by_hand(), kind=KIND)
