"""The graphs that heads build: features, vectors, the store's top, and scales."""

from __future__ import annotations

import math
from pathlib import Path

import keras
import numpy as np
import pytest

from features.config import Config
from features.errors import ConfigError, StoreError
from features.head_config import FlattenLSTMConfig, PooledLSTMConfig
from features.store_tables import TopRecord
from stage2_temporal.heads import find_head
from stage2_temporal.training.keras_models import rebuild_top
from stage2_temporal.training.scaling import Scale, target_scale, vector_scale
from tests.stage2_helpers import build_model, conv_top

SHAPE = (4, 3, 5, 16)
MAPS = np.random.default_rng(0).normal(size=(6, *SHAPE)).astype(np.float32)


TOP = conv_top(SHAPE[1:])


def pooled_vectors(grid: tuple[int, int], difference: bool) -> np.ndarray:
    model = build_model(SHAPE, PooledLSTMConfig(grid=grid, difference=difference), 1)
    return np.asarray(keras.Model(model.input, model.get_layer("lstm").input)(MAPS))


def test_cells_are_means_of_their_part_of_the_map() -> None:
    np.testing.assert_allclose(pooled_vectors((1, 1), False), MAPS.mean(axis=(2, 3)), atol=1e-6)
    cells = []
    for i in range(2):
        for j in range(3):  # 3 rows into 2: 0–1, 1–2; 5 columns into 3: 0–1, 1–3, 3–4
            rows = slice(math.floor(i * 3 / 2), math.ceil((i + 1) * 3 / 2))
            columns = slice(math.floor(j * 5 / 3), math.ceil((j + 1) * 5 / 3))
            cells.append(MAPS[:, :, rows, columns].mean(axis=(2, 3)))
    np.testing.assert_allclose(pooled_vectors((2, 3), False), np.concatenate(cells, axis=-1), atol=1e-6)


def test_difference_is_the_mean_absolute_change_of_each_cell() -> None:
    plain, both = pooled_vectors((1, 1), False), pooled_vectors((1, 1), True)
    np.testing.assert_array_equal(both[..., :16], plain)
    change = np.abs(MAPS[:, 1:] - MAPS[:, :-1]).mean(axis=(2, 3))
    np.testing.assert_allclose(both[:, 1:, 16:], change, atol=1e-6)
    np.testing.assert_array_equal(both[:, 0, 16:], both[:, 1, 16:])


def test_difference_of_a_single_frame_is_refused() -> None:
    assert build_model((1, 3, 5, 16), PooledLSTMConfig(units=4), 1)(MAPS[:, :1]).shape == (6, 1)
    with pytest.raises(ConfigError, match="at least 2 frames"):
        build_model((1, 3, 5, 16), PooledLSTMConfig(units=4, difference=True), 1)


def test_flatten_equals_a_time_distributed_flatten() -> None:
    model = build_model(SHAPE, FlattenLSTMConfig(units=4), 1)
    flat = keras.Model(model.input, model.get_layer("flatten").output)
    expected = keras.layers.TimeDistributed(keras.layers.Flatten())(MAPS)
    np.testing.assert_array_equal(np.asarray(flat(MAPS)), np.asarray(expected))


def test_top_applied_to_folded_time_equals_the_top_applied_per_frame() -> None:
    record = TOP
    model = build_model(SHAPE, FlattenLSTMConfig(units=4), 2, top=record)
    inner = keras.Model(model.input, model.get_layer("flatten").output)
    frame_by_frame = np.stack([rebuild_top(record)(MAPS[:, t], training=False) for t in range(4)], axis=1)
    np.testing.assert_allclose(np.asarray(inner(MAPS)), frame_by_frame.reshape(6, 4, -1), atol=1e-5)


@pytest.mark.parametrize("name", ["flatten_lstm", "pooled_lstm"])
def test_model_with_top_is_saved_and_loaded_in_safe_mode(name: str, tmp_path: Path) -> None:
    pooled = {"grid": (2, 2), "difference": True} if name == "pooled_lstm" else {}
    head = Config.model_validate({"head": {"name": name, "units": 4, **pooled}}).head
    scale = Scale(np.array([3.0, -1.0]), np.array([0.5, 7.0]))
    model = build_model(SHAPE, head, 2, top=TOP, target=scale)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras", safe_mode=True)
    np.testing.assert_array_equal(loaded.predict_on_batch(MAPS), model.predict_on_batch(MAPS))


def test_standardised_vectors_have_mean_0_and_deviation_1() -> None:
    maps = (MAPS * 40 + 300).astype(np.float32)
    head = find_head("pooled_lstm")(units=4, epochs=1, batch=4).fit(maps, np.arange(6.0))
    model = head.model_
    values = np.asarray(keras.Model(model.input, model.get_layer("standardise").output)(maps))
    np.testing.assert_allclose(values.mean(axis=(0, 1)), 0, atol=1e-3)
    np.testing.assert_allclose(values.std(axis=(0, 1)), 1, atol=1e-3)


def test_vector_scale_over_batches_bounds_the_variance_of_dead_features() -> None:
    values = np.random.default_rng(1).normal(1e4, 2, size=(30, 4, 3)).astype(np.float32)
    values[..., 2] = 5  # never varies
    scale = vector_scale([values[:7], values[7:]])
    np.testing.assert_allclose(scale.mean, values.astype(np.float64).mean(axis=(0, 1)))
    np.testing.assert_allclose(scale.deviation[:2], values.astype(np.float64).std(axis=(0, 1))[:2])
    assert scale.deviation[2] == pytest.approx(math.sqrt(1e-4 * (scale.deviation[:2] ** 2).sum() / 3), rel=1e-3)
    assert vector_scale([np.ones((3, 2, 2))]).deviation.tolist() == [1, 1]


def test_target_that_does_not_vary_is_not_scaled() -> None:
    scale = target_scale(np.array([[1.0, 5.0], [3.0, 5.0]]))
    assert scale.mean.tolist() == [2, 5]
    assert scale.deviation.tolist() == [1, 1]


def test_output_is_scaled_to_the_unit_of_the_target() -> None:
    keras.utils.set_random_seed(0)
    plain = build_model(SHAPE, PooledLSTMConfig(units=4), 2)
    scaled = build_model(SHAPE, PooledLSTMConfig(units=4), 2, target=Scale(np.array([3.0, -1.0]), np.array([0.5, 7.0])))
    scaled.set_weights(plain.get_weights())
    expected = plain.predict_on_batch(MAPS) * [0.5, 7] + [3, -1]
    np.testing.assert_allclose(scaled.predict_on_batch(MAPS), expected, atol=1e-5)


def test_top_is_trainable_even_if_it_was_saved_frozen() -> None:
    model = keras.models.model_from_json(TOP.architecture)
    model.trainable = False
    top = rebuild_top(TopRecord(model.to_json(), TOP.weights))
    assert len(top.trainable_weights) == 3
    for got, stored in zip(top.get_weights(), TOP.weights, strict=True):
        np.testing.assert_array_equal(got, stored)


def test_top_with_code_or_wrong_weights_is_refused() -> None:
    maps = keras.Input((2,))
    with_code = keras.Model(maps, keras.layers.Lambda(lambda x: x * 2)(maps))
    with pytest.raises(StoreError, match="cannot be rebuilt"):
        rebuild_top(TopRecord(with_code.to_json(), []))
    with pytest.raises(StoreError, match="cannot be rebuilt"):
        rebuild_top(TopRecord(TOP.architecture, TOP.weights[:-1]))


def test_unknown_head_and_too_fine_grid_are_refused() -> None:
    with pytest.raises(ConfigError, match="flatten_lstm, pooled_lstm"):
        find_head("transformer")
    with pytest.raises(ConfigError, match="at most 3 rows and 5 columns"):
        build_model(SHAPE, PooledLSTMConfig(grid=(4, 5)), 1)
