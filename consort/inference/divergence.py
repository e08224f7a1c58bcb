"""Where two models' next tokens differ, and what the difference is worth (R2R, arXiv 2505.21600).

R2R follows the large model's answer and asks a third model whether the small one's token leads elsewhere.
Here the states are those of use, the small model's own greedy path, and the label is what `verify` gains in
the answer, as the mean of two: with the large model's token in that place, continued by the small one; and
R2R's, both tokens continued by the large one, whose labels add up to the whole answer's gain. So a small
model that knows better is left alone. Learns nothing; `token_fit` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from consort.inference.duet import Choice, Duet
from consort.inference.reading import Reader
from consort.inference.token_need import Look
from consort.models.decoding.sampling import Sampling, pick, token_keys
from consort.types import Request, TokenLM


@dataclass(frozen=True, slots=True)
class Lesson:
    """One question: each token of the small model's path, and what the large one's would have gained there.
    `answer_gain`: of the large model's whole answer."""

    looks: tuple[Look, ...]
    gains: tuple[float, ...]
    differing: int
    answer_gain: float


def lesson(small: TokenLM, large: TokenLM, request: Request, verify: Callable[[str], float]) -> Lesson:
    """Label one path. `verify` scores a whole answer in 0..1, against a reference or against the large
    model's own answer. One pass of the large model a token, one answer of each model a difference."""
    request = replace(request, temperature=0.0)
    reader, other = Reader(small, request), Reader(large, request)
    try:
        # 1) the path, and where the large model would leave it
        looks, branches, text = _path(reader, other, request)
        plain = verify(text)
        places = [place for place, branch in enumerate(branches) if branch is not None]
        # 2) each difference, continued by the small model, and by the large one
        gains = [0.0] * len(looks)
        by_large = [plain]
        for place in reversed(places):
            branch = branches[place]
            assert branch is not None, "a place of a difference"
            by_large.append(verify(_continued(other, (), branch, request)))
            by_small = verify(_continued(reader, branch.ids, branch, request))
            gains[place] = (by_small - plain + by_large[-1] - by_large[-2]) / 2
        return Lesson(tuple(looks), tuple(gains), len(places), by_large[-1] - plain)
    finally:
        reader.close()
        other.close()


@dataclass(frozen=True, slots=True)
class _Branch:
    """A place where the large model differs: the text and the small model's tokens before it, and its piece,
    None for the end."""

    before: bytes
    ids: Sequence[int]
    piece: bytes | None


def _path(reader: Reader, other: Reader, request: Request) -> tuple[list[Look], list[_Branch | None], str]:
    """The looks of the small model's path, where the other model differs, and the answer."""
    duet = Duet(request, native=reader.vocabulary.sha256 == other.vocabulary.sha256)
    looks: list[Look] = []
    branches: list[_Branch | None] = []
    ended = False
    while not ended and duet.tokens < request.max_tokens:
        look, choice = duet.look(reader)
        looks.append(look)
        branch = None
        if duet.whole:
            piece = _piece(other, duet.asked(other))
            branch = None if _alike(look.piece, piece) else _Branch(bytes(duet.answer), reader.ids, piece)
        branches.append(branch)
        ended = duet.write(reader, choice, large=False) is None
    return looks, branches, duet.answer.decode(errors="replace")


def _piece(reader: Reader, choice: Choice) -> bytes | None:
    """What a choice would add to the answer; None where it ends it."""
    if choice.token == reader.vocabulary.eos_id:
        return None
    if not choice.longer:
        return reader.piece(choice.token)
    pieces = reader.vocabulary.token_bytes
    return (pieces[choice.token] or b"")[len(pieces[reader.ids[-1]] or b"") :]


def _alike(one: bytes | None, other: bytes | None) -> bool:
    """Whether two tokens say the same as far as both go."""
    if one is None or other is None:
        return one is other
    return one.startswith(other) or other.startswith(one)


def _continued(reader: Reader, ids: Sequence[int], branch: _Branch, request: Request) -> str:
    """The answer that the reader's model ends alone after `ids` and the branch's piece."""
    answer = bytearray(branch.before)
    if branch.piece is not None:
        answer += branch.piece
        reader.hold(ids)
        reader.read(bytes(answer))
        sampling, keys = Sampling.of(request), token_keys(reader.vocabulary)
        while len(reader.ids) < request.max_tokens:
            token = pick(reader.look(), sampling, len(reader.ids), keys)
            if token == reader.vocabulary.eos_id:
                break
            answer += reader.write(token)
    return answer.decode(errors="replace")
