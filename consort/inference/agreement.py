"""How far two answers to one question agree, without a model: a label for traffic that nobody grades.

Answers that come down to a number or a letter agree or do not; others as `vote` compares them, by their
words, numbers and negations. Knows no synonyms: two right answers in other words count as partly agreeing.
"""

from __future__ import annotations

import re

from consort.inference.answer_checks import marked_number
from consort.inference.likeness import likeness, plain

SAME = 0.8  # from this likeness on two texts say the same, as in `vote`
# "B", "(B) nine", "the answer is B." but neither "A clinic" nor "I think"
_LETTER = re.compile(
    r"^\s*\(?([A-J])\s*(?:[).:]|$)|\b(?:answer|option|choice)\W+(?:is\W+)?\(?([A-J])(?=[).,]|\s*$)"
)


def agreement(answer: str, reference: str) -> float:
    """1 where both say the same, below 1 how alike they are; 0 where they come to different ends."""
    if not answer.strip():
        return 0.0
    ends = [_end(text) for text in (answer, reference)]
    if plain(answer) == plain(reference) or (ends[0] is not None and ends[0] == ends[1]):
        return 1.0
    if ends[0] is not None and ends[1] is not None:
        return 0.0
    alike = likeness(answer, reference)
    return 1.0 if alike >= SAME else alike


def _end(text: str) -> str | float | None:
    """The letter chosen or the number marked as the answer; None where a text has no such end."""
    letters = _LETTER.findall(text)
    return "".join(letters[-1]) if letters else marked_number(text)
