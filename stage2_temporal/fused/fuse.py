"""The fused model: backbone, trained top and head as one Keras model from uint8 frames to the target.

What the head sees besides the trunk's maps, `motion` and `geometry`, it takes by name beside `frames`.

Before it is let out, it predicts a few stored windows from their images and from the store; where the two differ by
more than rounding, it is refused and the part that differs is named.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from features._common.atomic import atomic_write
from features._common.types import Tensor
from features.config import Config, read_run_config
from features.errors import DataError, StoreError
from features.store import Store
from features.streams import APPEARANCE
from features.windows import Examples
from stage1_extract.backbone.trunk import build_trunk
from stage1_extract.datasets import scan
from stage1_extract.datasets.clip import Clip
from stage1_extract.frame_loader import resize_frame
from stage2_temporal.data.examples import StoreExamples, StoreSource
from stage2_temporal.data.task import read_task
from stage2_temporal.heads import check_uses_maps, find_head
from stage2_temporal.heads.graph import model_inputs
from stage2_temporal.training.keras_models import load_model

TOLERANCE = 1e-4  # by which two forms of one model may differ in float32, relative to the largest value
HALF = 2.0**-11  # what rounding to half precision can do to a value
LOWER = 0.05  # what computing in bfloat16 or float16 does to a map's largest value: 0.01 to 0.02, and room
WINDOWS = 8
FRAMES_INPUT = "frames"


@dataclass(frozen=True)
class Difference:
    """Largest absolute difference, and the same relative to the largest value of the reference."""

    absolute: float
    relative: float


@dataclass(frozen=True)
class Equality:
    """How far the fused model is from the two stages, part by part, over some stored windows.

    Attributes:
        trunk: its maps of the images against the store's.
        top: on the store's maps, against the run's.
        head: top and head on the store's maps, against the run's prediction.
        output: frames → target against store → target.
        rounding: what storing the maps in the store's type, and computing them in a lower precision than float32, does
            to the output, relative; 0 in float32.
    """

    windows: int
    trunk: Difference
    top: Difference
    head: Difference
    output: Difference
    rounding: float

    def fault(self, dtype: str, precision: str = "float32") -> tuple[str, float, float] | None:
        """The first part that differs, its relative difference and what was tolerated; None where all is well."""
        half, lower = dtype == "float16", precision != "float32"
        tolerated = {
            "trunk": TOLERANCE + (HALF if half else 0.0) + (LOWER if lower else 0.0),
            "top": TOLERANCE,
            "head": TOLERANCE,
            "output": TOLERANCE + (self.rounding if half or lower else 0.0),
        }
        for part, limit in tolerated.items():
            relative = getattr(self, part).relative
            if not relative <= limit:  # NaN is a difference too
                return part, relative, limit
        return None


def build_fused_model(trunk: keras.Model, stage_two: keras.Model) -> keras.Model:
    """uint8 frames (batch, T, height, width, 3) → (batch, targets); time is folded into the batch for the trunk.

    Args:
        trunk: uint8 (batch, height, width, 3) → map.
        stage_two: maps (batch, T, h, w, c) → (batch, targets); what else it takes, the fused model takes by its name
            beside `frames`.
    """
    entry = maps_entry(stage_two)
    others = {t.name: keras.Input(t.shape[1:], dtype=t.dtype, name=t.name) for t in stage_two.inputs if t is not entry}
    time = entry.shape[1]
    frames = keras.Input((time, *trunk.input.shape[1:]), dtype="uint8", name=FRAMES_INPUT)
    maps = trunk(keras.ops.reshape(frames, (-1, *trunk.input.shape[1:])), training=False)
    maps = keras.ops.reshape(maps, (-1, time, *trunk.output.shape[1:]))
    return keras.Model(
        model_inputs({FRAMES_INPUT: frames} | others),
        stage_two(model_inputs({entry.name: maps} | others)),
        name="fused",
    )


def maps_entry(stage_two: keras.Model) -> Tensor:
    """The input that takes the trunk's maps: the only one, or the one of that name."""
    entries = stage_two.inputs
    return entries[0] if len(entries) == 1 else next(t for t in entries if t.name == APPEARANCE)


def compare_models(
    fused: keras.Model,
    reference: keras.Model,
    frames: NDArray[np.uint8],
    maps: NDArray[Any],
    precision: str = "float32",
    others: Mapping[str, NDArray[Any]] | None = None,
) -> Equality:
    """Compare the fused model with the two stages, part by part.

    Args:
        fused: the model to check.
        reference: the run's stage-two model, of its own (not the one inside `fused`).
        frames: (n, T, height, width, 3) images of some windows.
        maps: (n, T, h, w, c) what the store holds of them, in its type.
        precision: what they were computed in; the fused model computes in float32.
        others: (n, …) what the models take of the windows besides, by input name.
    """
    entry, others = maps_entry(reference).name, dict(others or {})

    def answer(model: keras.Model, maps: NDArray[Any]) -> NDArray[np.float32]:
        return np.asarray(model.predict(model_inputs({entry: maps} | others), verbose=0))

    one_by_one = [
        {FRAMES_INPUT: frames[[i]]} | {n: values[[i]] for n, values in others.items()} for i in range(len(frames))
    ]
    trunk, stage_two = fused.get_layer("trunk"), fused.get_layer(reference.name)
    stored = maps.astype(np.float32)
    flat = stored.reshape(-1, *stored.shape[2:])
    seen = np.concatenate([trunk.predict(window, verbose=0) for window in frames]).reshape(stored.shape)
    expected = answer(reference, stored)
    lossy = seen.astype(maps.dtype).astype(np.float32) if precision == "float32" else stored
    rounded = answer(stage_two, lossy)
    return Equality(
        windows=len(frames),
        trunk=_difference(seen, stored),
        top=_difference(*(_top(model, flat) for model in (stage_two, reference))),
        head=_difference(answer(stage_two, stored), expected),
        output=_difference(
            np.concatenate([fused.predict(model_inputs(window), verbose=0) for window in one_by_one]), expected
        ),
        rounding=_difference(rounded, answer(stage_two, seen)).relative,
    )


def fuse_run(run: Path, store: Store, config: Config | None = None) -> tuple[keras.Model, Equality]:
    """A run's fused model, checked against the two stages.

    Args:
        config: the run's own, but for `data.path`; default: the run's own.

    Raises:
        ConfigError: a head that sees something else than the frames.
        StoreError: the store or the backbone is not the one the run was trained on, or the models differ.
        DataError: the images are not there, or there is no sound run.
    """
    config = config or read_run_config(run)
    check_uses_maps(run, config)
    trunk = build_trunk(config)
    if trunk.recipe.fingerprint != store.fingerprint:
        raise StoreError(
            f"{store.path}: the backbone of {run} is not the one the store was made with",
            got="; ".join(trunk.recipe.differences(store.recipe)),
            hint="--store STORE, the one the run was trained on",
        )
    fused, reference = build_fused_model(trunk.model, load_model(run)), load_model(run)
    chosen = stored_windows(config, store)
    others = stored_inputs(run, config, store, chosen)
    maps = others.pop(maps_entry(reference).name)
    equality = compare_models(
        fused, reference, load_window_images(config, store, chosen), maps, store.recipe.precision, others
    )
    fault = equality.fault(store.recipe.dtype, store.recipe.precision)
    if fault is not None:
        part, relative, limit = fault
        raise StoreError(
            f"{run}: the fused model is not the two stages: its {part} differs",
            expected=f"at most {limit:.2g} of the largest value",
            got=f"{relative:.2g}",
            hint="python -m stage1_extract verify, then make train",
        )
    return fused, equality


def save_fused_model(run: Path, fused: keras.Model, equality: Equality) -> Path:
    """Save the fused model and what was measured into the run's folder; the model's path."""
    path = run / "fused.keras"
    with atomic_write(path) as temporary:
        # Keras goes by the ending
        whole = temporary.with_suffix(".keras")
        try:
            fused.save(whole)
            whole.replace(temporary)
        finally:
            whole.unlink(missing_ok=True)
    with atomic_write(run / "fused.json") as temporary:
        temporary.write_text(json.dumps(asdict(equality), indent=2), encoding="utf-8")
    return path


def stored_windows(config: Config, store: Store) -> Examples:
    """Up to `WINDOWS` windows spread over the store."""
    found = read_task(config, store).examples
    return found[np.unique(np.linspace(0, len(found) - 1, WINDOWS).astype(int))]


def stored_inputs(run: Path, config: Config, store: Store, chosen: Examples) -> dict[str, NDArray[Any]]:
    """What a run's stage-two model takes of some windows, by input name, as stored."""
    head = find_head(config.head.name).of(config).restore(load_model(run), run)
    return head.taken(StoreExamples(StoreSource(store.path, chosen.rows), chosen))


def load_window_images(config: Config, store: Store, chosen: Examples) -> NDArray[np.uint8]:
    """(n, T, height, width, 3) the resized images of some windows.

    Raises:
        DataError: their clips are not where the config says, or not those the store was made of.
    """
    clips = {clip.sequence.id: clip for clip in scan(config.data).clips}
    return np.stack([_window(chosen, i, store, clips, config) for i in range(len(chosen))])


def _window(found: Examples, index: int, store: Store, clips: Mapping[str, Clip], config: Config) -> NDArray[np.uint8]:
    sequence = store.sequences[found.sequence[index]]
    clip = clips.get(sequence.id)
    if clip is None or clip.sequence.digest != sequence.digest:
        raise DataError(
            f"{config.data.path}: sequence {sequence.id} is {'gone' if clip is None else 'not the one in the store'}",
            hint="make features, or give the images' folder with --data.path",
        )
    wanted = found.rows[index] - store.first[found.sequence[index]]
    read = list(clip.source.read(int(wanted[0]), int(wanted[-1]) + 1, config.frames.min_size))
    return np.stack([resize_frame(read[i - wanted[0]], config.frames) for i in wanted])


def _top(model: keras.Model, maps: NDArray[np.float32]) -> NDArray[np.float32]:
    names = [layer.name for layer in model.layers]
    return np.asarray(model.get_layer("top").predict(maps, verbose=0)) if "top" in names else maps


def _difference(got: NDArray[Any], expected: NDArray[Any]) -> Difference:
    absolute = float(np.abs(got - expected).max())
    return Difference(absolute, absolute / max(float(np.abs(expected).max()), 1e-30))
