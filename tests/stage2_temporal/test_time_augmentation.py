"""Windows at other times: their frames and targets by hand, and heads that train on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from features.config import Config, DataConfig, TrainConfig, WindowConfig
from features.errors import ConfigError
from features.sequences import FrameSequence, Label
from stage2_temporal.data.examples import load_examples
from stage2_temporal.data.time_augmentation import augment_windows
from stage2_temporal.heads import find_head
from tests.helpers import write_store

ROWS = np.array([[10, 11, 12], [21, 22, 23]])
FIRST, LAST = np.array([8, 20]), np.array([14, 25])


def test_without_options_the_windows_stay_as_they_are() -> None:
    windows = augment_windows(ROWS, FIRST, LAST, ("ego_speed",), TrainConfig())
    np.testing.assert_array_equal(windows.rows, ROWS)
    assert windows.origin.tolist() == [0, 1]
    assert windows.factor.tolist() == [[1], [1]]


def test_reversed_windows_negate_relative_velocities() -> None:
    windows = augment_windows(ROWS, FIRST, LAST, ("vx", "vy"), TrainConfig(reverse=True))
    np.testing.assert_array_equal(windows.rows, [*ROWS, *ROWS[:, ::-1]])
    assert windows.factor.tolist() == [[1, 1], [1, 1], [-1, -1], [-1, -1]]


def test_shifted_windows_stay_within_their_sequence() -> None:
    windows = augment_windows(ROWS, FIRST, LAST, ("ego_speed",), TrainConfig(shift=2))
    np.testing.assert_array_equal(windows.rows, [*ROWS, [9, 10, 11], [20, 21, 22], [8, 9, 10]])
    assert windows.origin.tolist() == [0, 1, 0, 1, 0]
    assert np.unique(windows.factor).tolist() == [1]


def test_twice_the_stride_doubles_velocities_but_not_positions() -> None:
    windows = augment_windows(ROWS, FIRST, LAST, ("vx", "x"), TrainConfig(strides=(2,)))
    np.testing.assert_array_equal(windows.rows, [*ROWS, [8, 10, 12]])  # the other would start before its sequence
    assert windows.factor.tolist() == [[1, 1], [1, 1], [2, 1]]
    narrower = augment_windows(ROWS * 2, FIRST * 2, LAST * 2, ("vx",), TrainConfig(strides=(1,)))
    assert narrower.factor[2:].tolist() == [[0.5], [0.5]]


@pytest.mark.parametrize(
    ("columns", "options"),
    [
        (("ego_speed",), TrainConfig(reverse=True)),
        (("vx", "x"), TrainConfig(shift=1)),
        (("distance",), TrainConfig(strides=(2,))),
    ],
)
def test_target_that_would_change_in_an_unknown_way_is_refused(columns: tuple[str, ...], options: TrainConfig) -> None:
    with pytest.raises(ConfigError, match=f"its effect on {columns[-1]} is unknown"):
        augment_windows(ROWS, FIRST, LAST, columns, options)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of 12 frames whose vectors depend only on how far the scene has moved: v · t along one axis."""
    rng = np.random.default_rng(0)
    sequences, maps = [], []
    for i in range(8):
        v = rng.uniform(-3, 3)
        place = rng.normal() + v / 10 * np.arange(12)[:, None]
        maps.append(np.concatenate([place, np.sin(place)], axis=1))
        label = Label(11, {"vx": v, "vy": 0.1 * v})
        sequences.append(FrameSequence(f"c{i}", "train", 12, 10.0, (64, 36), f"d{i}", (label,)))
    values = np.concatenate(maps).astype(np.float32)[:, None, None]
    return write_store(tmp_path_factory.mktemp("r") / "s.h5", sequences, {"appearance": values})


@pytest.mark.parametrize("options", [{"reverse": True}, {"shift": 3}, {"strides": (2,)}])
def test_heads_train_on_augmented_windows_with_matching_targets(path: Path, options: dict[str, object]) -> None:
    X, y, _ = load_examples(path, Config(data=DataConfig(target="velocity"), window=WindowConfig(length=4)))
    augmented, origin, factor = X.augmented(TrainConfig.model_validate(options))
    assert len(augmented) > len(X)
    place = np.asarray(augmented.stream("appearance"), float)[..., 0, 0, 0]
    np.testing.assert_allclose((place[:, 1] - place[:, 0]) * 10, (y[origin] * factor)[:, 0], atol=1e-3)
    assert find_head("ridge")(difference=True, **options).fit(X, y).predict(X).shape == (8, 2)


def test_plain_arrays_and_heads_that_use_timestamps_are_refused(path: Path) -> None:
    X, y, _ = load_examples(path, Config(data=DataConfig(target="velocity"), window=WindowConfig(length=4)))
    with pytest.raises(ConfigError, match="got a plain array"):
        find_head("ridge")(reverse=True).fit(np.ones((5, 2)), np.arange(5.0))
    with pytest.raises(ConfigError, match="got BoxRidge"):
        find_head("box_ridge")(reverse=True).fit(X, y)
