"""Sliding windows on cached per-frame features predict what whole windows of maps do."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from features.config import Config
from stage2_temporal.heads import find_head
from stage2_temporal.sliding.sliding_window import RunModels, SlidingWindow

LENGTH, SHAPE = 8, (4, 6, 3)
MAPS = np.random.default_rng(2).normal(size=(70, *SHAPE)).astype(np.float32)


def fitted(**settings: object) -> RunModels:
    """The models of a small run on the stream `motion`, fitted to random windows."""
    config = Config.model_validate({"head": {"streams": ["motion"], **settings}, "train": {"epochs": 1}})
    rng = np.random.default_rng(1)
    windows, targets = rng.normal(size=(30, LENGTH, *SHAPE)).astype(np.float32), rng.normal(size=(30, 2))
    return RunModels(None, find_head(config.head.name).from_config(config).fit(windows, targets).model_, config)


def slide(sliding: SlidingWindow, maps: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Predictions of all windows of a stream that comes in batches of `size` frames."""
    return np.concatenate(list(sliding.run({"motion": maps[i : i + size]} for i in range(0, len(maps), size))))


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "pooled_lstm", "units": 4, "dense": 0, "grid": (2, 3)},
        {"name": "gru", "units": 4, "dense": 0, "components": 4, "difference": True},
        {"name": "ridge", "grid": (2, 2), "difference": True, "lags": (1, 2, 4)},
    ],
)
def test_cached_features_predict_like_whole_windows(settings: dict[str, object]) -> None:
    models = fitted(**settings)
    for stride, size in ((1, 5), (3, 32)):  # batches shorter and longer than the lags reach back
        rows = np.arange(70 - (LENGTH - 1) * stride)[:, None] + stride * np.arange(LENGTH)
        sliding = SlidingWindow(models, rows)
        predictions, expected = slide(sliding, MAPS, size), models.stage_two.predict(MAPS[rows], verbose=0)
        np.testing.assert_allclose(predictions, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        assert all(buffer.ndim == 2 for buffer in sliding.buffers.values())  # no map is kept
        np.testing.assert_array_equal(slide(sliding, MAPS, size), predictions)  # a second stream starts afresh


def test_windows_that_hardly_overlap_or_are_uneven_are_not_cached() -> None:
    models = fitted(name="pooled_lstm", units=4, dense=0, difference=True)
    separate = np.arange(48).reshape(-1, LENGTH)
    uneven = np.arange(40)[:, None] + np.array([0, 1, 2, 3, 4, 5, 6, 8])
    for rows in (separate, uneven):
        sliding = SlidingWindow(models, rows)
        expected = models.stage_two.predict(MAPS[rows], verbose=0)
        np.testing.assert_allclose(slide(sliding, MAPS[:48], 16), expected, rtol=0, atol=1e-5)
        assert all(buffer.ndim == 4 for buffer in sliding.buffers.values())
