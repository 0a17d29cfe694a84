"""Export: the fused model for serving, each format loaded again by its own runtime and compared with Keras.

The recurrent layers are unrolled, since LiteRT and OpenVINO stumble over the loop of a Keras LSTM; the weights and the
numbers are the same. Every format takes `frames`, uint8 (batch, T, height, width, 3), and gives one output a target
column, float32 (batch,). What a head sees besides or instead of frames its model takes by name: `geometry`, float32
(batch, F), what `vehicle.geometry` makes of a track, and flow as it is stored, float32 (batch, T, …): `motion`, or
`features` where a head other than fusion sees nothing else.
"""

from __future__ import annotations

import importlib.util
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from features.config import Config
from features.errors import ConfigError, FramebankError
from features.store import Store
from features.streams import APPEARANCE
from stage1_extract.engines.openvino import openvino_core
from stage2_temporal.fused.fuse import (
    FRAMES_INPUT,
    TOLERANCE,
    build_fused_model,
    fuse_run,
    load_window_images,
    stored_inputs,
    stored_windows,
)
from stage2_temporal.heads.graph import model_inputs
from stage2_temporal.training.keras_models import load_model

NamedOutputs = Mapping[str, NDArray[np.float32]]
NamedInputs = Mapping[str, NDArray[Any]]


def export_run(
    run: Path, store: Store, config: Config, formats: list[str] | None = None
) -> Iterator[tuple[Path, float]]:
    """Export a run's fused model, fine-tuned where it was, into its folder; yields each file and its difference.

    Raises:
        FramebankError: see `fuse_run` and `export_model`.
    """
    unknown = [name for name in formats or [] if name not in FORMATS]
    if unknown:
        raise ConfigError(
            "no such format", expected=f"one of {', '.join(FORMATS)}", got=unknown[0], hint="--format NAME"
        )
    chosen = stored_windows(config, store)
    inputs = stored_inputs(run, config, store, chosen)
    if APPEARANCE in config.head.input_streams:
        fused, _ = fuse_run(run, store, config)
        if (run / "finetuned.keras").is_file():
            fused.set_weights(load_model(run, "finetuned.keras").get_weights())
        model = servable(fused, config.data.columns)
        others = {name: values for name, values in inputs.items() if name in [t.name for t in model.inputs]}
        inputs = {FRAMES_INPUT: load_window_images(config, store, chosen)} | others
    else:
        model = _named(unrolled(load_model(run)), config.data.columns)
    inputs = {n: a if a.dtype == np.uint8 else a.astype(np.float32) for n, a in inputs.items()}
    for name in formats or DEFAULT:
        yield export_model(model, run / "export", name, inputs)


def servable(fused: keras.Model, columns: tuple[str, ...]) -> keras.Model:
    """The fused model with unrolled recurrent layers and one named output a target column."""
    return _named(build_fused_model(fused.get_layer("trunk"), unrolled(fused.get_layer("framebank"))), columns)


def unrolled(stage_two: keras.Model) -> keras.Model:
    """The same model without a loop in it."""
    made = keras.models.clone_model(stage_two, clone_function=_unrolled)
    made.set_weights(stage_two.get_weights())
    return made


def _named(model: keras.Model, columns: tuple[str, ...]) -> keras.Model:
    return keras.Model(model.input, {c: model.output[:, i] for i, c in enumerate(columns)}, name="framebank")


def export_model(model: keras.Model, folder: Path, name: str, inputs: NamedInputs) -> tuple[Path, float]:
    """Write one format into `folder`; its path and the largest relative difference from Keras on `inputs`, by name.

    Raises:
        ConfigError: its packages are not installed.
        FramebankError: what its own runtime computes is not what Keras does.
    """
    keras_name, ending, packages, run = FORMATS[name]
    lacking = [p for p in packages if importlib.util.find_spec(p) is None]
    if lacking:
        raise ConfigError(f"{name} needs {', '.join(lacking)}", hint=f"pip install {' '.join(lacking)}")
    folder.mkdir(parents=True, exist_ok=True)
    unfinished, path = folder / f".unfinished{ending}", folder / f"model{ending}"
    _remove(unfinished)
    expected = model.predict(
        model_inputs(dict(inputs)), verbose=0
    )  # before the export, which needs a model that was called once
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of Keras' own converter (3.15)
            model.export(str(unfinished), format=keras_name, verbose=False)
        difference = _difference(run(unfinished, inputs), expected)
        if not difference <= TOLERANCE:
            raise FramebankError(
                f"{path}: {name} does not compute what Keras does",
                expected=f"at most {TOLERANCE:.2g} of the largest value",
                got=f"{difference:.2g}",
                hint="another --format, and tell us",
            )
        _remove(path)
        unfinished.rename(path)
        if name == "openvino":  # its weights lie beside it
            unfinished.with_suffix(".bin").rename(path.with_suffix(".bin"))
    finally:
        _remove(unfinished)
    return path, difference


def _unrolled(layer: keras.Layer) -> keras.Layer:
    config = layer.get_config()
    if "unroll" in config:
        config["unroll"] = True
    return layer.__class__.from_config(config)


def _saved_model(path: Path, inputs: NamedInputs) -> NamedOutputs:
    import tensorflow as tf

    found = tf.saved_model.load(str(path)).signatures["serving_default"](
        **{n: tf.constant(a) for n, a in inputs.items()}
    )
    return {name: value.numpy() for name, value in found.items()}


def _onnx(path: Path, inputs: NamedInputs) -> NamedOutputs:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def _litert(path: Path, inputs: NamedInputs) -> NamedOutputs:
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(str(path)).get_signature_runner("serving_default")
    count = len(next(iter(inputs.values())))
    windows = [run(**{entry: array[[i]] for entry, array in inputs.items()}) for i in range(count)]
    return {name: np.concatenate([w[name] for w in windows]) for name in windows[0]}


def _openvino(path: Path, inputs: NamedInputs) -> NamedOutputs:
    compiled = openvino_core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(dict(inputs))
    return {output.any_name: found[output] for output in compiled.outputs}


# name: Keras' name for it, the file's ending, packages it needs, its own runtime
FORMATS: dict[str, tuple[str, str, tuple[str, ...], Callable[[Path, NamedInputs], NamedOutputs]]] = {
    "saved_model": ("tf_saved_model", "", (), _saved_model),
    "onnx": ("onnx", ".onnx", ("tf2onnx", "onnxruntime"), _onnx),
    "litert": ("litert", ".tflite", ("ai_edge_litert",), _litert),
    "openvino": ("openvino", ".xml", ("openvino",), _openvino),
}


DEFAULT = ("saved_model", "onnx", "litert")


def _difference(got: NamedOutputs, expected: Mapping[str, Any]) -> float:
    if set(got) != set(expected):
        return float("nan")
    largest = max(float(np.abs(value).max()) for value in expected.values())
    return max(float(np.abs(got[c] - expected[c]).max()) for c in expected) / max(largest, 1e-30)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
