"""Whether the tokens before a cut are the text before it, decided without `consort.align`."""

from functools import cache

from consort.align import Spans, Vocabulary, align_rows

LOSSLESS_SIGN = "▁".encode()  # SentencePiece's sign for a space: in a text it is read as one


def wrong_cuts(vocabulary: Vocabulary, text: str, spans: Spans) -> list[int]:
    """Rows that claim to stand where other bytes than theirs were read."""
    surfaces = vocabulary._encoder.encode(text, add_special_tokens=False).tokens
    shows_unknown = vocabulary.spec["model"].get("type") == "Unigram"
    pieces = [
        (surface.encode() if shows_unknown else b"\xff") if vocabulary.token_bytes[index] is None
        else vocabulary.token_bytes[index]
        for index, surface in zip(spans.ids.tolist(), surfaces, strict=True)
    ]  # fmt: skip
    raw, ends = text.encode(), spans.ends.tolist()
    inner = align_rows(spans, spans).source.tolist()[1:-1]
    return [row for row in inner if not _same(vocabulary, b"".join(pieces[:row]), raw[: ends[row - 1]])]


def _same(vocabulary: Vocabulary, read: bytes, text: bytes) -> bool:
    if vocabulary.adds_space and read.startswith(b" ") and not text.startswith(b" "):
        read = read[1:]
    if read == text or read == text.replace(LOSSLESS_SIGN, b" "):
        return True
    if b"\xff" in read:  # WordPiece's unknown tokens show nothing: what came after them must agree
        last_known = read.rsplit(b"\xff", 1)[1]
        return _rewritten(vocabulary, text).endswith(_kept(vocabulary, _bare(last_known)))
    return _rewritten(vocabulary, text) == _kept(vocabulary, _bare(read))


def _rewritten(vocabulary: Vocabulary, raw: bytes) -> bytes:
    """The text as the tokenizer's normaliser rewrites it; half a character at the end stays as it is."""
    whole = raw.decode(errors="ignore")
    normal = vocabulary.normalise(whole).encode()
    return _kept(vocabulary, _bare(normal) + raw[len(whole.encode()) :])


def _bare(raw: bytes) -> bytes:
    text = raw.decode(errors="surrogateescape").replace("▁", " ")
    return "".join(text.split()).encode(errors="surrogateescape")


def _kept(vocabulary: Vocabulary, raw: bytes) -> bytes:
    return raw.translate(None, _unwritten(vocabulary))


@cache
def _unwritten(vocabulary: Vocabulary) -> bytes:
    """Bytes that a byte-level tokenizer has no token for, and drops; and what Python takes for space."""
    single = {piece[0] for piece in vocabulary.token_bytes if piece and len(piece) == 1}
    lost = set(range(256)) - single if len(single) > 200 else set()
    return bytes(lost | set(b"\x1c\x1d\x1e\x1f"))
