"""How far two answers to one question agree, without a model: a label for traffic that nobody grades.

Answers that come down to a number or a letter agree or do not; others as `vote` compares them, by their
words, numbers and negations. Knows no synonyms: two right answers in other words count as partly agreeing.
"""

from __future__ import annotations

import re

from consort.inference.answer_checks import final_number, marked_number
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
    if plain(answer) == plain(reference):
        return 1.0
    letters = [_letter(text) for text in (answer, reference)]
    if all(letters):
        return float(letters[0] == letters[1])
    # where one side marks a number as its end, the other's last number is its end too
    if any(marked_number(text) is not None for text in (answer, reference)):
        ends = [final_number(text) for text in (answer, reference)]
        if None not in ends:
            return float(ends[0] == ends[1])
    alike = likeness(answer, reference)
    return 1.0 if alike >= SAME else alike


def _letter(text: str) -> str:
    found = _LETTER.findall(text)
    return "".join(found[-1]) if found else ""
