"""What a geometry vector is worth inside a model: gaps, outliers, doubt, and a line that one of them doesn't move."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from features._common.types import Floats
from features.sequences import Camera
from stage2_temporal.vehicle.geometry import ESTIMATES, GEOMETRY_NAMES, Ground, geometry_vector
from stage2_temporal.vehicle.velocity_estimates import (
    LOST,
    NOISE_SCALES,
    GeometryNormaliser,
    fit_robust_linear_model,
    select_columns,
)

GROUND, CAMERA = Ground(340.0, 1270.0, 1500.0), Camera(714.0, 710.0, 675.0, 376.0)


def drawn(count: int, seed: int) -> tuple[Floats, Floats]:
    """Geometry vectors (n, F) of vehicles on their way, tracked to 0.05 px, and their velocities (n, 2)."""
    rng = np.random.default_rng(seed)
    t = np.arange(-7, 1) / 10
    vectors, targets = [], []
    for _ in range(count):
        x, y, vx, vy = rng.uniform(8, 80), rng.uniform(-5, 5), rng.normal(0.5, 2.3), rng.normal(0, 0.3)
        ahead = x + vx * t
        middle, foot = 675 + 714 * (y + vy * t) / ahead, 340 + 1270 / ahead
        w, h = 714 * 2.1 / ahead, 714 * 1.6 / ahead
        boxes = np.stack([middle - w / 2, foot - h, middle + w / 2, foot], axis=1) + rng.normal(0, 0.05, (8, 4))
        vectors.append(geometry_vector(boxes, np.full(8, 0.99), 10.0, GROUND, CAMERA))
        targets.append((vx, vy))
    return np.array(vectors), np.array(targets)


def at(vectors: Floats, name: str) -> Floats:
    return vectors[:, GEOMETRY_NAMES.index(name)]


def answer(line: object, vectors: Floats) -> Floats:
    return np.asarray(line(line.reading.clean(vectors.astype(np.float32))))  # type: ignore[operator, attr-defined]


def test_trust_by_hand() -> None:
    vectors, _ = drawn(20, 0)
    reading = GeometryNormaliser.of(vectors)
    one = vectors[:1].astype(np.float32)
    one[0, GEOMETRY_NAMES.index("x_foot")], one[0, GEOMETRY_NAMES.index("closing_deviation")] = 40.0, 0.05
    doubtful = GeometryNormaliser(reading.fill, reading.low, reading.high, reading.usual, noise_scale=0.5)
    assert float(doubtful.trust(one)[0, 0]) == pytest.approx(0.5)  # 1 / (1 + (0.5 · 40 · 0.05)²)
    velocities = np.asarray(doubtful.estimates(one))[0, :4]
    expected = [(at(one, n)[0] - u) / 2 for n, u in zip(ESTIMATES, reading.usual, strict=True)]
    assert velocities.tolist() == pytest.approx(expected, rel=1e-5)


def test_what_is_lost_is_as_usual_and_what_is_wild_is_held() -> None:
    vectors, _ = drawn(50, 0)
    gaps = vectors.copy()
    gaps[3, :19] = np.nan  # all but seen, confidence
    gaps[3, 21:] = np.nan
    gaps[4, GEOMETRY_NAMES.index("vx_foot")] = -900.0
    reading = GeometryNormaliser.of(vectors)
    clean = np.asarray(reading.clean(gaps.astype(np.float32)))
    assert np.isfinite(clean).all()
    assert at(clean, "closing_deviation")[3] == LOST
    assert at(clean, "x_foot")[3] == pytest.approx(np.median(at(vectors, "x_foot")))
    low, high = np.quantile(at(vectors, "vx_foot"), (0.05, 0.95))
    assert at(clean, "vx_foot")[4] == pytest.approx(low - 2 * (high - low), rel=1e-5)
    np.testing.assert_allclose(clean[5:, :4], vectors[5:, :4], rtol=1e-6)


def test_a_column_that_was_never_known_is_nought() -> None:
    vectors, targets = drawn(30, 0)
    vectors[:, GEOMETRY_NAMES.index("y_size")] = np.nan
    assert np.isfinite(answer(fit_robust_linear_model(vectors, targets), vectors)).all()


def test_the_line_gives_velocities_back() -> None:
    vectors, targets = drawn(200, 1)
    others, truth = drawn(100, 2)
    found = answer(fit_robust_linear_model(vectors, targets), others)
    assert 1 - np.mean((found - truth)[:, 0] ** 2) / truth[:, 0].var() > 0.97
    assert 1 - np.mean((found - truth)[:, 1] ** 2) / truth[:, 1].var() > 0.9


@pytest.mark.parametrize("wrong", [-60.0, 400.0])
def test_one_hidden_vehicle_does_not_move_it(wrong: float) -> None:
    """Ordinary least squares on the same estimates goes off by ten times as much and more."""
    vectors, targets = drawn(200, 1)
    others, truth = drawn(100, 2)
    bad = vectors.copy()
    bad[7, [GEOMETRY_NAMES.index("vx_foot"), GEOMETRY_NAMES.index("vx_size")]] = wrong
    before, after = (
        np.mean((answer(fit_robust_linear_model(v, targets), others) - truth)[:, 0] ** 2) for v in (vectors, bad)
    )
    assert after < before + 0.02
    least = np.linalg.lstsq(np.c_[select_columns(bad, *ESTIMATES), np.ones(200)], targets[:, 0], rcond=None)[0]
    moved = np.c_[select_columns(others, *ESTIMATES), np.ones(100)] @ least
    assert np.mean((moved - truth[:, 0]) ** 2) > 10 * after


def test_tracks_that_are_wrong_are_doubted_more() -> None:
    vectors, targets = drawn(200, 1)
    wrong = vectors.copy()
    rng = np.random.default_rng(3)
    for i in rng.permutation(200)[:40]:  # as wrong as they say, three times over
        off = 3 * at(wrong, "x_foot")[i] * 0.05 * rng.normal()
        wrong[i, [GEOMETRY_NAMES.index("vx_foot"), GEOMETRY_NAMES.index("vx_size")]] += off
        wrong[i, GEOMETRY_NAMES.index("closing_deviation")] = 0.05
    sure, unsure = (fit_robust_linear_model(v, targets).reading.noise_scale for v in (vectors, wrong))
    assert sure < unsure


def test_the_graph_is_the_arrays_and_loads_safely(tmp_path: object) -> None:
    vectors, targets = drawn(40, 1)
    vectors[2] = np.nan
    line = fit_robust_linear_model(vectors, targets)
    entry = keras.Input((len(GEOMETRY_NAMES),), name="geometry")
    model = keras.Model(entry, line(line.reading.clean(entry)))
    path = f"{tmp_path}/m.keras"
    model.save(path)
    again = keras.models.load_model(path, safe_mode=True)
    np.testing.assert_allclose(again.predict(vectors, verbose=0), answer(line, vectors), rtol=1e-5, atol=1e-5)
    states = np.asarray(line.reading.states(line.reading.clean(vectors.astype(np.float32))))
    assert states.shape == (40, 18)
    assert np.isfinite(states).all()
    assert len(NOISE_SCALES) == len(set(NOISE_SCALES))
