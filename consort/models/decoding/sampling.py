"""Choosing the next token of a batch's rows: the likeliest, or drawn with the noise of `noise`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from consort.models.decoding.noise import GREEDY, Keys, Sampling, apart, gumbel, token_keys

__all__ = ["GREEDY", "Keys", "Sampling", "apart", "choose", "gumbel", "token_keys"]


def choose(
    logits_BV: Tensor, samplings: Sequence[Sampling], positions: Sequence[int], keys: Keys
) -> list[int]:
    """One token a row; `positions` count the tokens of each answer from 0."""
    drawn = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
    tokens: list[int] = logits_BV.argmax(-1).tolist()
    if drawn:
        temperatures = torch.tensor([[samplings[row].temperature] for row in drawn], dtype=torch.float64)
        scores_RV = logits_BV[drawn].double().cpu() / temperatures
        top_p = torch.tensor([[samplings[row].top_p] for row in drawn], dtype=torch.float64)
        if bool((top_p < 1).any()):
            scores_RV = _nucleus(scores_RV, top_p)
        noise = gumbel([(samplings[row].seed, positions[row]) for row in drawn], keys)
        for row, token in zip(drawn, (scores_RV + torch.from_numpy(noise)).argmax(-1).tolist(), strict=True):
            tokens[row] = token
    return tokens


def _nucleus(scores_RV: Tensor, top_p: Tensor) -> Tensor:
    """Scores with those outside the nucleus (arXiv 1904.09751) taken out; the likeliest always stays."""
    ordered_RV, places_RV = scores_RV.sort(stable=True, dim=-1, descending=True)
    probabilities_RV = ordered_RV.softmax(-1)
    before_RV = probabilities_RV.cumsum(-1) - probabilities_RV
    outside_RV = torch.zeros_like(scores_RV, dtype=torch.bool).scatter(-1, places_RV, before_RV >= top_p)
    outside_RV.scatter_(-1, places_RV[:, :1], False)
    return scores_RV.masked_fill(outside_RV, -torch.inf)
