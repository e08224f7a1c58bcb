"""What the tests of alignment share: texts of every script, and teachers that know what they would say."""

import numpy as np
from hypothesis import strategies as st

from consort.align import Spans, SparseRows, Vocabulary

NAMES = ("bert-wordpiece", "deepseek-llm", "falcon", "gpt-neox", "gpt2", "llama2", "starcoder", "t5-unigram")
PAIRS = [(source, target) for source in NAMES for target in NAMES if source != target]

PIECES = (
    "Hello world", "the bank's card", " I’ll pay £3.50 — now", "naïve café", "Ünïcödé ÉCOLE", "ﬁne ½ ①②",
    "e\u0301a\u0315\u0300b", "o\u0302\u0323", "\u0065\u0301\u0301", "Å\u030a", "ǅ ŉ ß ẞ", "ıİ", "ΣΊΣΥΦΟΣ",
    "日本語のテキスト", "中文，句子。", "한국어", "\u1112\u1161\u11ab", "שלום עולם", "مرحبا بالعالم",
    "हिन्दी में", "ไทย", "Привет, МИР", "𝔘𝔫𝔦", "👩‍👩‍👧‍👦", "🇩🇪 🏳️‍🌈 👍🏽",
    "😀", "\U0001f9ff", "\U00040000", "\x00\x07\x1b", "\x1f{0{",
    "\u200b\u200d\ufeff", "\u202eabc", "a\u00adb", "\n", "\r\n", "\t\t", " ", "  ", "            ",
    "\u00a0", "\u3000", "\u2028", "def f(x):\n    return x**2  # ok\n", "http://a.b/c?d=e&f", "!!!???",
    "</s>", "<|endoftext|>", "<0x0A>", "[SEP]", "##ing", "▁", "Ġ", "<unk>", "x" * 40, "0123456789",
    "3.14e-26",
)  # fmt: skip

# few characters, often repeated, hide a shifted offset best
AWKWARD = (
    "xxae{{  \n01.,\x1f\x00\x7f\u0301\u0300\u0315"
    "éÉǅ½ﬁ日😀\u200b\u00adıß가\u1112\u1161\u11ab\U00040000Ж▁…\u3000\ufeff"
)

any_text = st.one_of(
    st.lists(st.sampled_from(AWKWARD), min_size=2, max_size=6).flatmap(
        lambda letters: st.lists(st.sampled_from(letters), max_size=24).map("".join)
    ),
    st.text(max_size=40),
    st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=6)), max_size=12).map("".join),
    st.lists(st.sampled_from(PIECES), max_size=8).map(" ".join),
)

PROSE = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May.\n\n"
    "“How many did she sell altogether?” — asked the café’s owner (naïvely)...  The answer is: 72.\n"
    "    def total(april: int) -> int:\n        return april + april // 2\n"
)


def random_teacher(spans: Spans, vocabulary: Vocabulary, *, slots: int, seed: int) -> SparseRows:
    """Distributions over distinct tokens, the actual next token among them."""
    rng = np.random.default_rng(seed)
    rows = len(spans.ids) + 1
    ids = np.stack([rng.choice(vocabulary.size, slots, replace=False) for _ in range(rows)]).astype(np.int32)
    for row, actual in enumerate(spans.ids):
        ids[row, rng.integers(slots)] = actual if actual not in ids[row] else ids[row, 0]
    probs = rng.dirichlet(np.full(slots + 1, 0.3), rows).astype(np.float32)
    return SparseRows(ids, probs[:, :-1], 1 - probs[:, :-1].sum(axis=1), np.ones(rows, bool))


def certain_teacher(spans: Spans, vocabulary: Vocabulary) -> SparseRows:
    """One-hot on the actual next token of every row, and on the end of the text."""
    ids = np.append(spans.ids, vocabulary.eos_id).astype(np.int32)[:, None]
    rows = len(ids)
    return SparseRows(ids, np.ones((rows, 1), np.float32), np.zeros(rows, np.float32), np.ones(rows, bool))
