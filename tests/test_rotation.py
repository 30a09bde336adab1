"""The fast transform against the matrix it stands for."""

import numpy as np
import pytest

from hetero.kv.rotation import hadamard, rotate


@pytest.mark.parametrize("size", [2, 32, 64, 128, 256, 512])
def test_matrix_is_symmetric_and_its_own_inverse(size):
    h = hadamard(size).astype(np.float64)
    np.testing.assert_array_equal(h, h.T)
    np.testing.assert_allclose(h @ h, np.eye(size), atol=1e-6)


@pytest.mark.parametrize("size", [32, 64, 128, 256, 512])
@pytest.mark.parametrize("rows", [1, 7, 1025])
def test_fast_transform_equals_the_matrix_product(size, rows):
    x = np.random.default_rng(0).standard_normal((rows, 2 * size), dtype=np.float32)
    exact = (x.astype(np.float64).reshape(-1, size) @ hadamard(size)).reshape(x.shape)
    np.testing.assert_allclose(rotate(x, size), exact, atol=2e-6)


def test_input_is_left_alone():
    x = np.ones((3, 128), np.float32)
    rotate(x, 128)
    assert (x == 1).all()


def test_a_size_that_is_no_power_of_two_is_refused():
    with pytest.raises(ValueError, match="need a power of two, have 96"):
        hadamard(96)
