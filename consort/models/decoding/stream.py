"""One answer as text, shown while it is written. One request at a time: `lm` serves many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from consort.models.decoding.batch import Batch, Row
from consort.models.decoding.lm import Decodable
from consort.models.decoding.sampling import Sampling
from consort.models.decoding.text import TextWriter


def stream_text(
    model: Decodable, ids: Sequence[int], *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0
) -> Iterator[str]:
    """The continuation of `ids`, which leave room for it in the context, piece by piece, of whole characters;
    joined, they are the decoded answer."""
    network = model.open_network(slots=1, positions=len(ids) + max_new_tokens)
    batch, text = Batch(network, model.vocabulary), TextWriter(model.vocabulary, stop=(), beginning=True)
    row = Row(list(ids), max_new_tokens=max_new_tokens, sampling=Sampling(temperature, seed=seed))
    batch.add(row)
    while batch.rows and not model.end_ids.intersection(row.written[-1:]):
        for one in batch.step(len(ids))[0]:
            if one.token not in model.end_ids and (piece := text.write(one.token)[0]):
                yield piece
    if rest := text.end()[0]:
        yield rest
