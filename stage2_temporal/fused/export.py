"""Export a run's fused model for serving; each format is loaded by its own runtime and compared with Keras.

All formats take `frames`, uint8 (batch, T, height, width, 3), and return one float32 (batch,) per target column. Heads
that read more than frames, or something else, have other inputs: `geometry`, float32 (batch, F), see
`vehicle.geometry`, and optical flow as stored, float32 (batch, T, …), named `motion`, or `features` if a head other
than fusion reads only flow. Recurrent layers are unrolled: LiteRT and OpenVINO fail on the loop of a Keras LSTM.
"""

from __future__ import annotations

import importlib.util
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from features._common.folders import updated_folder
from features._common.leftovers import unfinished_folder
from features.config import Config
from features.errors import ConfigError, DataError, FramebankError
from features.store import Store
from features.streams import STAGE_TWO, TRUNK
from stage1_extract.engines.openvino import openvino_core
from stage2_temporal.fused.fuse import TOLERANCE, build_fused_model, compare, comparison_inputs, fuse_run
from stage2_temporal.training.keras_models import load_model, model_inputs

NamedInputs = Mapping[str, NDArray[Any]]
NamedOutputs = Mapping[str, NDArray[np.float32]]


def export_run(run: Path, store: Store, config: Config, formats: Sequence[str] = ()) -> Iterator[tuple[Path, float]]:
    """Export a run's fused model, fine-tuned if it was, into the run's folder.

    See `fuse_run` for the arguments and errors; `formats` are names of `EXPORT_FORMATS`, by default `DEFAULT_FORMATS`.

    Yields:
        The path of each exported file, and its largest relative difference from Keras.
    """
    unknown = [name for name in formats if name not in EXPORT_FORMATS]
    if unknown:
        raise ConfigError(
            "no such format", expected=f"one of {', '.join(EXPORT_FORMATS)}", got=unknown[0], hint="--format onnx"
        )
    if config.map_streams:
        fused, _ = fuse_run(run, store, config)
        if (run / "finetuned.keras").is_file():
            weights = load_model(run, "finetuned.keras").get_weights()
            if [w.shape for w in weights] != [w.shape for w in fused.get_weights()]:
                hint = f"framebank finetune --run {run}"
                raise DataError(f"{run / 'finetuned.keras'}: of another model than {run / 'model.keras'}", hint=hint)
            fused.set_weights(weights)
        model = servable(fused, config.data.columns)
    else:
        model = _with_named_outputs(_unroll(load_model(run, targets=len(config.data.columns))), config.data.columns)
    inputs = comparison_inputs(run, store, config)
    inputs = {tensor.name: inputs[tensor.name].astype(tensor.dtype) for tensor in model.inputs}
    for name in formats or DEFAULT_FORMATS:
        yield export_model(model, run / "export", name, inputs)


def export_model(model: keras.Model, folder: Path, name: str, inputs: NamedInputs) -> tuple[Path, float]:
    """Write a model in the format `name`; return the path and the largest relative difference from Keras on `inputs`.

    Raises:
        ConfigError: packages that the format needs are not installed.
        FramebankError: its own runtime and Keras give different results.
    """
    export_format = EXPORT_FORMATS[name]
    missing = [package for package in export_format.packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ConfigError(f"{name} needs {', '.join(missing)}", hint=f"pip install {' '.join(missing)}")
    path = folder / f"model{export_format.ending}"
    expected = model.predict(model_inputs(dict(inputs)), verbose=0)  # Keras exports only models that have been called
    folder.parent.mkdir(parents=True, exist_ok=True)
    with updated_folder(folder) as updated, unfinished_folder(updated) as temporary:
        unfinished = temporary / path.name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # from Keras' own converter (3.15)
            model.export(str(unfinished), format=export_format.keras_name, verbose=False)
        outputs = export_format.run(unfinished, inputs)
        difference = compare(*(np.stack([arrays[c] for c in expected]) for arrays in (outputs, expected))).relative
        if not difference <= TOLERANCE:
            raise FramebankError(
                f"{path}: {name} and Keras give different results",
                expected=f"at most {TOLERANCE:.2g} of the largest value",
                got=f"{difference:.2g}",
                hint="another --format, and please report this",
            )
        if (updated / path.name).is_dir():
            shutil.rmtree(updated / path.name)
        for file in temporary.iterdir():  # OpenVINO keeps its weights in a second one
            file.replace(updated / file.name)
    return path, difference


def servable(fused: keras.Model, columns: tuple[str, ...]) -> keras.Model:
    """Copy a fused model with unrolled recurrent layers and one named output per target column."""
    return _with_named_outputs(build_fused_model(fused.get_layer(TRUNK), _unroll(fused.get_layer(STAGE_TWO))), columns)


def _unroll(stage_two: keras.Model) -> keras.Model:
    def clone(layer: keras.Layer) -> keras.Layer:
        config = layer.get_config()
        return layer.__class__.from_config(config | {"unroll": True} if "unroll" in config else config)

    unrolled = keras.models.clone_model(stage_two, clone_function=clone)
    unrolled.set_weights(stage_two.get_weights())
    return unrolled


def _with_named_outputs(model: keras.Model, columns: tuple[str, ...]) -> keras.Model:
    return keras.Model(model.input, {c: model.output[:, i] for i, c in enumerate(columns)}, name=STAGE_TWO)


def _run_saved_model(path: Path, inputs: NamedInputs) -> NamedOutputs:
    import tensorflow as tf

    signature = tf.saved_model.load(str(path)).signatures["serving_default"]
    outputs = signature(**{name: tf.constant(values) for name, values in inputs.items()})
    return {name: value.numpy() for name, value in outputs.items()}


def _run_onnx(path: Path, inputs: NamedInputs) -> NamedOutputs:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def _run_litert(path: Path, inputs: NamedInputs) -> NamedOutputs:
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(str(path)).get_signature_runner("serving_default")
    count = len(next(iter(inputs.values())))
    windows = [run(**{name: values[[i]] for name, values in inputs.items()}) for i in range(count)]
    return {name: np.concatenate([window[name] for window in windows]) for name in windows[0]}


def _run_openvino(path: Path, inputs: NamedInputs) -> NamedOutputs:
    compiled = openvino_core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = compiled(dict(inputs))
    return {output.any_name: results[output] for output in compiled.outputs}


@dataclass(frozen=True)
class ExportFormat:
    """A format, and a function that runs a file in it."""

    keras_name: str
    ending: str
    packages: tuple[str, ...]  # that it needs
    run: Callable[[Path, NamedInputs], NamedOutputs]


EXPORT_FORMATS = {
    "saved_model": ExportFormat("tf_saved_model", "", (), _run_saved_model),
    "onnx": ExportFormat("onnx", ".onnx", ("tf2onnx", "onnxruntime"), _run_onnx),
    "litert": ExportFormat("litert", ".tflite", ("ai_edge_litert",), _run_litert),
    "openvino": ExportFormat("openvino", ".xml", ("openvino",), _run_openvino),
}
DEFAULT_FORMATS = ("saved_model", "onnx", "litert")
