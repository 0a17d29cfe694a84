"""The fused model: backbone, trained top and head as one Keras model from uint8 frames to the target.

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

from features.config import Config, read_config
from features.errors import DataError, StoreError
from features.files import replacing
from features.store import Store
from features.windows import Examples
from stage1_extract.clips import Clip
from stage1_extract.decode import resize
from stage1_extract.engine import build_trunk
from stage1_extract.layouts import scan
from stage2_temporal.heads import check_sees_frames
from stage2_temporal.model import TOLERANCE
from stage2_temporal.runs import STREAM, load
from stage2_temporal.task import read_task

HALF = 2.0**-11  # what rounding to half precision can do to a value
LOWER = 0.05  # what computing in bfloat16 or float16 does to a map's largest value: 0.01 to 0.02, and room
WINDOWS = 8


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


def assemble(trunk: keras.Model, stage_two: keras.Model) -> keras.Model:
    """uint8 frames (batch, T, height, width, 3) → (batch, targets); time is folded into the batch for the trunk.

    Args:
        trunk: uint8 (batch, height, width, 3) → map.
        stage_two: maps (batch, T, h, w, c) → (batch, targets).
    """
    time = stage_two.input.shape[1]
    frames = keras.Input((time, *trunk.input.shape[1:]), dtype="uint8", name="frames")
    maps = trunk(keras.ops.reshape(frames, (-1, *trunk.input.shape[1:])), training=False)
    maps = keras.ops.reshape(maps, (-1, time, *trunk.output.shape[1:]))
    return keras.Model(frames, stage_two(maps), name="fused")


def compare(
    fused: keras.Model,
    reference: keras.Model,
    frames: NDArray[np.uint8],
    maps: NDArray[Any],
    precision: str = "float32",
) -> Equality:
    """Compare the fused model with the two stages, part by part.

    Args:
        fused: the model to check.
        reference: the run's stage-two model, of its own (not the one inside `fused`).
        frames: (n, T, height, width, 3) images of some windows.
        maps: (n, T, h, w, c) what the store holds of them, in its type.
        precision: what they were computed in; the fused model computes in float32.
    """
    trunk, stage_two = fused.get_layer("trunk"), fused.get_layer(reference.name)
    stored = maps.astype(np.float32)
    flat = stored.reshape(-1, *stored.shape[2:])
    seen = np.concatenate([trunk.predict(window, verbose=0) for window in frames]).reshape(stored.shape)
    expected = reference.predict(stored, verbose=0)
    lossy = seen.astype(maps.dtype).astype(np.float32) if precision == "float32" else stored
    rounded = stage_two.predict(lossy, verbose=0)
    return Equality(
        windows=len(frames),
        trunk=_difference(seen, stored),
        top=_difference(*(_top(model, flat) for model in (stage_two, reference))),
        head=_difference(stage_two.predict(stored, verbose=0), expected),
        output=_difference(np.concatenate([fused.predict(w[None], verbose=0) for w in frames]), expected),
        rounding=_difference(rounded, stage_two.predict(seen, verbose=0)).relative,
    )


def fuse(run: Path, store: Store, config: Config | None = None) -> tuple[keras.Model, Equality]:
    """A run's fused model, checked against the two stages.

    Args:
        config: the run's own, but for `data.path`; default: the run's own.

    Raises:
        ConfigError: a head that sees something else than the frames.
        StoreError: the store or the backbone is not the one the run was trained on, or the models differ.
        DataError: the images are not there, or there is no sound run.
    """
    config = config or read_config(run / "config.toml")
    check_sees_frames(run, config)
    trunk = build_trunk(config)
    if trunk.recipe.fingerprint != store.fingerprint:
        raise StoreError(
            f"{store.path}: the backbone of {run} is not the one the store was made with",
            got="; ".join(trunk.recipe.differences(store.recipe)),
            mend="--store STORE, the one the run was trained on",
        )
    fused = assemble(trunk.model, load(run))
    frames, maps = stored_windows(config, store)
    equality = compare(fused, load(run), frames, maps, store.recipe.precision)
    fault = equality.fault(store.recipe.dtype, store.recipe.precision)
    if fault is not None:
        part, relative, limit = fault
        raise StoreError(
            f"{run}: the fused model is not the two stages: its {part} differs",
            expected=f"at most {limit:.2g} of the largest value",
            got=f"{relative:.2g}",
            mend="python -m stage1_extract verify, then make train",
        )
    return fused, equality


def write(run: Path, fused: keras.Model, equality: Equality) -> Path:
    """Save the fused model and what was measured into the run's folder; the model's path."""
    path = run / "fused.keras"
    with replacing(path) as temporary:
        # Keras goes by the ending
        whole = temporary.with_suffix(".keras")
        try:
            fused.save(whole)
            whole.replace(temporary)
        finally:
            whole.unlink(missing_ok=True)
    with replacing(run / "fused.json") as temporary:
        temporary.write_text(json.dumps(asdict(equality), indent=2), encoding="utf-8")
    return path


def stored_windows(config: Config, store: Store) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Up to `WINDOWS` windows spread over the store: their images, resized, and their stored maps.

    Raises:
        DataError: their clips are not where the config says, or not those the store was made of.
    """
    found = read_task(config, store).examples
    chosen = found[np.unique(np.linspace(0, len(found) - 1, WINDOWS).astype(int))]
    clips = {clip.sequence.id: clip for clip in scan(config.data).clips}
    frames = np.stack([_window(chosen, i, store, clips, config) for i in range(len(chosen))])
    maps = store.read(STREAM, chosen.rows.ravel())
    return frames, maps.reshape(*chosen.rows.shape, *maps.shape[1:])


def _window(found: Examples, index: int, store: Store, clips: Mapping[str, Clip], config: Config) -> NDArray[np.uint8]:
    sequence = store.sequences[found.sequence[index]]
    clip = clips.get(sequence.id)
    if clip is None or clip.sequence.digest != sequence.digest:
        raise DataError(
            f"{config.data.path}: sequence {sequence.id} is {'gone' if clip is None else 'not the one in the store'}",
            mend="make features, or give the images' folder with --data.path",
        )
    wanted = found.rows[index] - store.first[found.sequence[index]]
    read = list(clip.source.read(int(wanted[0]), int(wanted[-1]) + 1, config.frames.enough))
    return np.stack([resize(read[i - wanted[0]], config.frames) for i in wanted])


def _top(model: keras.Model, maps: NDArray[np.float32]) -> NDArray[np.float32]:
    names = [layer.name for layer in model.layers]
    return np.asarray(model.get_layer("top").predict(maps, verbose=0)) if "top" in names else maps


def _difference(got: NDArray[Any], expected: NDArray[Any]) -> Difference:
    absolute = float(np.abs(got - expected).max())
    return Difference(absolute, absolute / max(float(np.abs(expected).max()), 1e-30))
