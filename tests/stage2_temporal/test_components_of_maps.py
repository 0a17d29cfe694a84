"""Runs on principal components that were stored in place of maps: the projection is a part of the fused model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from features.config import read_run_config
from features.errors import ConfigError
from features.store import Store
from features.streams import TRUNK
from stage2_temporal.data.task import read_task
from stage2_temporal.finetune.finetune import finetune
from stage2_temporal.fused.fuse import fuse_run
from stage2_temporal.predict import predict
from stage2_temporal.runs.results import read_predictions
from stage2_temporal.train import train
from tests.image_runs import image_config, train_on_images


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("components")
    train_on_images(root, {"Train": 3, "Test": 1}, extract={"keep": "pca 4"})
    return root


def test_fused_model_predicts_what_the_two_stages_do(root: Path) -> None:
    with Store(root / "s.h5") as store:
        fused, check = fuse_run(root / "runs/r", store)
        assert store.streams["appearance"].shape == (4,)
    assert fused.get_layer(TRUNK).output["appearance"].shape == (None, 4)
    assert check.output.relative < 1e-4


def test_predict_needs_no_store(root: Path) -> None:
    predict(root / "runs/r", output=root / "p.csv")
    tables = [read_predictions(path, ("vx", "vy")) for path in (root / "p.csv", root / "runs/r/predictions.csv")]
    predicted, expected = ([p.predicted for p in table] for table in tables)
    np.testing.assert_allclose(predicted, expected, atol=1e-3)


@pytest.mark.parametrize("views", [pytest.param(0, marks=pytest.mark.soak), 1])
def test_fine_tuning_trains_through_the_projection(root: Path, views: int) -> None:
    settings = {"finetune.unfreeze": 2, "finetune.epochs": 1, "finetune.views": views}
    config = read_run_config(root / "runs/r").with_settings(settings)
    with Store(root / "s.h5") as store:
        result = finetune(root / "runs/r", store, config)
    assert len(result.unfrozen) == 2 and result.best_epoch > 0


@pytest.mark.parametrize("head", [{"name": "correlation_lstm"}, {"name": "pooled_lstm", "grid": [2, 2]}])
def test_a_head_that_needs_cells_is_refused_by_name(root: Path, head: dict[str, object], tmp_path: Path) -> None:
    config = image_config(root / "clips", extract={"keep": "pca 4"}, head=head)
    with (
        Store(root / "s.h5") as store,
        pytest.raises(ConfigError, match=r"head\.grid does not fit the map.*at most 1 rows and 1 columns"),
    ):
        train(config, store, read_task(config, store), tmp_path / "r", report=False)
