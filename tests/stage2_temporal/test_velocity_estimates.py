"""Velocity estimates from geometry vectors: gaps, outliers, shrinkage, and a robust linear model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest

from features._common.types import Floats
from features.sequences import Camera
from stage2_temporal.vehicle.geometry import GEOMETRY_NAMES, geometry_vector
from stage2_temporal.vehicle.ground import Ground
from stage2_temporal.vehicle.velocity_estimates import (
    RARE_SHARE,
    RARE_SPREAD,
    UNKNOWN_DEVIATION,
    VELOCITIES,
    GeometryNormaliser,
    RobustLinearModel,
    fit_robust_linear_model,
    select_columns,
)

INDEX = {name: i for i, name in enumerate(GEOMETRY_NAMES)}
GROUND, CAMERA = Ground(340.0, 1270.0, 1500.0), Camera(714.0, 710.0, 675.0, 376.0)


def simulated(count: int, seed: int) -> tuple[Floats, Floats]:
    """Geometry vectors (n, F) of simulated vehicles, tracked to 0.05 px, and their velocities (n, 2)."""
    rng = np.random.default_rng(seed)
    t = np.arange(-7, 1) / 10
    vectors, targets = [], []
    for _ in range(count):
        x, y, vx, vy = rng.uniform(8, 80), rng.uniform(-5, 5), rng.normal(0.5, 2.3), rng.normal(0, 0.3)
        ahead = x + vx * t
        middle, foot = 675 + 714 * (y + vy * t) / ahead, 340 + 1270 / ahead
        w, h = 714 * 2.1 / ahead, 714 * 1.6 / ahead
        boxes = np.stack([middle - w / 2, foot - h, middle + w / 2, foot], axis=1) + rng.normal(0, 0.05, (8, 4))
        vectors.append(geometry_vector(boxes, np.full(8, 0.99), t, GROUND, CAMERA))
        targets.append((vx, vy))
    return np.array(vectors), np.array(targets)


def column(vectors: Floats, name: str) -> Floats:
    return vectors[:, INDEX[name]]


def predict(model: RobustLinearModel, vectors: Floats) -> Floats:
    return np.asarray(model(model.normaliser.clean(vectors.astype(np.float32))))


def test_shrinkage_by_hand() -> None:
    vectors, _ = simulated(20, 0)
    normaliser = replace(
        GeometryNormaliser.of(vectors), noise_scale=2.0, median=np.array([0.5, 0.0]), spread=np.array([2.0, 0.3])
    )
    vector = vectors[:1].astype(np.float32)
    vector[0, [INDEX["vx"], INDEX["vx_deviation"]]] = 0.5, 1.0  # at the median
    vector[0, [INDEX["vy"], INDEX["vy_deviation"]]] = 0.0, 0.15
    usual = 1 / (1 + (2.0 * 1.0 / 2.0) ** 2)  # 1 / (1 + (s / v)²)
    rare = 1 / (1 + (2.0 * 1.0 / RARE_SPREAD) ** 2)
    ratio = RARE_SHARE / (1 - RARE_SHARE) * np.sqrt((4 + 4) / (RARE_SPREAD**2 + 4))  # densities at the median
    expected = (usual + ratio * rare) / (1 + ratio)
    shrinkage = np.asarray(normaliser.shrinkage(vector))[0]
    assert float(shrinkage[0]) == pytest.approx(expected, rel=1e-5)
    assert float(shrinkage[1]) == pytest.approx(0.5, abs=0.01)  # deviation as large as the spread
    vector[0, INDEX["vx"]] = 2.5
    velocities = np.asarray(normaliser.estimates(vector))[0, :2]
    factors = np.asarray(normaliser.shrinkage(vector))[0]
    assert velocities.tolist() == pytest.approx([2.0 * factors[0], 0.0], rel=1e-5)


def test_oncoming_vehicle_unlike_any_in_training_keeps_its_velocity_if_it_is_certain() -> None:
    vectors, _ = simulated(50, 0)
    normaliser = replace(GeometryNormaliser.of(vectors), noise_scale=1.0)
    vector = np.repeat(vectors[:1].astype(np.float32), 3, axis=0)
    vector[:, INDEX["vx"]] = -28.0
    vector[:, INDEX["vx_deviation"]] = 1.0, 10.0, 100.0
    kept = np.asarray(normaliser.shrinkage(normaliser.clean(vector)))[:, 0]
    assert kept[0] > 0.98
    assert kept[2] < 0.05 < kept[1] < kept[0]


def test_unknown_values_become_medians_and_outliers_are_clipped() -> None:
    vectors, _ = simulated(50, 0)
    damaged = vectors.copy()
    damaged[3, [i for name, i in INDEX.items() if name not in ("seen", "confidence")]] = np.nan
    damaged[4, INDEX["vx_foot"]] = -900.0
    clean = np.asarray(GeometryNormaliser.of(vectors).clean(damaged.astype(np.float32)))
    assert np.isfinite(clean).all()
    assert column(clean, "vx_deviation")[3] == UNKNOWN_DEVIATION
    assert column(clean, "x_foot")[3] == pytest.approx(np.median(column(vectors, "x_foot")))
    low, high = np.quantile(column(vectors, "vx_foot"), (0.05, 0.95))
    assert column(clean, "vx_foot")[4] == pytest.approx(low - 2 * (high - low), rel=1e-5)
    np.testing.assert_allclose(clean[5:, :4], vectors[5:, :4], rtol=1e-6)


def test_column_without_any_value_is_ignored() -> None:
    vectors, targets = simulated(30, 0)
    vectors[:, INDEX["y"]] = np.nan
    assert np.isfinite(predict(fit_robust_linear_model(vectors, targets), vectors)).all()


def test_linear_model_recovers_velocities() -> None:
    vectors, targets = simulated(200, 1)
    test_vectors, test_targets = simulated(100, 2)
    errors = predict(fit_robust_linear_model(vectors, targets), test_vectors) - test_targets
    skill = 1 - np.mean(errors**2, axis=0) / test_targets.var(axis=0)
    assert skill[0] > 0.97
    assert skill[1] > 0.9


@pytest.mark.parametrize("wrong", [-60.0, 400.0])
def test_one_hidden_vehicle_hardly_changes_the_linear_model(wrong: float) -> None:
    """Ordinary least squares on the same estimates gets more than ten times the error."""
    vectors, targets = simulated(200, 1)
    test_vectors, test_targets = simulated(100, 2)
    with_outlier = vectors.copy()
    with_outlier[7, INDEX["vx"]] = wrong
    before, after = (
        np.mean((predict(fit_robust_linear_model(v, targets), test_vectors) - test_targets)[:, 0] ** 2)
        for v in (vectors, with_outlier)
    )
    assert after < before + 0.02
    inputs = [np.c_[select_columns(v, *VELOCITIES), np.ones(len(v))] for v in (with_outlier, test_vectors)]
    ordinary = inputs[1] @ np.linalg.lstsq(inputs[0], targets[:, 0], rcond=None)[0]
    assert np.mean((ordinary - test_targets[:, 0]) ** 2) > 10 * after


def test_noise_scale_is_larger_if_tracks_are_worse_than_their_deviation() -> None:
    vectors, targets = simulated(200, 1)
    worse = vectors.copy()
    rng = np.random.default_rng(3)
    for i in rng.permutation(200)[:40]:  # off by three times their deviation
        worse[i, INDEX["vx_deviation"]] = 1.5
        worse[i, INDEX["vx"]] += 3 * 1.5 * rng.normal()
    good, bad = (fit_robust_linear_model(v, targets).normaliser.noise_scale for v in (vectors, worse))
    assert good < bad


def test_graph_computes_the_same_and_loads_safely(tmp_path: Path) -> None:
    vectors, targets = simulated(40, 1)
    vectors[2] = np.nan
    linear_model = fit_robust_linear_model(vectors, targets)
    geometry = keras.Input((len(GEOMETRY_NAMES),), name="geometry")
    model = keras.Model(geometry, linear_model(linear_model.normaliser.clean(geometry)))
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras", safe_mode=True)
    expected = predict(linear_model, vectors)
    np.testing.assert_allclose(loaded.predict(vectors, verbose=0), expected, rtol=1e-5, atol=1e-5)
    normaliser = linear_model.normaliser
    states = np.asarray(normaliser.states(normaliser.clean(vectors.astype(np.float32))))
    assert states.shape == (40, 12)
    assert np.isfinite(states).all()
