"""Drawn tokens follow the model's probabilities, and hang on seed, position and token alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest

from consort.models.decoding.sampling import Sampling, apart, choose, gumbel, token_keys
from tests.tiny_models import byte_level, escaped_spaces, tiny

KEYS = np.arange(1000, dtype=np.uint64)


def test_noise_is_gumbel_s_over_tokens_positions_and_seeds():
    for draws in ([(0, 0)], [(0, position) for position in range(1000)], [(seed, 5) for seed in range(1000)]):
        noise = gumbel(draws, KEYS if len(draws) == 1 else KEYS[:1]).ravel()
        assert kstest(noise, "gumbel_r").pvalue > 0.01


def test_drawn_tokens_follow_the_probabilities_and_the_nucleus():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -3.0])
    probabilities = (logits / 0.8).softmax(-1)
    for top_p, kept in ((1.0, 5), (0.95, 3), (0.0, 1)):
        tokens = choose(logits.expand(4000, -1), [Sampling(0.8, top_p, seed=1)] * 4000, range(4000), KEYS[:5])
        counts = np.bincount(tokens, minlength=5)
        assert counts[kept:].sum() == 0
        shares = (probabilities[:kept] / probabilities[:kept].sum()).double().numpy()
        assert kept == 1 or chisquare(counts[:kept], 4000 * shares / shares.sum()).pvalue > 0.01


def test_a_row_s_draw_does_not_hang_on_its_neighbours():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    samplings = [Sampling(1.0, seed=4), Sampling(), Sampling(0.5, top_p=0.5, seed=2**70 + 1)]
    together = choose(logits, samplings, [3, 4, 5], KEYS[:50])
    for row in range(3):
        assert together[row : row + 1] == choose(
            logits[row : row + 1], [samplings[row]], [3 + row], KEYS[:50]
        )
    assert together[1] == int(logits[1].argmax())


def test_noise_means_the_same_to_another_tokenizer():
    first, second = (
        tiny(tokenizer=kind).vocabulary for kind in (byte_level(), escaped_spaces("bpe", lines_apart=True))
    )
    assert first.token_bytes != second.token_bytes
    for piece in (b"the", b"a"):
        places = [vocabulary.token_bytes.index(piece) for vocabulary in (first, second)]
        assert token_keys(first)[places[0]] == token_keys(second)[places[1]]
    assert token_keys(first)[first.eos_id] == token_keys(second)[second.eos_id]


@pytest.mark.parametrize("kind", [byte_level, lambda: escaped_spaces("bpe", lines_apart=False)])
def test_no_two_tokens_share_their_noise(kind):
    keys = token_keys(tiny(tokenizer=kind()).vocabulary)
    assert len(set(keys.tolist())) == len(keys)


def test_rows_of_one_seed_and_rows_of_the_next_have_nothing_in_common():
    assert len({apart(seed, row) for seed in range(-20, 20) for row in range(20)}) == 800
