"""One token of a cut distribution: with nothing cut off, the very token that a batch chooses from logits."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from consort.models.decoding.batch import top_k
from consort.models.decoding.sampling import Sampling, choose, gumbel, pick

KEYS = np.arange(50, dtype=np.uint64) * np.uint64(7919)


@given(
    st.integers(0, 10**6), st.integers(-5, 2**66), st.integers(0, 500), st.sampled_from([0.0, 0.6, 1.0, 3.0]),
    st.sampled_from([1.0, 0.9, 0.5, 0.0]),
)  # fmt: skip
def test_arrays_choose_as_tensors_do(weights, seed, position, temperature, top_p):
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(weights))
    logits[0, 7] = logits[0, 3]  # a tie
    sampling = Sampling(temperature, top_p, seed)
    assert (
        pick(top_k(logits[0], 50), sampling, position, KEYS)
        == choose(logits, [sampling], [position], KEYS)[0]
    )


def test_noise_of_a_few_tokens_is_that_of_all_at_their_places():
    some = np.array([4, 17, 30])
    assert (gumbel([(9, 3)], KEYS[some]) == gumbel([(9, 3)], KEYS)[:, some]).all()
