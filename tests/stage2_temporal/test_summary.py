"""Windows that slide over summaries give what whole windows of maps give, and each frame is summarised once."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from features.config import Config
from stage2_temporal import heads
from stage2_temporal.sliding.frame_cache import covering_windows
from stage2_temporal.sliding.sliding_window import RunModels, SlidingWindow

LENGTH, SHAPE = 8, (4, 6, 3)


def parts(**settings: object) -> RunModels:
    small = {} if "name" in settings else {"units": 4, "dense": 0}
    config = Config.model_validate({"head": {"streams": ["motion"], **small, **settings}})
    rng = np.random.default_rng(1)
    examples, targets = rng.normal(size=(30, LENGTH, *SHAPE)).astype(np.float32), rng.normal(size=(30, 2))
    config = config.model_copy(update={"train": config.train.model_copy(update={"epochs": 1})})
    return RunModels(None, heads.find_head(config.head.name).of(config).fit(examples, targets).model_, config)


def slide(made: SlidingWindow, maps: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    return np.concatenate(list(made.run({"motion": maps[i : i + size]} for i in range(0, len(maps), size))))


@pytest.mark.parametrize("count", [1, 2, 7, 8, 32])
@pytest.mark.parametrize(("stride", "lag"), [(1, 0), (1, 1), (1, 4), (3, 2), (5, 1), (40, 1)])
def test_each_frame_has_a_place_with_those_before_it(count: int, stride: int, lag: int) -> None:
    rows, window, place = covering_windows(count, LENGTH, stride, lag)
    new = np.arange(count) + lag * stride
    assert rows.min() >= 0 and rows.max() < count + lag * stride
    np.testing.assert_array_equal(rows[window, place], new)
    for back in range(lag + 1):
        np.testing.assert_array_equal(rows[window, place - back], new - back * stride)
    width = LENGTH - lag
    assert len(rows) == sum(-(-len(range(i, count, stride)) // width) for i in range(min(stride, count)))


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("size", [5, 32])
@pytest.mark.parametrize(
    "settings",
    [
        {"name": "pooled_lstm", "grid": (2, 3)},
        {"name": "pooled_lstm", "grid": (2, 3), "difference": True},
        {"name": "gru", "components": 4, "difference": True},
        {"name": "ridge", "grid": (2, 2), "difference": True, "lags": (1, 2, 4)},
    ],
)
def test_the_answers_are_those_of_whole_windows(settings: dict[str, object], size: int, stride: int) -> None:
    maps = np.random.default_rng(2).normal(size=(70, *SHAPE)).astype(np.float32)
    rows = np.arange(70 - (LENGTH - 1) * stride)[:, None] + stride * np.arange(LENGTH)
    from_maps = parts(**settings)
    made = SlidingWindow(from_maps, rows)
    got, expected = slide(made, maps, size), from_maps.stage_two.predict(maps[rows], verbose=0)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert all(held.ndim == 2 for held in made.buffers.values())  # no map is kept for longer than its summary needs
    np.testing.assert_array_equal(slide(made, maps, size), got)  # a second run of the same slider begins anew


def test_a_frame_is_summarised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    frames: list[int] = []
    plain = covering_windows
    target = "stage2_temporal.sliding.frame_cache.covering_windows"
    monkeypatch.setattr(target, lambda count, *a: frames.append(count) or plain(count, *a))
    maps = np.zeros((70, *SHAPE), np.float32)
    rows = np.arange(70 - LENGTH + 1)[:, None] + np.arange(LENGTH)
    made = SlidingWindow(parts(name="pooled_lstm"), rows)
    slide(made, maps, 32)
    assert frames == [32, 32, 6]


def test_windows_apart_or_uneven_are_looked_at_as_they_are() -> None:
    maps = np.random.default_rng(2).normal(size=(48, *SHAPE)).astype(np.float32)
    from_maps = parts(name="pooled_lstm", difference=True)
    apart = np.arange(48).reshape(-1, LENGTH)
    uneven = np.arange(40)[:, None] + np.array([0, 1, 2, 3, 4, 5, 6, 8])
    for rows in (apart, uneven):
        made = SlidingWindow(from_maps, rows)
        expected = from_maps.stage_two.predict(maps[rows], verbose=0)
        np.testing.assert_allclose(slide(made, maps, 16), expected, rtol=0, atol=1e-5)
        assert all(held.ndim == 4 for held in made.buffers.values())
