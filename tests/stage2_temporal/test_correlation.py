"""Local correlation between maps, and the LSTM on it: from the store, fused, sliding, exported and fine-tuned."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import cv2
import keras
import numpy as np
import pytest

from features.config import read_run_config
from features.errors import ConfigError
from features.store import Store
from stage2_temporal.data.correlation import CELL_FEATURES, correlate_frames, normalise_maps
from stage2_temporal.data.examples import StoreExamples, load_examples
from stage2_temporal.finetune.finetune import finetune
from stage2_temporal.fused.export import export_run
from stage2_temporal.fused.fuse import fuse_run
from stage2_temporal.heads.correlation import CorrelationLSTM
from stage2_temporal.sliding.sliding_window import SlidingWindow, load_run_models
from stage2_temporal.train import evaluate
from tests.image_runs import EARLY_CUT, image_config, read_rows, train_on_images

TAPS = EARLY_CUT | {"taps": ["conv_pw_1_relu"], "tap_pooling": 2}
HEAD = {
    "name": "correlation_lstm", "streams": ["appearance", "conv_pw_1_relu"], "grid": [2, 3], "search": [2, 1],
    "lags": [1, 2], "units": 4, "dense": 4, "members": 2,
}  # fmt: skip
LENGTH, BATCH = 5, 4


def texture(height: int, width: int, channels: int = 12) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=(height, width, channels)).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), 0.8)


def cells(
    maps: np.ndarray, lag: int, search: tuple[int, int] = (3, 2), grid: tuple[int, int] = (2, 2)
) -> dict[str, np.ndarray]:
    """The features of a grid over maps (T, h, w, c), by name: (T − lag, cells) each."""
    values = np.asarray(correlate_frames(normalise_maps(maps[None]), lag, grid, search))
    by_cell = values.reshape(len(maps) - lag, grid[0] * grid[1], len(CELL_FEATURES))
    return {name: by_cell[..., i] for i, name in enumerate(CELL_FEATURES)}


@pytest.mark.parametrize(("down", "right"), [(0, 0), (2, -1), (-3, 2)])
def test_shift_is_measured(down: int, right: int) -> None:
    large = texture(40, 44)
    maps = np.stack([large[10 - i * down : 34 - i * down, 10 - i * right : 30 - i * right] for i in range(2)])
    # the cell in the middle: content that comes in at the edge was nowhere before
    found = {name: float(values[0, 4]) for name, values in cells(maps, 1, grid=(3, 3)).items()}
    assert found["down"] == pytest.approx(down, abs=0.02)
    assert found["right"] == pytest.approx(right, abs=0.02)
    assert found["correlation"] > 0.99 and found["sharpness"] > 0.9
    assert found["log_length"] == pytest.approx(math.log(math.hypot(down, right) + 0.1), abs=0.02)


def test_shift_smaller_than_a_position_is_measured() -> None:
    large = cv2.GaussianBlur(texture(160, 176), (0, 0), 3)
    maps = np.stack([large[y : y + 96 : 4, 8:88:4] for y in (40, 38)])  # half a position
    np.testing.assert_allclose(cells(maps, 1)["down"], 0.5, atol=0.15)


def test_correlations_equal_those_computed_position_by_position() -> None:
    """With sharp peaks the mean correlation of a cell is that of each position's best partner, found by loops."""
    maps = np.random.default_rng(1).normal(size=(3, 6, 8, 5)).astype(np.float32)
    centred = maps - maps.mean(-1, keepdims=True)
    unit = centred / np.linalg.norm(centred, axis=-1, keepdims=True)
    best = np.zeros((6, 8))
    for y in range(6):
        for x in range(8):
            around = [
                unit[2, y, x] @ unit[0, y + a, x + b] if 0 <= y + a < 6 and 0 <= x + b < 8 else 0.0
                for a in range(-3, 4)
                for b in range(-2, 3)
            ]
            best[y, x] = max(around)
    expected = [best[:3, :4].mean(), best[:3, 4:].mean(), best[3:, :4].mean(), best[3:, 4:].mean()]
    np.testing.assert_allclose(cells(maps, 2)["correlation"][0], expected, rtol=5e-3)


def test_other_units_of_the_map_give_the_same_features() -> None:
    maps = np.random.default_rng(1).uniform(size=(2, 8, 8, 5)).astype(np.float32)
    for small, large in zip(cells(maps, 1).values(), cells(1000 * maps, 1).values(), strict=True):
        np.testing.assert_allclose(small, large, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_on_images(
        tmp_path_factory.mktemp("home"), {"Train": 8, "Validation": 2, "Test": 3},
        data={"target": "ego_speed"}, backbone=TAPS, extract={"batch": BATCH, "engine": "tensorflow"},
        window={"length": LENGTH}, head=HEAD, train={"epochs": 2, "schedule": "cosine"},
    )  # fmt: skip


def store_of(run: Path) -> Store:
    return Store(run.parents[1] / "s.h5")


def test_features_are_derived_once_and_equal_those_of_the_graph(run: Path) -> None:
    config = read_run_config(run)
    X, _, _ = load_examples(run.parents[1] / "s.h5", config)
    model = load_run_models(run).stage_two
    head = CorrelationLSTM.from_config(config).restore(model)
    assert head.has_stored_features(X)
    with store_of(run) as store:
        names = {f"{s}correlation2x3within2x1lag{lag}" for s in ("", "conv_pw_1_relu.") for lag in (1, 2)}
        assert names <= store.streams.keys()
    stored = head.stored_features(X)
    in_graph = keras.Model(model.input, {name: model.get_layer(name).output for name in stored})
    for name, values in in_graph.predict(head.input_arrays(X), verbose=0).items():
        np.testing.assert_allclose(stored[name], values, rtol=1e-4, atol=1e-4)
    reversed_windows = StoreExamples(X.source, replace(X.examples, rows=X.examples.rows[:, ::-1]))
    assert not head.has_stored_features(reversed_windows)


def test_evaluate_repeats_the_predictions(run: Path) -> None:
    before = read_rows(run / "predictions.csv")
    with store_of(run) as store:
        evaluate(run, store)
    for old, new in zip(before, read_rows(run / "predictions.csv"), strict=True):
        assert float(new["ego_speed_pred"]) == pytest.approx(float(old["ego_speed_pred"]), abs=1e-4)


def test_fused_model_equals_the_two_stages(run: Path) -> None:
    with store_of(run) as store:
        _, check = fuse_run(run, store)
    assert check.output.relative <= 1e-4


@pytest.mark.soak
def test_exported_models_equal_that_of_keras(run: Path) -> None:
    with store_of(run) as store:
        exported = export_run(run, store, read_run_config(run))
    assert exported and all(difference <= 1e-4 for _, difference in exported)


def test_each_frame_passes_the_trunk_once(run: Path) -> None:
    models, count = load_run_models(run), 5 * BATCH + 3
    assert models.trunk is not None and models.config.map_streams == ("appearance", "conv_pw_1_relu")
    frames = np.random.default_rng(0).integers(0, 256, (count, 48, 64, 3), dtype=np.uint8)
    window = SlidingWindow(models, np.arange(count - LENGTH + 1)[:, None] + np.arange(LENGTH), BATCH)
    values = np.concatenate(list(window.run({"frames": frames[i : i + BATCH]} for i in range(0, count, BATCH))))
    assert window.engine is not None and window.engine.passes == math.ceil(count / BATCH)
    maps = models.trunk.model.predict(frames, verbose=0)
    inputs = {name: maps[name][window.rows] for name in models.config.map_streams}
    expected = models.stage_two.predict(inputs, verbose=0)
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.soak
def test_fine_tuning_unfreezes_from_the_tap_upwards(run: Path) -> None:
    config = read_run_config(run)
    settings = config.finetune.model_copy(update={"unfreeze": "conv_dw_1", "epochs": 1})
    with store_of(run) as store:
        result = finetune(run, store, config.model_copy(update={"finetune": settings}))
    assert result.unfrozen[0] == "conv_dw_1" and result.equality["output"]["relative"] <= 1e-4


def test_mirrored_vectors_change_sides_if_the_targets_sign_is_known(run: Path) -> None:
    X, _, _ = load_examples(run.parents[1] / "s.h5", read_run_config(run))
    head = CorrelationLSTM(grid=(2, 3))
    head._read_settings()
    vectors = np.random.default_rng(0).normal(size=(len(X), LENGTH - 1, 6 * 6)).astype(np.float32)
    cells = vectors.reshape(len(X), LENGTH - 1, 2, 3, 6)
    mirrored = head.mirrored_vectors(vectors).reshape(cells.shape)[:, :, :, ::-1]
    np.testing.assert_array_equal(mirrored[..., 0], -cells[..., 0])
    np.testing.assert_array_equal(mirrored[..., 1:], cells[..., 1:])
    np.testing.assert_array_equal(head._mirror_signs(X), [1.0])
    assert head._mirror_signs(StoreExamples(X.source, replace(X.examples, columns=("yaw",)))) is None
    moving = StoreExamples(X.source, replace(X.examples, columns=("vx", "vy")))
    np.testing.assert_array_equal(head._mirror_signs(moving), [1.0, -1.0])


def test_window_shorter_than_every_lag_is_refused(run: Path) -> None:
    config = image_config(run.parents[1] / "clips", data={"target": "ego_speed"}, window={"length": 1})
    X, y, _ = load_examples(run.parents[1] / "s.h5", config)
    with pytest.raises(ConfigError, match="at least 2 frames"):
        CorrelationLSTM(grid=(2, 3), members=1).fit(X, y)
