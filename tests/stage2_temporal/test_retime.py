"""Windows at other times: their frames and their targets by hand, and a head that gains by them."""

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


def test_themselves_come_first_and_alone() -> None:
    made = augment_windows(ROWS, FIRST, LAST, ("ego_speed",), TrainConfig())
    np.testing.assert_array_equal(made.rows, ROWS)
    assert made.of.tolist() == [0, 1]
    assert made.factor.tolist() == [[1], [1]]


def test_backwards_relative_velocity_turns_its_sign() -> None:
    made = augment_windows(ROWS, FIRST, LAST, ("vx", "vy"), TrainConfig(reverse=True))
    np.testing.assert_array_equal(made.rows, [*ROWS, *ROWS[:, ::-1]])
    assert made.factor.tolist() == [[1, 1], [1, 1], [-1, -1], [-1, -1]]


def test_earlier_windows_stay_within_their_sequence() -> None:
    made = augment_windows(ROWS, FIRST, LAST, ("ego_speed",), TrainConfig(shift=2))
    np.testing.assert_array_equal(made.rows, [*ROWS, [9, 10, 11], [20, 21, 22], [8, 9, 10]])
    assert made.of.tolist() == [0, 1, 0, 1, 0]
    assert np.unique(made.factor).tolist() == [1]


def test_a_window_twice_as_wide_shows_twice_the_speed_at_the_same_place() -> None:
    made = augment_windows(ROWS, FIRST, LAST, ("vx", "x"), TrainConfig(strides=(2,)))
    np.testing.assert_array_equal(made.rows, [*ROWS, [8, 10, 12]])  # the other would begin before its sequence
    assert made.factor.tolist() == [[1, 1], [1, 1], [2, 1]]
    wide = augment_windows(ROWS * 2, FIRST * 2, LAST * 2, ("vx",), TrainConfig(strides=(1,)))
    assert wide.factor[2:].tolist() == [[0.5], [0.5]]


@pytest.mark.parametrize(
    ("columns", "options"),
    [
        (("ego_speed",), TrainConfig(reverse=True)),
        (("x", "y"), TrainConfig(reverse=True)),
        (("vx", "x"), TrainConfig(shift=1)),
        (("distance",), TrainConfig(strides=(2,))),
    ],
)
def test_targets_of_which_it_is_not_known_are_refused(columns: tuple[str, ...], options: TrainConfig) -> None:
    with pytest.raises(ConfigError, match="is not known"):
        augment_windows(ROWS, FIRST, LAST, columns, options)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of 12 frames whose vectors say nothing but how far the scene has moved: v · t along one axis."""
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
def test_a_head_trains_on_them_and_the_labels_fit(path: Path, options: dict[str, object]) -> None:
    """A plain line through exact data: were a label wrong, its residual would not be nothing."""
    X, y, _ = load_examples(path, Config(data=DataConfig(target="velocity"), window=WindowConfig(length=4)))
    more, of, factor = X.retimed(TrainConfig.model_validate(options))
    assert len(more) > len(X)
    moved = np.asarray(more.stream("appearance"), float)[..., 0, 0, 0]
    np.testing.assert_allclose((moved[:, 1] - moved[:, 0]) * 10, (y[of] * factor)[:, 0], atol=1e-3)
    head = find_head("flatten_lstm")(units=4, dense=0, epochs=1, batch=64, **options).fit(X, y)
    assert head.predict(X).shape == (8, 2)
    assert find_head("ridge")(difference=True, **options).fit(X, y).predict(X).shape == (8, 2)


def test_arrays_and_heads_that_are_told_the_time_are_refused(path: Path) -> None:
    X, y, _ = load_examples(path, Config(data=DataConfig(target="velocity"), window=WindowConfig(length=4)))
    with pytest.raises(ConfigError, match="got a plain array"):
        find_head("ridge")(reverse=True).fit(np.ones((5, 2)), np.arange(5.0))
    with pytest.raises(ConfigError, match="got BoxRidge"):
        find_head("box_ridge")(reverse=True).fit(X, y)
