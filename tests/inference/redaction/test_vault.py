"""Laws of hiding:

what was hidden comes back exactly, nothing structured is left, and an entity has one placeholder everywhere.
"""

from hypothesis import given, settings
from hypothesis import strategies as st

from consort.inference.redaction import builtin
from consort.inference.redaction.spans import Detector, Span, outside
from consort.inference.redaction.structured import structured
from consort.inference.redaction.vault import PLACEHOLDER, Vault, hidden
from tests.inference.redaction.private_texts import private_texts

conversations = st.lists(private_texts, min_size=1, max_size=3)


def hide(texts: list[str], detect: Detector = builtin) -> tuple[list[str], Vault]:
    become, vault = hidden(texts, detect, again=structured)
    return [become[text] for text in texts], vault


@settings(max_examples=60, deadline=None)
@given(conversations)
def test_what_was_hidden_comes_back_exactly(texts: list[str]) -> None:
    shown, vault = hide(texts)
    assert [vault.give_back(text) for text in shown] == texts


@settings(max_examples=60, deadline=None)
@given(conversations)
def test_no_structured_span_is_left(texts: list[str]) -> None:
    for text in hide(texts)[0]:
        placeholders = [Span(*found.span(), "") for found in PLACEHOLDER.finditer(text)]
        assert outside(text, structured(text), placeholders) == []


@settings(max_examples=40, deadline=None)
@given(conversations)
def test_hiding_what_is_structured_twice_is_hiding_it_once(texts: list[str]) -> None:
    once, _ = hide(texts, structured)
    assert hide(once, structured)[0] == once


@settings(max_examples=40, deadline=None)
@given(conversations)
def test_a_placeholder_is_new_and_stands_for_one_text(texts: list[str]) -> None:
    _, vault = hide(texts)
    there = {found.upper() for text in texts for found in PLACEHOLDER.findall(text)}
    assert there.isdisjoint(vault.private)
    assert all(PLACEHOLDER.fullmatch(name) for name in vault.private)


def test_an_entity_has_one_placeholder_in_every_turn() -> None:
    turns = ["My name is Anna Karlsson.", "anna@example.org", "Is Anna Karlsson at anna@example.org?"]
    shown, _ = hide(turns)
    assert shown == ["My name is [PERSON_1].", "[EMAIL_1]", "Is [PERSON_1] at [EMAIL_1]?"]


def test_another_spelling_of_an_entity_shares_its_number() -> None:
    shown, vault = hide(["4111 1111 1111 1111 or 4111111111111111?"])
    assert shown == ["[CARD_1] or [CARD_1B]?"]
    assert vault.give_back("[CARD_1b]") == "4111111111111111"


def test_earlier_turns_stay_as_they_left_when_the_conversation_goes_on() -> None:
    turns = ["Mail anna@example.org", "and bob@example.org", "or carla@example.org"]
    assert hide(turns)[0][:2] == hide(turns[:2])[0]


def test_what_one_turn_shows_to_be_private_is_private_in_all() -> None:
    shown, _ = hide(["ask zsombor about it", "my name is zsombor"])
    assert "zsombor" not in " ".join(shown)


def test_what_is_private_spreads_however_much_else_is_private() -> None:
    """A few words are searched for one by one, many are counted: both find what was cut out of a word."""
    for others in (0, 30):
        mails = [f"w{place}@example.org" for place in range(others)]
        texts = [*mails, "xKarlsson-Zhivkov", "Karlsson came", "is Karlsson here? Or my karlsson?"]
        cut = {texts[-3]: [Span(1, 9, "person")]}
        shown, _ = hide(texts, lambda text, cut=cut: cut.get(text, structured(text)))  # type: ignore[misc]
        assert shown[-3:] == ["x[PERSON_1]-Zhivkov", "[PERSON_1] came", "is [PERSON_1] here? Or my karlsson?"]


def test_a_text_that_looks_like_a_placeholder_stays_what_it_is() -> None:
    shown, vault = hide(["[PERSON_1] and [person_2] met Anna Karlsson"])
    assert shown == ["[PERSON_1] and [person_2] met [PERSON_3]"]
    assert vault.give_back("[PERSON_1] [PERSON_2] [PERSON_3]") == "[PERSON_1] [PERSON_2] Anna Karlsson"


def test_a_detector_of_any_kind_of_span_is_given_back() -> None:
    shown, vault = hide(["a b c"], lambda text: [Span(2, 3, "US_ärger-5")] if text == "a b c" else [])
    assert shown != ["a b c"]
    assert vault.give_back(shown[0]) == "a b c"
    assert vault.counts == {"US_ärger-5": 1}
