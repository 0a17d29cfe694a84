"""Windows that slide over a stream of frames: each frame once through trunk and top, in batches.

Only as many frames' entries are kept as a window spans: the trunk's maps, the flow, whichever the head looks at. What
follows frame by frame in stage two (the top, a pooled head's summaries) is computed once a frame as well, so that a
window costs what is left of the head alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from features.config import Config, read_run_config
from features.errors import StoreError
from features.streams import APPEARANCE, GEOMETRY
from stage1_extract.backbone.trunk import Trunk, build_trunk
from stage1_extract.engines.engine import Engine
from stage2_temporal.heads import check_streams
from stage2_temporal.heads.graph import NamedTensors, model_inputs, submodel_from
from stage2_temporal.runs.folder import read_metrics
from stage2_temporal.sliding.frame_cache import FrameCache
from stage2_temporal.training.model_files import load_model
from stage2_temporal.vehicle.camera_geometry import CameraGeometry, read_camera_geometry

Maps = NDArray[np.float32]
StreamBatch = Mapping[
    str, NDArray[Any]
]  # by stream, of the same frames: `appearance` their pixels, `motion` its entries
STEP = 64


@dataclass(frozen=True)
class RunModels:
    """A run's two stages. The trunk's maps are float32 here, whatever the store rounded them to.

    Attributes:
        trunk: None where the head doesn't look at its maps.
        scene: None where it is not told of a vehicle.
    """

    trunk: Trunk | None
    stage_two: keras.Model
    config: Config
    scene: CameraGeometry | None = None

    @property
    def streams(self) -> dict[str, str]:
        """The model's input for each stream that it looks at, by stream; a vehicle's `geometry` is none."""
        return model_streams(self.stage_two, self.config)


def model_streams(stage_two: keras.Model, config: Config) -> dict[str, str]:
    """See `Parts.streams`."""
    names = [tensor.name for tensor in stage_two.inputs if tensor.name != GEOMETRY]
    return {config.head.input_streams[0] if name == "features" else name: name for name in names}


def load_run_models(run: Path) -> RunModels:
    """The trunk, the stage-two model, the config of a run and the scene that it learnt, as far as its head sees them.

    Raises:
        DataError, ConfigError: no sound run, or a head that looks at a stream which is made of a store alone.
        StoreError: the backbone that its config builds is not the one it was trained on.
    """
    metrics, config = read_metrics(run), read_run_config(run)
    check_streams(run, config)
    stage_two = load_model(run)
    scene = read_camera_geometry(run) if GEOMETRY in [tensor.name for tensor in stage_two.inputs] else None
    if APPEARANCE not in model_streams(stage_two, config):
        return RunModels(None, stage_two, config, scene)
    trunk, trained = build_trunk(config), metrics["store"]["fingerprint"]
    if trunk.recipe.fingerprint != trained:
        raise StoreError(
            f"{run}: the backbone its config builds is not the one it was trained on",
            expected=f"recipe {trained[:12]}",
            got=trunk.recipe.fingerprint[:12],
            hint="restore the file of backbone.weights, or train anew",
        )
    return RunModels(replace(trunk, recipe=replace(trunk.recipe, dtype="float32")), stage_two, config, scene)


class SlidingWindow:
    """Runs windows over one stream of frames, each frame once through trunk and top.

    Attributes:
        engine: counts the trunk's passes; None where there is none.
        step: frames a batch at most; where none was asked for, more than an engine's pass, for top and head's sake.
        buffers: by input of what is left of the head, (frames kept + a step, …): all that is held of the stream,
            however long it is.
    """

    def __init__(self, parts: RunModels, rows: NDArray[np.int64], step: int = 0) -> None:
        """For windows `rows` (n, T): positions in the stream, ascending by the last."""
        self.rows, self._streams = rows, parts.streams
        extract = parts.config.extract
        self.engine = None if parts.trunk is None else Engine(parts.trunk, extract.batch, extract.engine)
        self.step = step or extract.batch or max(STEP, 0 if self.engine is None else self.engine.batch)
        top, entries = split_top(parts.stage_two, self._streams.get(APPEARANCE, ""))
        # its maps stay tensors until they are summarised: they are the largest of all
        self._top = None if top is None else tf.function(lambda maps: top(maps, training=False), reduce_retracing=True)
        self._summary = FrameCache.of(parts.stage_two, entries, rows)
        head = self._summary.head if self._summary else submodel_from(entries, parts.stage_two)
        lags = self._summary.lags if self._summary else dict.fromkeys(self._streams.values(), 0)
        self._keep = int((rows[:, -1] - rows[:, 0]).max())
        shapes = {tensor.name: tensor.shape[1:] for tensor in head.inputs}
        held = self._keep + self.step
        self.buffers = {n: np.zeros((held, *shapes[n][1:]), np.float32) for n in lags}
        self._first = self._held = 0  # a buffer's first `_held` are the frames from `_first` on

        def answer(maps: NamedTensors, rows: Any, beside: NamedTensors) -> Any:
            # windows overlap: copied by all cores, and only once
            return head(
                model_inputs({n: tf.gather(m, rows[:, lags[n] :]) for n, m in maps.items()} | beside), training=False
            )

        whole = {n: tf.TensorSpec(b.shape, tf.float32) for n, b in self.buffers.items()}
        told = {n: tf.TensorSpec((None, *s), tf.float32) for n, s in shapes.items() if n not in whole}
        spec = [whole, tf.TensorSpec((None, rows.shape[1]), tf.int64), told]
        self._answer = tf.function(answer, input_signature=spec, autograph=False)

    def take(self, batch: StreamBatch) -> None:
        """Take in the stream's next frames, at most `step`; those that no window can need any more are let go."""
        drop = max(self._held - self._keep, 0)
        for buffer in self.buffers.values():
            buffer[: self._held - drop] = buffer[drop : self._held]
        self._first, self._held = self._first + drop, self._held - drop
        entries: NamedTensors = {}
        for stream, name in self._streams.items():
            values: Any = batch[stream]
            if stream == APPEARANCE and self.engine is not None:
                values = self.engine(values)
                if self._top is not None:
                    values = self._top(tf.constant(values))
            entries[name] = values
        count = 0
        for name, values in (self._summary(entries) if self._summary else entries).items():
            count = len(values)
            self.buffers[name][self._held : self._held + count] = values
        self._held += count

    def answer(self, rows: NDArray[np.int64], geometry: Maps | None = None) -> Maps:
        """(n, targets) of windows (n, T) whose frames were taken in last; `geometry` (n, F) where vehicles are told."""
        maps = {n: tf.constant(buffer) for n, buffer in self.buffers.items()}
        beside = {} if geometry is None else {GEOMETRY: tf.constant(geometry)}
        values: Maps = self._answer(maps, tf.constant(rows - self._first), beside).numpy()
        return values

    def run(self, batches: Iterable[StreamBatch], told: Callable[[slice], Maps] | None = None) -> Iterator[Maps]:
        """Batches of a whole stream, in order → values (m, targets), in `rows`' order.

        Args:
            told: the geometry vectors of some of the windows, asked for when all their frames are there.
        """
        done = self._first = self._held = 0
        for batch in batches:
            self.take(batch)
            ready = int(np.searchsorted(self.rows[:, -1], self._first + self._held))
            for at in range(done, ready, self.step):
                some = slice(at, min(at + self.step, ready))
                yield self.answer(self.rows[some], None if told is None else told(some))
            done = ready


def split_top(stage_two: keras.Model, name: str) -> tuple[keras.Model | None, NamedTensors]:
    """Stage two's top (map → map, a frame at a time; None where there is none), and where what follows is entered.

    Args:
        name: the input that the top is entered by.

    Returns:
        The top, and stage two's tensors of whole windows, by input.
    """
    entries = {tensor.name: tensor for tensor in stage_two.inputs}
    if "top" not in [layer.name for layer in stage_two.layers]:
        return None, entries
    top = stage_two.get_layer("top")
    # one operation follows the top: it unfolds the window's frames from the batch, and there the head begins
    (unfold,) = (node.operation for node in top._outbound_nodes if node.operation in stage_two.operations)
    return top, entries | {name: unfold.output}
