"""Runs trained on maps in int8: fused, and predicting, in float32."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from features.config import read_run_config
from features.store import Store
from stage2_temporal.__main__ import main
from stage2_temporal.sliding.sliding_window import load_run_models
from tests.helpers import picture
from tests.image_runs import read_rows, train_on_images, write_video

pytestmark = pytest.mark.soak
pytest.importorskip("openvino")
pytest.importorskip("nncf")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_on_images(
        tmp_path_factory.mktemp("int8"),
        {"Train": 3, "Validation": 1},
        extract={"precision": "int8"},
        train={"epochs": 1},
    )


def test_fuse_says_what_quantisation_costs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fuse", "--run", str(run)]) == 0
    check = json.loads((run / "fused.json").read_text())
    assert f"int8 and storing the maps account for {check['rounding']:.2g}" in capsys.readouterr().out
    assert 1e-4 < check["rounding"] < 0.1 and 1e-4 < check["trunk"]["relative"] < 0.1
    with Store(run.parents[1] / "s.h5") as store:
        measured = store.header.trunk["quantisation_error"]["appearance"]
    assert check["trunk"]["relative"] < 2 * measured


def test_predict_needs_no_quantised_network(run: Path, tmp_path: Path) -> None:
    models = load_run_models(run)
    assert read_run_config(run).extract.precision == "int8"
    assert models.trunk is not None and models.trunk.recipe.precision == "float32"
    video = write_video(tmp_path / "v.avi", [picture(i, (160, 120)) for i in range(6)], fps=20.0)
    assert main(["predict", "--run", str(run), "--input", str(video), "--output", str(tmp_path / "t.csv")]) == 0
    assert len(read_rows(tmp_path / "t.csv")) > 0
