"""One answer as text, shown while it is written. One request at a time: this is not the serving loop."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence

import torch

from consort.models.local import LocalModel


def stream_text(
    model: LocalModel, ids: Sequence[int], *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0
) -> Iterator[str]:
    """The continuation piece by piece, of whole characters; joined, they are the decoded answer."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    beginning = model.vocabulary.adds_space
    for token in stream_tokens(model, ids, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed):
        piece = model.vocabulary.token_bytes[token] or b""
        if beginning and piece:
            piece, beginning = piece.removeprefix(b" "), False
        if text := decoder.decode(piece):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text


@torch.no_grad()
def stream_tokens(
    model: LocalModel, ids: Sequence[int], *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0
) -> Iterator[int]:
    """New tokens up to the end token, which stays out: the likeliest, or drawn with `seed`."""
    generator = torch.Generator().manual_seed(seed)
    read, cache = torch.tensor([list(ids)], device=model.device), None
    for _ in range(max_new_tokens):
        with model.autocast():
            output = model.module(input_ids=read, past_key_values=cache, use_cache=True)
        cache, logits = output.past_key_values, output.logits[0, -1, : model.vocabulary.size].float().cpu()
        if temperature > 0:
            token = int(torch.multinomial(torch.softmax(logits / temperature, -1), 1, generator=generator))
        else:
            token = int(logits.argmax())
        if token == model.eos_id:
            return
        yield token
        read = torch.tensor([[token]], device=model.device)
