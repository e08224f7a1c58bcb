"""What is packed comes back; what is no message is one clear refusal, whatever the bytes."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consort.errors import RequestError
from consort.models.drafts import is_sound
from consort.models.frames import (
    MAX_BYTES,
    frame_bytes,
    pack,
    pack_draft,
    pack_ids,
    pack_rows,
    request_map,
    request_of,
    rows_of,
    seconds_left,
    token_bits,
    unpack,
    unpack_draft,
    unpack_ids,
)
from consort.types import Draft, Message, Request, TopK
from tests.models.test_drafts import drafts

SIZES = st.sampled_from([2, 300, 4096, 50_257, 152_064])
PAYLOADS = st.one_of(
    st.none(),
    st.integers(0, 2**40),
    st.binary(max_size=300),
    st.dictionaries(st.text(max_size=5), st.integers() | st.text(), max_size=3).map(
        lambda said: {key: value % 2**60 if isinstance(value, int) else value for key, value in said.items()}
    ),
)


def test_a_deadline_travels_as_the_seconds_left():
    asked = Request((Message("user", "when?"),), until_s=time.monotonic() + 5)
    said = unpack(pack(1, request_map(asked)))[1]
    assert request_of(said) == asked
    assert 4 < seconds_left(request_of(said), 60) <= 5
    assert seconds_left(request_of(said), 2) == 2
    assert seconds_left(request_of(request_map(replace(asked, until_s=None))), 60) == 60
    assert seconds_left(request_of(request_map(replace(asked, until_s=0.0))), 60) == 0
    for wrong in (-1, "soon", float("nan")):
        with pytest.raises(RequestError):
            request_of({**said, "left_s": wrong})


@given(st.integers(0, 10**6), PAYLOADS)
def test_a_message_comes_back(session, payload):
    assert unpack(pack(session, payload)) == (session, payload)


@given(st.binary(max_size=60))
def test_other_bytes_are_refused_or_a_message(data):
    with contextlib.suppress(RequestError):
        session, payload = unpack(data)
        assert session >= 0
        assert payload is None or type(payload) in (int, bytes, dict)


@given(SIZES, st.data())
def test_ids_come_back_in_few_bits(size, data):
    bits = token_bits(size)
    ids = data.draw(st.lists(st.integers(0, size - 1), max_size=40))
    packed = pack_ids(ids, bits)
    assert unpack_ids(packed, bits) == ids
    assert len(packed) <= 1 + len(ids) * bits // 8


def test_more_than_any_answer_or_draft_is_refused():
    with pytest.raises(RequestError, match="tokens at once"):
        unpack_ids(bytes(MAX_BYTES), 8)
    with pytest.raises(RequestError, match="too large"):
        unpack_draft(bytes(MAX_BYTES), 8, written=0)


@given(drafts(), SIZES, st.integers(0, 3000), st.integers(-100, 100))
def test_a_draft_comes_back_where_it_began(draft, size, written, apart):
    bits, begins = token_bits(size), max(0, written + apart)
    draft = Draft(tuple(token % size for token in draft.ids), draft.parents)
    assert unpack_draft(pack_draft(begins, draft, bits), bits, written=written) == (begins, draft)


@given(st.binary(max_size=400), SIZES)
def test_whatever_bytes_a_draft_is_made_of_it_is_a_tree_or_refused(data, size):
    with contextlib.suppress(RequestError):
        _, draft = unpack_draft(data, token_bits(size), written=7)
        assert is_sound(draft, 1 << token_bits(size))


@given(st.text(max_size=20), st.integers(1, 500), st.floats(0, 2), st.integers(0, 2**63 - 1) | st.none())
def test_a_request_comes_back(text, max_tokens, temperature, seed):
    request = Request((Message("user", text),), max_tokens=max_tokens, temperature=temperature, seed=seed)
    assert request_of(unpack(pack(1, request_map(request)))[1]) == request


@pytest.mark.parametrize(
    "said",
    [
        None,
        7,
        {},
        {"messages": []},
        request_map(Request((), seed=1)),
        request_map(Request((), prompt="a")) | {"top_p": 0},
    ],
)
def test_what_is_no_request_is_refused(said):
    with pytest.raises(RequestError, match="no request for tokens"):
        request_of(said)


def test_distributions_come_back_to_32_bits():
    rng = np.random.default_rng(0)
    rows = [TopK(rng.integers(0, 10**6, 5), np.log(rng.random(5)), float(rng.random())) for _ in range(3)]
    found = rows_of(unpack(pack(3, pack_rows(rows)))[1])
    for row, wanted in zip(found, rows, strict=True):
        assert (row.ids == wanted.ids).all()
        assert np.allclose(row.logprobs, wanted.logprobs, atol=1e-6)
        assert row.rest == wanted.rest


def test_the_size_on_the_wire_is_the_protocol_s():
    assert [frame_bytes(size, masked=True) for size in (0, 125, 126, 65_536)] == [6, 131, 134, 65_550]
    assert frame_bytes(10, masked=False) == 12
