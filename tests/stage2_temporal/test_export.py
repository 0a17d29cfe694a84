"""Export: each format, loaded by its own runtime, predicts what Keras does, with one output per target."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest

from features.errors import ConfigError, FramebankError
from features.store import Store
from stage2_temporal.__main__ import main
from stage2_temporal.fused.export import EXPORT_FORMATS, NamedInputs, NamedOutputs, export_model, servable
from stage2_temporal.fused.fuse import fuse_run
from tests.image_runs import train_on_images

COLUMNS = ("vx", "vy")
FRAMES = np.random.default_rng(0).integers(0, 256, (3, 4, 48, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module", params=["pooled_lstm", pytest.param("flatten_lstm", marks=pytest.mark.soak)])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on a few clips."""
    root = tmp_path_factory.mktemp("export")
    return train_on_images(root, {"Train": 3, "Validation": 1}, head={"name": request.param})


@pytest.fixture(scope="module")
def fused(run: Path) -> keras.Model:
    """The run's fused model."""
    with Store(run.parents[1] / "s.h5") as store:
        return fuse_run(run, store)[0]


@pytest.fixture(scope="module")
def model(fused: keras.Model) -> keras.Model:
    """The fused model, ready for export."""
    return servable(fused, COLUMNS)


@pytest.mark.parametrize("name", ["saved_model", "onnx", "litert"])
def test_each_format_equals_keras(name: str, fused: keras.Model, model: keras.Model, tmp_path: Path) -> None:
    path, difference = export_model(model, tmp_path, name, {"frames": FRAMES})
    assert difference <= 1e-4
    outputs = EXPORT_FORMATS[name].run(path, {"frames": FRAMES})  # again, from the file under its final name
    expected = fused.predict(FRAMES, verbose=0)
    for i, column in enumerate(COLUMNS):
        np.testing.assert_allclose(outputs[column], expected[:, i], atol=1e-4 * np.abs(expected).max())
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_format_that_computes_something_else_is_refused(
    model: keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved_model = EXPORT_FORMATS["saved_model"]

    def run_wrongly(path: Path, inputs: NamedInputs) -> NamedOutputs:
        return {name: value * 1.001 for name, value in saved_model.run(path, inputs).items()}

    monkeypatch.setitem(EXPORT_FORMATS, "saved_model", replace(saved_model, run=run_wrongly))
    with pytest.raises(FramebankError, match="and Keras give different results"):
        export_model(model, tmp_path, "saved_model", {"frames": FRAMES})
    assert not list(tmp_path.iterdir())


def test_missing_package_is_named(model: keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXPORT_FORMATS, "onnx", replace(EXPORT_FORMATS["onnx"], packages=("no_such_package",)))
    with pytest.raises(ConfigError, match="pip install no_such_package"):
        export_model(model, tmp_path, "onnx", {"frames": FRAMES})


def test_command_exports_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--run", str(run), "--format", "onnx"]) == 0
    assert "export/model.onnx: largest difference" in capsys.readouterr().out
    assert [p.name for p in (run / "export").iterdir()] == ["model.onnx"]
    assert main(["export", "--run", str(run), "--format", "caffe"]) == 2
    assert "saved_model, onnx, litert" in capsys.readouterr().err


def test_damaged_result_of_fine_tuning_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(run.parents[1], tmp_path / "root")
    copy = root / "runs" / "r"
    shutil.rmtree(copy / "export", ignore_errors=True)  # by another test
    shutil.copy(copy / "model.keras", copy / "finetuned.keras")  # the head alone
    for reason in ("of another model than", "cannot be loaded"):
        assert main(["export", "--run", str(copy), "--store", str(root / "s.h5"), "--format", "onnx"]) == 2
        assert f"{copy}/finetuned.keras: {reason}" in capsys.readouterr().err
        assert not (copy / "export").exists()
        (copy / "finetuned.keras").write_bytes((copy / "model.keras").read_bytes()[:-100])
