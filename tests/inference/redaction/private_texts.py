"""Texts with private spans in them, and with all that could be mistaken for a placeholder."""

from hypothesis import strategies as st

PRIVATE = (
    "anna.karlsson@example.org", "4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00", "+49 (0)30 1234567",
    "192.168.17.4", "2001:db8::ff00:42:8329", "https://clinic.example.org/p?id=7", "131052-308T",
    "123-45-6789",
    "RSSMRA85T10A562S", "Anna Karlsson", "Dr. Zhivkov", "I live at 12 Rue Gafsa, Toronto", "KARLSSON",
    "My name is Tom", "He turned 41", "on 7/5/1981", "sk-abcdefghijklmnop1234567890", "from Estonia",
)  # fmt: skip
CONFUSING = (
    "[PERSON_1]",
    "[person_1]",
    "[EMAIL_1]",
    "[",
    "]",
    "[PER",
    "SON_1]",
    "_1]",
    "[CARD_1B]",
    "[[IP_1]]",
    "ſ",
    "ı",
)
pieces = (
    st.sampled_from(PRIVATE) | st.sampled_from(CONFUSING) | st.text(max_size=8) | st.sampled_from(" .,\n:-")
)
private_texts = st.lists(pieces, max_size=8).map("".join) | st.lists(pieces, max_size=8).map(" ".join)
