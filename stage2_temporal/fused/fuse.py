"""Build the fused model: backbone, trained top and head as one Keras model from uint8 frames to the target.

If the head also reads `motion` or `geometry`, these are inputs next to `frames`. Before it is saved, the model predicts
some stored windows from their images; it is refused if the two stages predict differently from the store.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from features._common.atomic import atomic_write
from features._common.types import Image
from features.config import Config, read_run_config
from features.errors import BadInputs, DataError, StoreError
from features.principal_components import RUN_FILE, load_bases
from features.store import Store
from features.streams import APPEARANCE, FRAMES, TOP, TRUNK
from features.windows import Examples
from stage1_extract.backbone.trunk import build_trunk
from stage1_extract.datasets import scan
from stage1_extract.datasets.clip import with_hint
from stage1_extract.frame_loader import resize_frame
from stage2_temporal.data.examples import StoreExamples, StoreSource
from stage2_temporal.data.task import read_task
from stage2_temporal.heads import check_uses_maps
from stage2_temporal.heads.saved import load_head
from stage2_temporal.training.keras_models import NamedTensors, load_model, model_inputs, save_model

TOLERANCE = 1e-4  # by which two forms of one model may differ in float32, relative to the largest value
HALF_ROUNDING = 2.0**-11  # relative error of rounding to float16
LOW_PRECISION_ERROR = 0.05  # of maps computed in bfloat16 or float16, relative to the largest value; 0.02 was measured
QUANTISATION_MARGIN = 2  # other frames may have larger errors than those that the network was calibrated on
COMPARED_WINDOWS = 8

ReadWindow = Callable[[int], Image]  # an example's index → its frames (T, height, width, 3) uint8


@dataclass(frozen=True)
class Difference:
    """Largest difference from a reference."""

    absolute: float
    relative: float  # to the reference's largest value


@dataclass(frozen=True)
class FusedModelCheck:
    """Differences between the fused model and the two stages, part by part.

    `rounding` is the relative effect on the predictions of storing maps in the store's type and of computing them in
    its precision; 0 in float32.
    """

    windows: int  # number of stored windows compared
    trunk: Difference  # the fused trunk's maps and the store's
    top: Difference  # the fused top's output and the run's, both on the store's maps
    head: Difference  # the fused top and head's predictions and the run's, both on the store's maps
    output: Difference  # predictions from frames and from the store
    rounding: float

    def first_fault(
        self, dtype: str, precision: str = "float32", trunk_error: float | None = None
    ) -> tuple[str, float, float] | None:
        """Return the first part, if any, that differs too much for maps in `dtype`, its difference and the limit.

        Args:
            trunk_error: the largest error of maps in this precision, relative to the largest value; None: that of
                bfloat16.
        """
        half, low_precision = dtype == "float16", precision != "float32"
        trunk_error = LOW_PRECISION_ERROR if trunk_error is None else trunk_error
        parts = (
            (TRUNK, self.trunk, TOLERANCE + half * HALF_ROUNDING + low_precision * trunk_error),
            (TOP, self.top, TOLERANCE),
            ("head", self.head, TOLERANCE),
            ("output", self.output, TOLERANCE + (self.rounding if half or low_precision else 0.0)),
        )
        faults = ((name, part.relative, limit) for name, part, limit in parts if not part.relative <= limit)  # or NaN
        return next(faults, None)


def fuse_run(run: Path, store: Store, config: Config | None = None) -> tuple[keras.Model, FusedModelCheck]:
    """Build a run's fused model and compare it with the two stages.

    `store` is the one that the run was trained on; `config` is the run's, where needed with another `data.path`.

    Raises:
        ConfigError: the head does not read the trunk's maps.
        StoreError: the store or the backbone is not the one the run was trained on, or the models differ.
        BadInputs: images are missing or differ from those in the store.
        DataError: the run is incomplete.
    """
    config = config or read_run_config(run)
    check_uses_maps(run, config)
    trunk = build_trunk(config, config.map_streams, load_bases(run / RUN_FILE))
    recipe = trunk.recipe.computed_like(store.recipe.precision, store.recipe.quantised)
    if recipe.fingerprint != store.fingerprint:
        raise StoreError(
            f"{store.path}: made with a different backbone than {run}",
            got="; ".join(recipe.differences(store.recipe)),
            hint="--store STORE, the one the run was trained on",
        )
    inputs = comparison_inputs(run, store, config)  # which checks the run's model
    fused, stage_two = build_fused_model(trunk.model, load_model(run)), load_model(run)
    check = compare_models(fused, stage_two, inputs.pop(FRAMES), inputs, store.recipe.precision)
    fault = check.first_fault(store.recipe.dtype, store.recipe.precision, _quantisation_error(store))
    if fault is not None:
        part, relative, limit = fault
        raise StoreError(
            f"{run}: the fused model differs from the two stages in its {part}",
            expected=f"at most {limit:.2g} of the largest value",
            got=f"{relative:.2g}",
            hint="framebank verify, then framebank train",
        )
    return fused, check


def _quantisation_error(store: Store) -> float | None:
    """The largest error, on any stream, that is expected of the store's quantised network; None if there is none."""
    errors = store.header.trunk.get("quantisation_error", {})
    return QUANTISATION_MARGIN * max(errors.values()) if errors else None


def build_fused_model(trunk: keras.Model, stage_two: keras.Model) -> keras.Model:
    """Put the trunk in front of a stage-two model.

    Args:
        trunk: uint8 (batch, height, width, 3) to maps, by stream.
        stage_two: maps (batch, T, h, w, c), and whatever else it takes by name, to (batch, targets).

    Returns:
        uint8 frames (batch, T, height, width, 3), and the other inputs by name, to (batch, targets).
    """
    streams = map_inputs(trunk, stage_two)
    tensors = {tensor.name: tensor for tensor in stage_two.inputs}
    other_inputs = {
        name: keras.Input(t.shape[1:], dtype=t.dtype, name=name) for name, t in tensors.items() if name not in streams
    }
    time = tensors[next(iter(streams))].shape[1]
    frames = keras.Input((time, *trunk.input.shape[1:]), dtype="uint8", name=FRAMES)
    # time is folded into the batch, since Keras' TimeDistributed would copy the trunk's graph once per frame
    maps = trunk(keras.ops.reshape(frames, (-1, *trunk.input.shape[1:])), training=False)
    windows = {
        name: keras.ops.reshape(maps[stream], (-1, time, *maps[stream].shape[1:])) for name, stream in streams.items()
    }
    output = stage_two(model_inputs(windows | other_inputs))
    return keras.Model(model_inputs({FRAMES: frames} | other_inputs), output, name="fused")


def map_inputs(trunk: keras.Model, stage_two: keras.Model) -> dict[str, str]:
    """The inputs of a stage-two model that take the trunk's maps, by name, and the stream of each."""
    inputs, streams = [tensor.name for tensor in stage_two.inputs], list(trunk.output)
    return {inputs[0]: streams[0]} if len(inputs) == 1 else {name: name for name in inputs if name in streams}


def compare_models(
    fused: keras.Model,
    stage_two: keras.Model,
    frames: NDArray[np.uint8],
    inputs: Mapping[str, NDArray[Any]],
    precision: str = "float32",
) -> FusedModelCheck:
    """Compare a fused model with the two stages, part by part.

    Args:
        fused: the model to check; it computes in float32.
        stage_two: the run's model, not the copy inside `fused`.
        frames: (n, T, height, width, 3) images of n windows.
        inputs: (n, …) all inputs of the two stages' model, by name; maps in the store's type, computed in `precision`.
    """
    trunk, fused_stage_two = fused.get_layer(TRUNK), fused.get_layer(stage_two.name)
    streams = map_inputs(trunk, stage_two)
    other_inputs = {name: values for name, values in inputs.items() if name not in streams}

    def predict(model: keras.Model, maps: NamedTensors) -> NDArray[np.float32]:
        return np.asarray(model.predict(model_inputs(maps | other_inputs), verbose=0))

    def predict_window(i: int) -> NDArray[np.float32]:
        inputs = {FRAMES: frames[[i]]} | {n: values[[i]] for n, values in other_inputs.items()}
        return np.asarray(fused.predict(model_inputs(inputs), verbose=0))

    stored = {name: inputs[name].astype(np.float32) for name in streams}
    windows = [trunk.predict(window, verbose=0) for window in frames]
    computed = {name: np.stack([maps[stream] for maps in windows]) for name, stream in streams.items()}
    rounded = stored
    if precision == "float32":
        rounded = {name: maps.astype(inputs[name].dtype).astype(np.float32) for name, maps in computed.items()}
    expected = predict(stage_two, stored)
    return FusedModelCheck(
        windows=len(frames),
        trunk=max((compare(computed[name], stored[name]) for name in streams), key=lambda d: d.relative),
        top=_compare_tops(fused_stage_two, stage_two, stored, streams),
        head=compare(predict(fused_stage_two, stored), expected),
        output=compare(np.concatenate([predict_window(i) for i in range(len(frames))]), expected),
        rounding=compare(predict(fused_stage_two, rounded), predict(fused_stage_two, computed), expected).relative,
    )


def save_fused_model(run: Path, fused: keras.Model, check: FusedModelCheck) -> Path:
    """Save the fused model and its check in the run's folder; return the model's path."""
    path = run / "fused.keras"
    save_model(path, fused)
    with atomic_write(run / "fused.json") as temporary:
        temporary.write_text(json.dumps(asdict(check), indent=2), encoding="utf-8")
    return path


def comparison_inputs(run: Path, store: Store, config: Config) -> dict[str, NDArray[Any]]:
    """Read the stage-two model's inputs, and the images as `frames` if it reads maps, of examples all over the store.

    Raises what `window_reader` does.
    """
    task = read_task(config, store)
    examples = task.examples
    examples = examples[np.unique(np.linspace(0, len(examples) - 1, COMPARED_WINDOWS).astype(int))]
    normalised = config.head.normalises_flow
    interval = task.frame_interval
    source = StoreSource(store.path, examples.rows, frame_interval=interval, normalise_flow=normalised, opened=store)
    X = StoreExamples(source, examples)
    inputs: dict[str, NDArray[Any]] = load_head(run, config, lambda head: head.input_shapes(X)).input_arrays(X)
    if config.map_streams:
        read = window_reader(store, examples, np.arange(len(examples)), config)
        inputs[FRAMES] = np.stack([read(i) for i in range(len(examples))])
    return inputs


def window_reader(store: Store, examples: Examples, indices: NDArray[np.int64], config: Config) -> ReadWindow:
    """Return a function that decodes and resizes the frames of an example's window, and no others.

    Raises:
        BadInputs: sequences of the examples `indices` are missing or differ from those in the store; names all.
    """
    catalogue = scan(config.data)
    clips = {clip.sequence.id: clip for clip in catalogue.clips}
    faults = []
    for s in np.unique(examples.sequence[indices]):
        sequence = store.sequences[s]
        clip = clips.get(sequence.id)
        if clip is None or clip.sequence.digest != sequence.digest:
            problem = "missing or damaged" if clip is None else "not the one in the store"
            faults.append(f"{config.data.path}: sequence {sequence.id} is {problem}.")
    if faults:
        hint = "framebank extract, or --data.path FOLDER with the images the store was made from"
        raise BadInputs(f"{len(faults)} sequences cannot be read", [*catalogue.faults, *faults], hint=hint)

    def read(index: int) -> Image:
        s = examples.sequence[index]
        clip, frames = clips[store.sequences[s].id], examples.rows[index] - store.first[s]
        runs = np.split(frames, np.flatnonzero(np.diff(frames) != 1) + 1)
        try:
            images = [i for r in runs for i in clip.source.read(int(r[0]), int(r[-1]) + 1, config.frames.min_size)]
        except DataError as e:  # the file has changed, or the disk fails
            raise with_hint(e, "check or replace the file, and run the same command again") from None
        return np.stack([resize_frame(image, config.frames, clip.sequence.region) for image in images])

    return read


def _compare_tops(
    fused_stage_two: keras.Model, stage_two: keras.Model, maps: NamedTensors, streams: Mapping[str, str]
) -> Difference:
    if TOP not in [layer.name for layer in stage_two.layers]:
        return Difference(0.0, 0.0)
    at_cut = next(maps[name] for name, stream in streams.items() if stream == APPEARANCE)
    flat = at_cut.reshape(-1, *at_cut.shape[2:])
    return compare(*(model.get_layer(TOP).predict(flat, verbose=0) for model in (fused_stage_two, stage_two)))


def compare(values: NDArray[Any], reference: NDArray[Any], scale: NDArray[Any] | None = None) -> Difference:
    """Compare arrays of one shape; `scale`, by default the reference, gives the largest value."""
    absolute = float(np.abs(values - reference).max())
    return Difference(absolute, absolute / max(float(np.abs(reference if scale is None else scale).max()), 1e-30))
