"""Laws of equations in running text: whatever is computed rightly holds, whatever is not does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consort.inference.arithmetic import equations, number

numbers = st.integers(0, 10_000)
signs = st.sampled_from("+-*/")


@given(numbers, signs, st.integers(1, 500), signs, st.integers(1, 500))
def test_a_right_equation_holds_and_a_wrong_one_does_not(
    one: int, sign: str, two: int, other: str, three: int
) -> None:
    value = eval(f"{one}{sign}{two}{other}{three}")
    right, wrong = f"so {one} {sign} {two} {other} {three} = {value:.6f}", value * 1.1 + 1
    (found,) = equations(right)
    assert found.holds
    assert found.terms == (one, two, three)
    if wrong >= 0:
        (found,) = equations(f"{one} {sign} {two} {other} {three} = {wrong:.6f}.")
        assert not found.holds


@pytest.mark.parametrize(
    ("text", "computed", "holds"),
    [
        ("It costs 8 x $1.50 = $12 in all", 12, True),
        ("<<60/3=20>>", 20, True),
        ("(3 + 4) * 2 = 15", 14, False),
        ("1,200 ÷ 4 = 300", 300, True),
        ("20% * 80 = 16", 16, True),
        ("1/3 = 0.33", 1 / 3, True),
    ],
)
def test_equations_as_models_write_them(text: str, computed: float, holds: bool) -> None:
    (found,) = equations(text)
    assert found.computed == pytest.approx(computed)
    assert found.holds is holds


@given(st.text(alphabet="0123456789+-*/()=%$., x<>\n", max_size=200))
def test_no_text_breaks_the_reading(text: str) -> None:
    for equation in equations(text):
        assert equation.terms


def test_what_is_no_equation_is_left_alone() -> None:
    assert equations("on 2024-01-02 at 10:30, x = 5, pages 3-7, 5/0 = 3") == []


@given(st.integers(0, 10**9))
def test_numbers_are_read_with_their_separators(value: int) -> None:
    assert number(f"${value:,}") == value
