"""Windows that slide over a stream of frames: each frame once through trunk and top, in batches.

Only as many frames' maps are kept as a window spans. What follows frame by frame in stage two (the top) is computed
once a frame as well, so that a window costs the head alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from features.config import Config, read_config
from features.errors import StoreError
from stage1_extract.clips import Image
from stage1_extract.engine import Engine, Trunk, build_trunk
from stage2_temporal.folder import read_metrics
from stage2_temporal.heads import check_sees_frames
from stage2_temporal.runs import load

Maps = NDArray[np.float32]
STEP = 32


@dataclass(frozen=True)
class Parts:
    """A run's two stages. The trunk's maps are float32 here, whatever the store rounded them to."""

    trunk: Trunk
    stage_two: keras.Model
    config: Config


def load_parts(run: Path) -> Parts:
    """The trunk, the stage-two model and the config of a run.

    Raises:
        DataError, ConfigError: no sound run.
        StoreError: the backbone that its config builds is not the one it was trained on.
    """
    metrics, config = read_metrics(run), read_config(run / "config.toml")
    check_sees_frames(run, config)
    stage_two, trunk = load(run), build_trunk(config)
    trained = metrics["store"]["fingerprint"]
    if trunk.recipe.fingerprint != trained:
        raise StoreError(
            f"{run}: the backbone its config builds is not the one it was trained on",
            expected=f"recipe {trained[:12]}",
            got=trunk.recipe.fingerprint[:12],
            mend="restore the file of backbone.weights, or train anew",
        )
    return Parts(replace(trunk, recipe=replace(trunk.recipe, dtype="float32")), stage_two, config)


class Slider:
    """Runs windows over a stream of frames, each frame once through trunk and top.

    Attributes:
        engine: counts the trunk's passes.
        step: frames a batch at most; where none was asked for, more than an engine's pass, for top and head's sake.
        buffer: (frames kept + a step, …) maps: all that is held of the stream, however long it is.
    """

    def __init__(self, parts: Parts, rows: NDArray[np.int64]) -> None:
        """For windows `rows` (n, T): positions in the stream, ascending by the last."""
        self.rows = rows
        self.engine = Engine(parts.trunk, parts.config.extract.batch, parts.config.extract.engine)
        self.step = parts.config.extract.batch or max(STEP, self.engine.batch)
        self._top, head = split(parts.stage_two)
        self._keep = int((rows[:, -1] - rows[:, 0]).max())
        shape = (self._top or parts.trunk.model).output.shape[1:]
        self.buffer = np.zeros((self._keep + self.step, *shape), np.float32)

        def answer(maps: Any, rows: Any) -> Any:
            return head(tf.gather(maps, rows), training=False)  # windows overlap: copied by all cores, and only once

        spec = [tf.TensorSpec(self.buffer.shape, tf.float32), tf.TensorSpec((None, rows.shape[1]), tf.int64)]
        self._answer = tf.function(answer, input_signature=spec, autograph=False)

    def run(self, batches: Iterable[Image]) -> Iterator[Maps]:
        """Batches of uint8 frames (≤ step, height, width, 3), in order → values (m, targets), in `rows`' order."""
        first = held = done = 0  # buffer[:held] are the frames from `first` on
        for frames in batches:
            maps = self.engine(frames)
            if self._top is not None:
                maps = self._top.predict_on_batch(maps)
            self.buffer[held : held + len(maps)] = maps
            held += len(maps)
            ready = int(np.searchsorted(self.rows[:, -1], first + held))
            for at in range(done, ready, self.step):
                chosen = self.rows[at : min(at + self.step, ready)] - first
                values: Maps = self._answer(tf.constant(self.buffer), tf.constant(chosen)).numpy()
                yield values
            done = ready
            drop = max(held - self._keep, 0)
            self.buffer[: held - drop] = self.buffer[drop:held]
            first, held = first + drop, held - drop


def split(stage_two: keras.Model) -> tuple[keras.Model | None, keras.Model]:
    """Stage two's top (map → map, a frame at a time; None where there is none), and what follows it."""
    if "top" not in [layer.name for layer in stage_two.layers]:
        return None, stage_two
    top = stage_two.get_layer("top")
    # one operation follows the top: it unfolds the window's frames from the batch, and there the head begins
    (unfold,) = (node.operation for node in top._outbound_nodes if node.operation in stage_two.operations)
    return top, keras.Model(unfold.output, stage_two.output)
