"""Non-negative least squares, by the conditions that only its solution meets (Karush, Kuhn and
Tucker): nothing is negative, what is zero would not help, what is not would not help by moving."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetero.profile.node.nnls import nnls


@given(
    seed=st.integers(0, 2**32 - 1),
    num_lines=st.integers(1, 60),
    num_columns=st.integers(1, 30),
    shared=st.integers(0, 5),
    known=st.integers(0, 30),
)
def test_nothing_that_is_allowed_would_be_better(seed, num_lines, num_columns, shared, known):
    random = np.random.default_rng(seed)
    matrix = random.standard_normal((num_lines, num_columns))
    matrix[:, :shared] = matrix[:, :1]  # columns that say the same
    target = random.standard_normal(num_lines)
    start = np.where(np.arange(num_columns) < known, random.uniform(size=num_columns), 0)
    solution = nnls(matrix, target, start)
    slopes = matrix.T @ (target - matrix @ solution)
    assert (solution >= 0).all()
    assert slopes.max() < 1e-9
    assert np.abs(slopes[solution > 0]).max(initial=0) < 1e-9


def test_what_is_not_negative_is_found_exactly():
    matrix = np.random.default_rng(0).uniform(size=(40, 10))
    expected = np.arange(10.0)
    assert nnls(matrix, matrix @ expected, np.zeros(10)) == pytest.approx(expected, abs=1e-9)


def test_a_coefficient_that_would_be_negative_is_zero():
    # By hand: x0 + x1 = 1 and x1 = 2 want x0 = -1. Without x0: 2 (x1 - 1) + 2 (x1 - 2) = 0.
    matrix, target = np.array([[1.0, 1.0], [0.0, 1.0]]), np.array([1.0, 2.0])
    for start in ([0, 0], [1, 0], [3, 3]):
        assert nnls(matrix, target, np.array(start, float)) == pytest.approx([0, 1.5])
    assert nnls(np.ones((1, 1)), np.array([-1.0]), np.zeros(1)) == pytest.approx([0])
    assert nnls(np.zeros((3, 2)), np.ones(3), np.ones(2)) == pytest.approx([0, 0])
