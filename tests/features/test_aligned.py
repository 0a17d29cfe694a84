"""Arrays that TensorFlow reads in place."""

import numpy as np
import pytest

from features._common.aligned import ALIGNMENT, take_aligned


@pytest.mark.parametrize("shape", [(5, 3), (0, 3), (2, 4, 3)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_taken_entries_lie_at_an_aligned_address(shape: tuple[int, ...], dtype: type) -> None:
    values = np.arange(60, dtype=dtype).reshape(10, 3, 2)
    indices = np.random.default_rng(0).integers(0, len(values), shape)
    for _ in range(8):  # an unaligned array is at an aligned address once in four times
        taken = take_aligned(values, indices)
        assert taken.size == 0 or taken.ctypes.data % ALIGNMENT == 0
        np.testing.assert_array_equal(taken, values[indices])
        assert taken.dtype == dtype
