"""One answer as text, shown while it is written. One request at a time: `lm` serves many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from consort.models.decoding.batch import Batch, Row
from consort.models.decoding.network import open_network
from consort.models.decoding.sampling import Sampling
from consort.models.decoding.text import TextWriter

if TYPE_CHECKING:
    from consort.models.local import LocalModel


def stream_text(
    model: LocalModel, ids: Sequence[int], *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0
) -> Iterator[str]:
    """The continuation of `ids`, which leave room for it in the context, piece by piece, of whole characters;
    joined, they are the decoded answer."""
    network = open_network(model, slots=1, positions=len(ids) + max_new_tokens)
    batch, text = Batch(network, model.vocabulary), TextWriter(model.vocabulary, stop=(), beginning=True)
    batch.add(Row(list(ids), max_new_tokens=max_new_tokens, sampling=Sampling(temperature, seed=seed)))
    while batch.rows:
        for one in batch.step(len(ids))[0]:
            if one.finish != "stop" and (piece := text.write(one.token)[0]):
                yield piece
    if rest := text.end()[0]:
        yield rest
