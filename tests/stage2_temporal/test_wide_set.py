"""The wide sample set, whose clips have several cameras and frame sizes, in one store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from features.config import Config
from features.store import Store
from stage1_extract.datasets import scan
from stage1_extract.extract import extract
from stage1_extract.sample import render_sample_set
from stage2_temporal.data.examples import load_examples
from stage2_temporal.data.task import read_task
from stage2_temporal.predict import predict
from stage2_temporal.train import train
from tests.image_runs import image_config, read_rows

HEADS = {
    "maps": {"name": "ridge", "streams": ["appearance"]},
    "flow": {"name": "ridge", "streams": ["motion"]},
    "normalised flow": {"name": "ridge", "streams": ["motion"], "motion": "normalised", "grid": [6, 4]},
    "road": {"name": "ridge", "streams": ["ground_flow"]},
}


def wide_config(home: Path, head: str, target: str = "ego_speed") -> Config:
    return image_config(
        home / "data",
        data={"layout": "sample", "sample": "wide", "fps": 10.0, "target": target},
        extract={"motion": True, "ground_flow": True},
        window={"length": 8},
        head=HEADS.get(head, {"name": head}),
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered clips in `data` and their store `s.h5`."""
    home = tmp_path_factory.mktemp("wide")
    render_sample_set(home / "data", kind="wide", seed=1, train=8, validation=0, test=6, workers=1)
    config = wide_config(home, "maps")
    extract(config, home / "s.h5", scan(config.data))
    return home


def test_sequences_keep_their_cameras_and_have_features_of_one_shape(home: Path) -> None:
    with Store(home / "s.h5") as store:
        assert len({s.size for s in store.sequences}) > 1
        assert len({s.camera for s in store.sequences}) > 4
        assert all(s.camera and s.camera.horizon and s.camera.height for s in store.sequences)
        assert store.frames == 14 * 8 and {"appearance", "motion", "ground_flow"} <= set(store.streams)


@pytest.mark.parametrize("head", list(HEADS))
def test_heads_train_on_all_cameras_and_predict_from_images_what_the_store_gives(head: str, home: Path) -> None:
    config = wide_config(home, head)
    run = home / "runs" / head
    with Store(home / "s.h5") as store:
        train(config, store, read_task(config, store), run, report=False)
    predict(run, None, home / f"{head}.csv")
    rows, expected = read_rows(home / f"{head}.csv"), read_rows(run / "predictions.csv")
    assert len(rows) == len(expected) == 14
    for a, b in zip(rows, expected, strict=True):
        assert a["sequence"] == b["sequence"]
        assert float(a["ego_speed_pred"]) == pytest.approx(float(b["ego_speed_pred"]), abs=1e-3)


def test_vehicles_have_the_ground_of_their_clip(home: Path) -> None:
    config = wide_config(home, "box_ridge", "velocity")
    with Store(home / "s.h5") as store:
        train(config, store, read_task(config, store), home / "runs/boxes", report=False)
    rows = [row for row in read_rows(home / "runs/boxes/predictions.csv") if row["split"] == "test"]
    errors = [float(row["vx_pred"]) - float(row["vx_true"]) for row in rows]
    assert np.sqrt(np.mean(np.square(errors))) < 0.5 * np.std([float(row["vx_true"]) for row in rows])


def test_speed_curve_is_of_the_true_speed_whatever_the_camera(home: Path) -> None:
    """Nothing is trained: the mean of the curve's axis by its probabilities."""
    X, y, _ = load_examples(home / "s.h5", wide_config(home, "road"), ("train", "test"))
    curves = X.stream("ground_flow")[:, :, 0, 0].astype(np.float64)
    errors = np.median(curves @ np.arange(-3.0, 50.0), axis=1) - y.ravel()
    assert np.median(np.abs(errors)) < 0.3
    assert np.abs(errors).max() < 3
