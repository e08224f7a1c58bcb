"""How likely a model finds given answers: summed log-likelihoods. Trains nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from consort.models.local import LocalModel
from consort.training.data import Sample, encode


@dataclass(frozen=True, slots=True)
class AnswerLikelihoods:
    """One entry a sample: nats and tokens of the answer with its end token, bytes of the answer's text."""

    log_likelihoods: list[float]
    num_tokens: list[int]
    num_bytes: list[int]
    num_truncated: int  # samples whose prompt lost its beginning


@torch.no_grad()
def answer_likelihoods(
    model: LocalModel, samples: Sequence[Sample], *, batch_rows: int = 16
) -> AnswerLikelihoods:
    """Log-likelihood of each sample's own answer, given its prompt. Only answer rows get logits."""
    encoded = [encode(sample, model, model.context_tokens) for sample in samples]
    prompts = [one.prompt_ids for one in encoded]
    nats = [0.0] * len(samples)
    weight, bias = model.head()
    order = sorted(range(len(samples)), key=lambda index: encoded[index].num_tokens)
    for start in range(0, len(order), batch_rows):
        rows = order[start : start + batch_rows]
        ids = [torch.tensor(prompts[row] + encoded[row].answer_ids) for row in rows]
        padded = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=model.eos_id).to(model.device)
        hidden = model.hidden(padded[:, :-1])
        for index, row in enumerate(rows):
            answer = torch.tensor(encoded[row].answer_ids, device=model.device)
            first = len(prompts[row]) - 1
            logits = nn.functional.linear(
                hidden[index, first : first + len(answer)].to(weight.dtype), weight, bias
            )
            nats[row] = -float(nn.functional.cross_entropy(logits.float(), answer, reduction="sum"))
    return AnswerLikelihoods(
        nats,
        [len(one.answer_ids) for one in encoded],
        [len((sample.answer or "").encode()) for sample in samples],
        sum(one.truncated for one in encoded),
    )
