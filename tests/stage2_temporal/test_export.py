"""Export: every format, loaded by its own runtime, gives what Keras gives, under the target's own names."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from test_fuse import parts, run

from features.errors import ConfigError, FramebankError
from stage2_temporal.__main__ import main as stage2
from stage2_temporal.fused import export as module
from stage2_temporal.fused.export import FORMATS, export_model, servable

COLUMNS = ("vx", "vy")
__all__ = ["run"]  # a fixture that both files use


@pytest.fixture(scope="module", params=["pooled_lstm", pytest.param("flatten_lstm", marks=pytest.mark.soak)])
def fused(request: pytest.FixtureRequest) -> tuple[keras.Model, np.ndarray]:
    made, _, frames, _ = parts("EfficientNetLite0", request.param)
    return made, frames[:3]


def test_unrolled_and_named_it_is_the_same_model(fused: tuple[keras.Model, np.ndarray]) -> None:
    model, frames = fused
    named = servable(model, COLUMNS).predict(frames, verbose=0)
    plain = model.predict(frames, verbose=0)
    for i, column in enumerate(COLUMNS):
        np.testing.assert_allclose(named[column], plain[:, i], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["saved_model", "onnx", "litert"])
def test_each_format_equals_keras(name: str, fused: tuple[keras.Model, np.ndarray], tmp_path: Path) -> None:
    model, frames = fused
    path, difference = export_model(servable(model, COLUMNS), tmp_path, name, {"frames": frames})
    assert difference <= 1e-4
    own = FORMATS[name][3](path, {"frames": frames})  # once more, from what lies under the final name
    plain = model.predict(frames, verbose=0)
    for i, column in enumerate(COLUMNS):
        np.testing.assert_allclose(own[column], plain[:, i], atol=1e-4 * np.abs(plain).max())
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_format_that_computes_something_else_is_refused(
    fused: tuple[keras.Model, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keras_name, ending, packages, run = FORMATS["saved_model"]

    def worse(path: Path, inputs: module.NamedInputs) -> module.NamedOutputs:
        return {name: value * 1.001 for name, value in run(path, inputs).items()}

    monkeypatch.setitem(FORMATS, "saved_model", (keras_name, ending, packages, worse))
    with pytest.raises(FramebankError, match="does not compute what Keras does"):
        export_model(servable(fused[0], COLUMNS), tmp_path, "saved_model", {"frames": fused[1]})
    assert not list(tmp_path.iterdir())


def test_what_is_not_installed_is_named(
    fused: tuple[keras.Model, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMATS, "onnx", ("onnx", ".onnx", ("no_such_package",), FORMATS["onnx"][3]))
    with pytest.raises(ConfigError, match="pip install no_such_package"):
        export_model(servable(fused[0], COLUMNS), tmp_path, "onnx", {"frames": fused[1]})


def test_the_command_exports_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stage2(["export_model", "--run", str(run), "--format", "onnx"]) == 0
    assert "export/model.onnx: largest difference" in capsys.readouterr().out
    assert [p.name for p in (run / "export").iterdir()] == ["model.onnx"]
    assert stage2(["export_model", "--run", str(run), "--format", "caffe"]) == 2
    assert "saved_model, onnx, litert" in capsys.readouterr().err
