"""Grouping rows by length changes how often the model runs, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from consort.models.local import LocalModel
from consort.training.batches import states_of
from tests.tiny_models import tiny


@pytest.fixture(scope="module")
def llama() -> LocalModel:
    return tiny("llama")


def rows_of(lengths: list[int]) -> list[np.ndarray]:
    rng = np.random.default_rng(len(lengths))
    return [rng.integers(5, 300, length) for length in lengths]


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=9))
@settings(max_examples=25, deadline=None)
def test_every_row_has_the_states_it_has_alone(llama: LocalModel, lengths: list[int]) -> None:
    rows = rows_of(lengths)
    with torch.no_grad():
        states_MD, begins = states_of(llama, rows)
        for row, begin in zip(rows, begins, strict=True):
            alone_TD = llama.hidden(torch.from_numpy(row)[None])[0]
            torch.testing.assert_close(states_MD[begin : begin + len(row)], alone_TD, rtol=1e-3, atol=1e-4)


def test_one_long_row_does_not_stretch_the_short_ones(llama: LocalModel) -> None:
    states_MD, _ = states_of(llama, rows_of([10, 100, 10, 10]))
    assert len(states_MD) == 3 * 10 + 100


def test_rows_of_nearly_one_length_stay_together(llama: LocalModel) -> None:
    states_MD, _ = states_of(llama, rows_of([20, 19, 20, 18]))
    assert len(states_MD) == 4 * 20
