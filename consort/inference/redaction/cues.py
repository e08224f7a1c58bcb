"""Words beside a number that say what it is, and signs without which a search would find nothing.

Patterns for what is read here are in small letters: on capitals of either size `re` is several times slower.
"""

from __future__ import annotations

from collections.abc import Iterable

_REACH = 40  # characters before a number in which a word may say what it is


def words_before(text: str, place: int) -> str:
    """What stands before a place of a text, in small letters."""
    return text[max(0, place - _REACH) : place].lower()


def holds_any(text: str, signs: Iterable[str]) -> bool:
    """Whether one of the signs is in the text."""
    return any(map(text.__contains__, signs))
