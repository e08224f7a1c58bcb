"""Laws of 8-bit blocks: shapes survive, codes stay in range, and what quantising again gives is the same."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from consort.federated.quantise import BLOCK, dequantise, from_blocks, num_blocks, quantise, to_blocks

SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=1, max_side=70)
NUMBERS = st.floats(-(2.0**100), 2.0**100, width=32)


@given(shape=SHAPES)
def test_a_tensor_survives_being_cut_into_blocks(shape):
    tensor = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    blocks = to_blocks(tensor)
    assert blocks.shape == (num_blocks(tensor.size), BLOCK)
    np.testing.assert_array_equal(from_blocks(blocks, shape), tensor)


def test_blocks_run_along_the_long_axis_of_both_factors():
    B = np.repeat(np.arange(4, dtype=np.float32)[None], BLOCK, axis=0)
    for factor in (B, B.T):
        assert [set(block) for block in to_blocks(factor)] == [{0.0}, {1.0}, {2.0}, {3.0}]


@given(hnp.arrays(np.float32, (3, BLOCK), elements=NUMBERS))
def test_each_number_is_off_by_half_a_step_at_most(blocks):
    codes, scales = quantise(blocks)
    got = dequantise(codes, scales)
    step = np.abs(blocks).max(axis=1, keepdims=True) / 127
    assert (np.abs(codes.astype(int)) <= 127).all()
    assert (np.abs(got - blocks) <= 0.505 * step + 1e-38).all()
