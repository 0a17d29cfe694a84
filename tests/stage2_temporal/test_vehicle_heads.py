"""Heads on a vehicle's track, on stores whose tracks were computed with a pinhole camera."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.base import clone
from sklearn.model_selection import GroupKFold, cross_val_score

from features.config import Config
from features.errors import ConfigError, DataError
from features.sequences import Camera, FrameSequence, Label
from features.store import Store
from features.tracks import Track, track_keys
from stage2_temporal.data.examples import load_examples
from stage2_temporal.data.task import read_task, store_origin
from stage2_temporal.heads import find_head
from stage2_temporal.heads.vehicle import BoxMLP, BoxRidge, window_tracks
from stage2_temporal.train import evaluate, train
from stage2_temporal.training.keras_models import load_model
from stage2_temporal.vehicle.camera_geometry import read_camera_geometry
from stage2_temporal.vehicle.geometry import GEOMETRY_NAMES
from stage2_temporal.vehicle.view_grounds import find_view_grounds
from tests.helpers import write_store

T = 8
COUNTS = {"train": 50, "validation": 10, "test": 25}


def make(
    path: Path, *, positions: bool = True, calibrated: bool = True, tracked: bool = True, hidden: int = 0, seed: int = 0
) -> Path:
    """Clips of 8 frames at 10 fps with two vehicles each, and boxes to 0.05 px; some tracks are lost or wrong."""
    rng = np.random.default_rng(seed)
    camera = Camera(714.0, 710.0, 675.0, 376.0)
    t = np.arange(1 - T, 1) / 10
    sequences, tracks = [], {}
    for split, count in COUNTS.items():
        for i in range(count):
            labels, clip_tracks = [], []
            for _ in range(2):
                x, y, vx, vy = rng.uniform(8, 75), rng.uniform(-5, 5), rng.normal(0.5, 2.3), rng.normal(0, 0.3)
                distance, width = x + vx * t, rng.normal(2.1, 0.1)
                centre, bottom = 675 + 714 * (y + vy * t) / distance, 340 + 1270 / distance
                half_width, height = 357 * width / distance, 714 * 1.6 / distance
                boxes = np.stack([centre - half_width, bottom - height, centre + half_width, bottom], axis=1)
                last_box = tuple(boxes[-1].tolist())
                boxes = boxes + rng.normal(0, 0.05, (T, 4))
                boxes[-1] = last_box
                confidence = np.append(rng.uniform(0.97, 1, T - 1), 1.0)
                if len(tracks) + len(clip_tracks) < hidden:
                    boxes[:-1] *= rng.uniform(0.4, 2.0)
                if rng.random() < 0.05:
                    boxes[:-1], confidence[:-1] = np.nan, 0
                labels.append(Label(T - 1, {"vx": vx, "vy": vy}, last_box, (x, y) if positions else None))
                clip_tracks.append(Track(boxes, confidence))
            sequence = FrameSequence(
                f"{split}/{i}", split, T, 10.0, (1280, 720), f"{split}{i}", tuple(labels),
                camera if calibrated else None,
            )  # fmt: skip
            sequences.append(sequence)
            tracks |= dict(zip(track_keys(sequence), clip_tracks, strict=True))
    maps = np.zeros((sum(COUNTS.values()) * T, 1, 2, 3), np.float32)
    return write_store(path, sequences, {"appearance": maps}, tracks=tracks if tracked else None)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("boxed") / "s.h5")


def config(head: str = "box_ridge", target: str = "velocity", **settings: Any) -> Config:
    small = {"epochs": 8, "batch": 32, "learning_rate": 3e-3}
    network = {} if head == "box_ridge" else {"units": 16, "dropout": 0.0}
    head_settings = {"name": head} | network | settings
    return Config.model_validate({"data": {"target": target}, "head": head_settings, "train": small})


def r2(head: Any, path: Path, chosen: Config) -> list[float]:
    """R² of each target on the test split."""
    X, y, _ = load_examples(path, chosen, ("test",))
    error = head.predict(X) - y
    return (1 - (error**2).mean(axis=0) / y.var(axis=0)).tolist()


def fitted(path: Path, chosen: Config) -> Any:
    X, y, _ = load_examples(path, chosen)
    V, v, _ = load_examples(path, chosen, ("validation",))
    return find_head(chosen.head.name).from_config(chosen).fit(X, y, validation=(V, v))


@pytest.fixture(scope="module")
def ridge(store: Path) -> Any:
    """A box_ridge fitted to the store; not to be changed."""
    return fitted(store, config())


@pytest.mark.parametrize("name", ["box_ridge", "box_mlp"])
def test_velocity_and_position_from_tracks(name: str, store: Path) -> None:
    chosen = config(name, "velocity+position")
    vx, vy, x, y = r2(fitted(store, chosen), store, chosen)
    assert vx > 0.9
    assert vy > 0.6
    assert x > 0.95
    assert y > 0.95


def test_noise_of_boxes_is_estimated_unless_the_config_gives_it(store: Path, ridge: Any, tmp_path: Path) -> None:
    estimated, given = ridge, fitted(store, config(box_noise=1.5))
    assert estimated.camera_geometry_.noise == pytest.approx(0.05, rel=0.3)
    given.save_extras(tmp_path)
    geometry = read_camera_geometry(tmp_path)
    assert (geometry.noise, geometry.noise_given) == (1.5, True)
    noisy = [Track(np.random.default_rng(i).normal((0, 0, 60, 50), 9, (T, 4)), np.ones(T)) for i in range(40)]
    assert find_view_grounds(geometry, {}, noisy).noise == 1.5
    assert find_view_grounds(estimated.camera_geometry_, {}, noisy).noise > 5
    X, _, _ = load_examples(store, config(), ("test",))
    column = GEOMETRY_NAMES.index("vx_deviation")
    certain, uncertain = (np.nanmedian(head.input_arrays(X)["geometry"][:, column]) for head in (estimated, given))
    assert uncertain > 3 * certain
    with pytest.raises(ValidationError, match="greater than 0"):
        config(box_noise=0)


def test_tracks_of_another_tracker_are_another_origin(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vehicle, car = config(), config(target="ego_speed")
    path = make(tmp_path / "s.h5")
    assert origins(store, vehicle, car) == origins(path, vehicle, car)
    monkeypatch.setattr("features.tracks.TRACKER_VERSION", 99)
    newer = make(tmp_path / "newer.h5")
    before, after = origins(store, vehicle, car), origins(newer, vehicle, car)
    assert before[0] != after[0]
    assert before[1] == after[1]


def origins(path: Path, *configs: Config) -> list[dict[str, Any]]:
    with Store(path) as store:
        task = read_task(config(), store)
        return [{k: v for k, v in store_origin(store, task, c).items() if k != "path"} for c in configs]


@pytest.mark.parametrize("calibrated", [True, False])
def test_without_positions_the_ground_is_estimated_from_velocities(calibrated: bool, tmp_path: Path) -> None:
    path = make(tmp_path / "s.h5", positions=False, calibrated=calibrated)
    head = fitted(path, config())
    assert head.camera_geometry_.ground.horizon == pytest.approx(340, abs=3)
    vx, vy = r2(head, path, config())
    assert vx > 0.9
    assert vy > 0.6


def test_without_calibration_the_camera_is_estimated_from_positions(tmp_path: Path) -> None:
    path = make(tmp_path / "s.h5", calibrated=False)
    head = fitted(path, config())
    assert (head.camera_geometry_.camera.fx, head.camera_geometry_.camera.cx) == pytest.approx((714, 675), rel=0.02)
    assert r2(head, path, config())[1] > 0.6


def test_wrong_tracks_of_hidden_vehicles_hardly_change_the_fit(store: Path, ridge: Any, tmp_path: Path) -> None:
    before = r2(ridge, store, config())
    hidden = make(tmp_path / "s.h5", hidden=2)
    after = r2(fitted(hidden, config()), store, config())
    assert after[0] > before[0] - 0.02
    assert after[1] > before[1] - 0.05


def test_prediction_for_a_lost_track_is_near_the_median(store: Path, ridge: Any) -> None:
    X, y, _ = load_examples(store, config(), ("test",))
    lost = np.isnan(window_tracks(X).boxes[:, :-1]).all(axis=(1, 2))
    assert lost.any()
    predictions = ridge.predict(X)
    assert np.isfinite(predictions).all()
    assert np.abs(predictions[lost] - np.median(y, axis=0)).max() < 1.5
    nothing = np.full((2, len(GEOMETRY_NAMES)), np.nan, np.float32)
    assert np.isfinite(ridge.model_.predict(nothing, verbose=0)).all()


def test_members_differ_and_their_mean_is_the_prediction(store: Path) -> None:
    chosen = config("box_mlp", layers=1)
    X, y, _ = load_examples(store, chosen)
    head = BoxMLP.from_config(chosen).fit(X, y)
    assert head.outcome_.history[-1].loss < head.outcome_.history[0].loss
    geometry = keras.Input((len(GEOMETRY_NAMES),), name="geometry")
    members = head._in_target_unit(head._member_outputs(head.vectors({"geometry": geometry}), 2))
    separate = keras.Model(geometry, members)
    separate.set_weights(head.model_.get_weights())
    vectors = head._geometry(X)
    outputs = separate.predict(vectors, verbose=0)
    assert outputs.shape == (len(X), 5, 2)
    assert np.abs(outputs[:, 0] - outputs[:, 1]).max() > 1e-3
    np.testing.assert_allclose(outputs.mean(axis=1), head.predict(X), rtol=1e-4, atol=1e-4)


def test_weights_of_overlapping_ranges_sum_to_one(store: Path) -> None:
    X, y, _ = load_examples(store, config("box_mlp"))
    head = BoxMLP.from_config(config("box_mlp", units=2)).set_params(epochs=1).fit(X, y)
    clean = np.array(head._linear_model.normaliser.clean(head._geometry(X)))
    column = GEOMETRY_NAMES.index("x")
    near, middle = np.exp(head._centres[0]) / 2, np.exp((head._centres[1] + head._centres[2]) / 2)
    clean[:3, column] = near, middle, np.exp(head._centres[2])
    weights = np.asarray(head._range_weights(clean))
    np.testing.assert_allclose(weights[:3], [[1, 0, 0], [0, 0.5, 0.5], [0, 0, 1]], atol=1e-5)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)


def test_scikit_learn_tools_work_on_vehicle_heads(store: Path, ridge: Any) -> None:
    X, y, groups = load_examples(store, config())
    scores = cross_val_score(BoxRidge(), X, y, groups=groups, cv=GroupKFold(3))
    assert scores.min() > 0.6
    vectors = ridge._geometry(X)
    plain = clone(ridge).fit(vectors, y)  # on plain geometry vectors
    np.testing.assert_allclose(plain.predict(vectors), ridge.predict(X), atol=1e-4)
    with pytest.raises(ValueError, match="geometry vectors"):
        BoxRidge().fit(np.ones((9, 5)), np.ones(9))


@pytest.mark.parametrize("name", ["box_ridge", pytest.param("box_mlp", marks=pytest.mark.soak)])
def test_run_keeps_its_camera_geometry_and_predictions(name: str, store: Path, tmp_path: Path) -> None:
    chosen = config(name).with_settings({"train.interval_folds": 2})  # more would take longer
    with Store(store) as opened:
        train(chosen, opened, read_task(chosen, opened), tmp_path / "r")
    before, figures = (
        (tmp_path / "r" / "predictions.csv").read_text(),
        json.loads((tmp_path / "r" / "metrics.json").read_text()),
    )
    assert figures["splits"]["test"]["model"]["ev"]["mean"] < figures["splits"]["test"]["constant"]["ev"]["mean"] / 5
    assert read_camera_geometry(tmp_path / "r").ground.horizon == pytest.approx(340, abs=1)
    assert [i.name for i in load_model(tmp_path / "r").inputs] == ["geometry"]
    (tmp_path / "r" / "predictions.csv").write_text("lost")
    with Store(store) as opened:
        evaluate(tmp_path / "r", opened)
    again = (tmp_path / "r" / "predictions.csv").read_text()
    for row, old in zip(csv.DictReader(again.splitlines()), csv.DictReader(before.splitlines()), strict=True):
        assert float(row["vx_pred"]) == pytest.approx(float(old["vx_pred"]), abs=1e-5)
    (tmp_path / "r" / "ground.json").write_text(json.dumps({"ground": {}}))
    with Store(store) as opened, pytest.raises(DataError, match=r"ground\.json: cannot be read as camera geometry"):
        evaluate(tmp_path / "r", opened)


def with_flow(path: Path, seed: int = 4) -> Path:
    """Clips with labels of ego speed, and a stream `motion` that grows with it."""
    rng = np.random.default_rng(seed)
    sequences, flow = [], []
    for split, count in COUNTS.items():
        for i in range(count):
            speed = rng.uniform(5, 30)
            flow.append(speed / 10 + rng.normal(0, 0.3, (T, 2, 2, 3)))
            label = Label(T - 1, {"ego_speed": speed})
            sequences.append(FrameSequence(f"{split}/{i}", split, T, 10.0, (1280, 720), f"{split}{i}", (label,)))
    maps = rng.normal(size=(len(flow) * T, 6, 8, 24)).astype(np.float32)
    return write_store(path, sequences, {"appearance": maps, "motion": np.concatenate(flow).astype(np.float32)})


def test_fusion_predicts_ego_speed_from_flow(tmp_path: Path) -> None:
    path = with_flow(tmp_path / "s.h5")
    chosen = config("fusion", "ego_speed", streams=("appearance", "motion"), difference=True)
    head = fitted(path, chosen)
    assert sorted(i.name for i in head.model_.inputs) == ["appearance", "motion"]
    assert r2(head, path, chosen)[0] > 0.97
    assert head.camera_geometry_ is None


def test_fusion_predicts_a_vehicle_from_its_track(store: Path, tmp_path: Path) -> None:
    chosen = config("fusion", "velocity+position").with_settings({"train.interval_folds": 0})  # else 11 trainings
    with Store(store) as opened:
        train(chosen, opened, read_task(chosen, opened), tmp_path / "r")
        figures, before = (
            json.loads((tmp_path / "r" / "metrics.json").read_text()),
            (tmp_path / "r" / "predictions.csv").read_text(),
        )
        evaluate(tmp_path / "r", opened)
    assert sorted(i.name for i in load_model(tmp_path / "r").inputs) == ["appearance", "geometry"]
    test = figures["splits"]["test"]
    assert test["model"]["ev"]["mean"] < test["constant"]["ev"]["mean"] / 5
    assert test["model"]["ep"]["mean"] < test["constant"]["ep"]["mean"] / 5
    again = csv.DictReader((tmp_path / "r" / "predictions.csv").read_text().splitlines())
    for row, old in zip(again, csv.DictReader(before.splitlines()), strict=True):
        assert float(row["vx_pred"]) == pytest.approx(float(old["vx_pred"]), abs=1e-4)


def test_store_without_tracks_is_refused(tmp_path: Path) -> None:
    X, y, _ = load_examples(make(tmp_path / "s.h5", tracked=False), config())
    with pytest.raises(ConfigError, match=r"no vehicle was tracked.*framebank extract"):
        BoxRidge().fit(X, y)
