"""Laws of giving back: however the stream is split, the answer is the same, and nothing waits needlessly."""

import json
from itertools import combinations, pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from consort.inference.redaction import builtin
from consort.inference.redaction.restoring import ChunkRestorer, Restorer
from consort.inference.redaction.structured import structured
from consort.inference.redaction.vault import PLACEHOLDER, Vault, hidden
from consort.types import Chunk, TokenLogprob, ToolCall
from tests.inference.redaction.private_texts import private_texts


def hide(text: str) -> tuple[str, Vault]:
    become, vault = hidden([text], builtin, again=structured)
    return become[text], vault


def pieces(text: str, cuts: list[int]) -> list[str]:
    ends = sorted({cut % (len(text) + 1) for cut in cuts} | {0, len(text)})
    return [text[start:end] for start, end in pairwise(ends)] or [text]


def restored(vault: Vault, chunks: list[Chunk]) -> list[Chunk]:
    restorer = ChunkRestorer(vault)
    return [given for chunk in chunks for given in restorer.feed(chunk)] + list(restorer.rest())


cuts = st.lists(st.integers(0, 400), max_size=40)


@settings(max_examples=100, deadline=None)
@given(private_texts, cuts)
def test_a_stream_split_anywhere_gives_back_the_text(text: str, cut: list[int]) -> None:
    shown, vault = hide(text)
    chunks = [Chunk(piece, "cloud") for piece in pieces(shown, cut)]
    assert "".join(chunk.text for chunk in restored(vault, chunks)) == text


def test_every_way_of_splitting_one_answer_gives_back_the_same() -> None:
    text = "[IP_1 to bo@ex.org]"
    shown, vault = hide(text)
    assert shown == "[IP_1 to [EMAIL_1]]"
    for parts in range(4):
        for cut in combinations(range(1, len(shown)), parts):
            chunks = [Chunk(piece, "cloud") for piece in pieces(shown, list(cut))]
            assert "".join(chunk.text for chunk in restored(vault, chunks)) == text
    letters = [Chunk(letter, "cloud") for letter in shown]
    assert "".join(chunk.text for chunk in restored(vault, letters)) == text


@settings(max_examples=60, deadline=None)
@given(private_texts, cuts)
def test_only_what_may_begin_a_placeholder_is_held_back(text: str, cut: list[int]) -> None:
    shown, vault = hide(text)
    restorer, read, given_text = Restorer(vault), "", ""
    for piece in pieces(shown, cut):
        read += piece
        given_text += "".join(part for _, part in restorer.feed("cloud", piece))
        waiting = max(
            (read[at:] for at in range(len(read)) if read[at:].upper() in vault.beginnings),
            key=len,
            default="",
        )
        assert given_text == vault.give_back(read[: len(read) - len(waiting)])


@settings(max_examples=60, deadline=None)
@given(private_texts, cuts)
def test_text_keeps_its_author_and_a_placeholder_is_by_who_began_it(text: str, cut: list[int]) -> None:
    shown, vault = hide(text)
    chunks = [
        Chunk(piece, "edge" if place % 2 else "cloud") for place, piece in enumerate(pieces(shown, cut))
    ]
    author = [chunk.model for chunk in chunks for _ in chunk.text]
    expected, at = [], 0
    for found in [*PLACEHOLDER.finditer(shown)]:
        private = vault.private.get(found[0].upper(), found[0])
        expected += [*zip(shown[at : found.start()], author[at : found.start()], strict=True)]
        if found[0].upper() in vault.private:
            expected += [(letter, author[found.start()]) for letter in private]
        else:
            expected += [*zip(found[0], author[found.start() : found.end()], strict=True)]
        at = found.end()
    expected += [*zip(shown[at:], author[at:], strict=True)]
    assert [(letter, chunk.model) for chunk in restored(vault, chunks) for letter in chunk.text] == expected


@settings(max_examples=60, deadline=None)
@example("anna.karlsson@example.org[", [])
@given(private_texts, cuts)
def test_tokens_spell_the_text_and_keep_their_probability(text: str, cut: list[int]) -> None:
    shown, vault = hide(text)
    chunks = [Chunk(piece, "cloud", logprobs=(TokenLogprob(piece, -0.5),)) for piece in pieces(shown, cut)]
    tokens = [token for chunk in restored(vault, chunks) for token in chunk.logprobs]
    assert "".join(token.token for token in tokens) == text
    assert sum(token.logprob for token in tokens) == -0.5 * len(chunks)


@settings(max_examples=60, deadline=None)
@given(private_texts, cuts)
def test_arguments_of_a_tools_call_stay_json(text: str, cut: list[int]) -> None:
    shown, vault = hide(text)
    arguments = json.dumps({"text": shown}, ensure_ascii=False)
    chunks = [
        Chunk("", "cloud", tool_calls=(ToolCall(1, "call" * (not place), "f" * (not place), piece),))
        for place, piece in enumerate(pieces(arguments, cut))
    ]
    calls = [call for chunk in restored(vault, chunks) for call in chunk.tool_calls]
    assert json.loads("".join(call.arguments for call in calls)) == {"text": text}
    assert {call.index for call in calls} == {1}
    assert (calls[0].id, calls[0].name) == ("call", "f")


def test_an_answer_that_begins_anew_forgets_what_was_held_back() -> None:
    shown, vault = hide("bo@ex.org")
    chunks = [
        Chunk("Well, " + shown[:4], "edge"),
        Chunk(shown, "cloud", anew=True),
        Chunk("", "cloud", "stop"),
    ]
    given_chunks = restored(vault, chunks)
    assert given_chunks == [
        Chunk("Well, ", "edge"), Chunk("bo@ex.org", "cloud", anew=True), Chunk("", "cloud", "stop"),
    ]  # fmt: skip


def test_beginning_anew_is_told_even_when_all_its_text_waits() -> None:
    shown, vault = hide("bo@ex.org")
    given_chunks = restored(vault, [Chunk(shown[:3], "cloud", anew=True), Chunk(shown[3:], "cloud", "stop")])
    assert given_chunks == [Chunk("", "cloud", anew=True), Chunk("bo@ex.org", "cloud", "stop")]


def test_a_broken_off_placeholder_comes_with_the_end() -> None:
    _, vault = hide("bo@ex.org")
    assert restored(vault, [Chunk("so [EMAIL", "cloud", "length")]) == [Chunk("so [EMAIL", "cloud", "length")]
    assert restored(vault, [Chunk("so [EMAIL", "cloud")]) == [Chunk("so ", "cloud"), Chunk("[EMAIL", "cloud")]
