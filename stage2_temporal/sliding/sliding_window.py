"""Run a model over sliding windows of a frame stream: each frame goes through trunk and top once, in batches.

Whatever depends on one frame alone is computed once and kept as long as a window needs it.
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

from features._common.console import logger
from features.config import Config, read_run_config
from features.errors import DataError, StoreError
from features.principal_components import RUN_FILE, load_bases
from features.sequences import FrameSequence
from features.streams import APPEARANCE, FEATURES, FRAMES, GEOMETRY, PAIR_STREAMS, TOP
from features.windows import MISPLACED, other_rate_error, window_frames
from stage1_extract.backbone.onnx_trunk import OnnxTrunk, any_trunk
from stage1_extract.backbone.trunk import Trunk
from stage1_extract.engines.engine import Engine
from stage2_temporal.evaluation.uncertainty import INPUTS, Uncertainty, read_uncertainty
from stage2_temporal.heads import check_streams
from stage2_temporal.heads.saved import MODEL_FILE, check_shapes, load_head, named_layers
from stage2_temporal.heads.uncertainty import uncertain_model
from stage2_temporal.runs.results import Metrics, read_metrics
from stage2_temporal.sliding.frame_cache import FrameCache
from stage2_temporal.training.keras_models import NamedTensors, model_inputs, submodel_from
from stage2_temporal.vehicle.camera_geometry import CameraGeometry, read_camera_geometry

Predictions = NDArray[np.float32]
StreamBatch = Mapping[str, NDArray[np.generic]]  # arrays of the same frames by stream; `frames` holds their pixels
ORDINALS = {2: "second", 3: "third"}
MIN_BATCH = 64  # frames per batch: top and head are slow on the small batches of some engines

CLIP_LAYOUTS = ("sample", "competition", "tusimple")  # all their sequences have one frame rate, `data.fps`


@dataclass(frozen=True)
class RunModels:
    """The models of a run, and its config."""

    trunk: (
        Trunk | OnnxTrunk | None
    )  # to maps in single precision, whatever precision the store had; None if the head takes no maps
    stage_two: keras.Model  # maps, flow or geometry vectors to targets and, with `uncertainty`, what it reads
    config: Config
    camera_geometry: CameraGeometry | None = None  # None if the head takes no vehicle tracks
    uncertainty: Uncertainty | None = None  # None for runs of older versions
    frame_interval: float | None = None  # seconds between frames to which optical flow is scaled; None: not scaled

    @property
    def inputs(self) -> dict[str, str]:
        """The name of the stage-two model's input for each stream that it takes."""
        names = [tensor.name for tensor in self.stage_two.inputs if tensor.name != GEOMETRY]
        return {self.config.head.input_streams[0] if name == FEATURES else name: name for name in names}

    @property
    def image_streams(self) -> list[str]:
        """What the stage-two model needs of the images: `frames` for the trunk, and streams of pairs of frames."""
        return [*([FRAMES] if self.config.map_streams else []), *self.pair_streams]

    @property
    def pair_streams(self) -> list[str]:
        """The streams that it takes and that are computed from pairs of frames, without the trunk."""
        return [name for name in PAIR_STREAMS if name in self.inputs]


def load_run_models(run: Path) -> RunModels:
    """Load the models of a run that predict from images, the trunk only if its head takes maps.

    A DataError or ConfigError if the run is incomplete, or its head takes a stream that only a store has; a StoreError
    if it was trained on another backbone.
    """
    metrics, config = read_metrics(run), read_run_config(run)
    check_streams(run, config)
    head = load_head(run, config)
    stage_two = head.model_
    takes_track = GEOMETRY in [tensor.name for tensor in stage_two.inputs]
    camera_geometry = read_camera_geometry(run) if takes_track else None
    if (uncertainty := read_uncertainty(run)) is not None:
        with named_layers(run / MODEL_FILE):
            stage_two = uncertain_model(head, stage_two, uncertainty.novelty.get(INPUTS))
    models = RunModels(None, stage_two, config, camera_geometry, uncertainty, metrics.frame_interval)
    if not config.map_streams:
        return models
    trunk = any_trunk(config, config.map_streams, load_bases(run / RUN_FILE))
    trained = metrics.store.fingerprint
    recipe = trunk.recipe.computed_like(metrics.store.precision or trunk.recipe.precision, metrics.store.quantised)
    if recipe.fingerprint != trained:
        raise StoreError(
            f"{run}: its config now builds a different backbone than the run was trained on",
            expected=f"recipe {trained[:12]}",
            got=recipe.fingerprint[:12],
            hint="restore the weights file that backbone.weights names, or train again",
        )
    names = {stream: name for name, stream in head.input_streams.items()}
    maps = {names[s]: (config.window.length, *info.shape) for s, info in trunk.streams.items() if s in names}
    check_shapes(run, head.model_, maps)
    # the quantised network stays with the store; float32 is what it approximates
    precision = "float32" if recipe.precision == "int8" else recipe.precision
    return replace(models, trunk=replace(trunk, recipe=replace(recipe, dtype="float32", precision=precision)))


def trained_interval(run: Metrics, config: Config) -> float | None:
    """Seconds between the frames of a run's windows in training; None for windows of one frame, or if unknown."""
    if run.interval is None and config.data.layout in CLIP_LAYOUTS and config.window.length > 1:  # an older run
        return config.window.stride / config.data.fps
    return run.interval


def flow_step(sequence: FrameSequence, frame_interval: float | None) -> int:
    """How many frames apart optical flow is computed in a video of a higher rate than in training; 1: neighbours.

    Flow between frames that are much closer in time than those of the training would be scaled up with its errors.
    """
    if frame_interval is None or sequence.times is not None:
        return 1
    step = max(1, int((1 + MISPLACED) * frame_interval * sequence.fps))
    if step > 1:
        every = f"every {ORDINALS.get(step, f'{step}th')} frame is used"
        logger.info(f"{sequence.id}: {sequence.fps:.4g} frames per second; {every}, because flow was trained like that")
    return step


def sliding_windows(sequence: FrameSequence, config: Config, slowest: float | None = None) -> NDArray[np.int64]:
    """List the frames of every window of a sequence, (n, T), in order of the last one.

    Windows in which frames are missing are left out; see `window_frames` for `slowest`.

    Raises:
        DataError: the sequence is shorter than one window.
        ConfigError: no window, because of the frame rate.
    """
    window, path, last = config.window, config.data.path, np.arange(sequence.length)
    length, stride, interval = window.length, window.stride, window.interval
    rows, fits, misplaced = window_frames(
        sequence, last, length=length, stride=stride, interval=interval, slowest=slowest
    )
    if not fits.any():
        if interval is None:
            spacing, expected, got = f"stride {stride}", f"{(length - 1) * stride + 1} frames", f"{sequence.length}"
        else:
            spacing, expected = f"{interval:.3g} s apart", f"{(length - 1) * interval:.3g} s"
            got = f"{sequence.frame_times[-1]:.3g} s"
        raise DataError(
            f"{path}: shorter than one window ({length} frames, {spacing})",
            expected=f"at least {expected}",
            got=got,
            hint="--input a longer one" if stride == 1 and interval is None else "--stride 1, or --input a longer one",
        )
    usable = fits & ~misplaced
    if not usable.any():
        hint = "--stride 1 to take its frames as they are"
        raise other_rate_error(path, sequence, interval or stride / sequence.fps, slowest, hint)
    strides = np.unique(np.diff(rows[usable], axis=1)).tolist()
    if interval is not None and slowest is None and strides != [stride]:
        n = strides[0]
        one_in_n = len(strides) == 1 and n > 1
        which = f"every {ORDINALS.get(n, f'{n}th')} frame is used" if one_in_n else "the frames used are those nearest"
        as_trained = f"to have them {interval:.3g} s apart, as in training"
        logger.info(f"{path}: {sequence.fps:.4g} frames per second; {which} {as_trained}")
    if left_out := int((fits & misplaced).sum()):
        logger.warning(
            f"{path}: {left_out} of {fits.sum()} windows are left out, because some of their frames are too far apart"
        )
    return rows[usable]


class SlidingWindow:
    """Runs a model over windows of one frame stream; `engine` counts the trunk's passes.

    Of the stream, only `buffers` are kept: arrays (kept frames + `step`, …) by input of the rest of the head.
    """

    def __init__(self, models: RunModels, rows: NDArray[np.int64], step: int = 0) -> None:
        """Prepare for windows `rows` (n, T), ascending by the last frame; batches have at most `step` frames if > 0."""
        self.rows, self._inputs = rows, models.inputs
        extract = models.config.extract
        self.engine = None if models.trunk is None else Engine(models.trunk, extract.batch, extract.engine)
        self.step = step or extract.batch or max(MIN_BATCH, 0 if self.engine is None else self.engine.batch)
        top, tensors = _split_top(models.stage_two, self._inputs.get(APPEARANCE, ""))
        # the top's maps stay in TensorFlow until the cache has reduced them: they are the largest arrays of all
        self._top = None if top is None else tf.function(lambda maps: top(maps, training=False), reduce_retracing=True)
        with named_layers(Path(MODEL_FILE)):
            self._cache = FrameCache.of(models.config, models.stage_two, tensors, rows)
        head = self._cache.head if self._cache else submodel_from(tensors, models.stage_two)
        lags = self._cache.lags if self._cache else dict.fromkeys(self._inputs.values(), 0)
        self._keep = int((rows[:, -1] - rows[:, 0]).max())
        shapes = {tensor.name: tensor.shape[1:] for tensor in head.inputs}
        self.buffers = {n: np.zeros((self._keep + self.step, *shapes[n][1:]), np.float32) for n in lags}
        self._first = self._count = 0  # frames _first … _first + _count - 1 of the stream are in the buffers

        def predict(frames: NamedTensors, rows: Any, vectors: NamedTensors) -> Any:
            # windows overlap: TensorFlow copies them on all cores, and only once
            windows = {n: tf.gather(values, rows[:, lags[n] :]) for n, values in frames.items()}
            return head(model_inputs(windows | vectors), training=False)

        frames = {n: tf.TensorSpec(b.shape, tf.float32) for n, b in self.buffers.items()}
        vectors = {n: tf.TensorSpec((None, *s), tf.float32) for n, s in shapes.items() if n not in frames}
        signature = [frames, tf.TensorSpec((None, rows.shape[1]), tf.int64), vectors]
        self._predict = tf.function(predict, input_signature=signature, autograph=False)

    def push(self, batch: StreamBatch) -> None:
        """Take in the stream's next frames, at most `step`; frames that no later window needs are dropped."""
        drop = max(self._count - self._keep, 0)
        for buffer in self.buffers.values():
            buffer[: self._count - drop] = buffer[drop : self._count]
        self._first, self._count = self._first + drop, self._count - drop
        streams: NamedTensors = dict(batch)
        if self.engine is not None:
            streams |= self.engine(streams.pop(FRAMES))
            if self._top is not None:
                streams[APPEARANCE] = self._top(tf.constant(streams[APPEARANCE]))
        values: NamedTensors = {name: streams[stream] for stream, name in self._inputs.items()}
        count = 0
        for name, frames in (self._cache(values) if self._cache else values).items():
            count, taken = len(frames), self.buffers[name].shape[1:]
            if frames.shape[1:] != taken:  # of flow, which only the frames tell
                what = f"{MODEL_FILE}: takes something else than the run's settings say"
                raise DataError(what, expected=f"{name} {frames.shape[1:]}", got=taken, hint="train again")
            self.buffers[name][self._count : self._count + count] = frames
        self._count += count

    def predict(self, rows: NDArray[np.int64], geometry: Predictions | None = None) -> Predictions:
        """Predict (n, targets) of windows `rows` (n, T) in the buffers, with vehicles' vectors `geometry` (n, F)."""
        frames = {n: tf.constant(buffer) for n, buffer in self.buffers.items()}
        vectors = {} if geometry is None else {GEOMETRY: tf.constant(geometry)}
        predictions: Predictions = self._predict(frames, tf.constant(rows - self._first), vectors).numpy()
        return predictions

    def run(
        self, batches: Iterable[StreamBatch], geometry: Callable[[slice], Predictions] | None = None
    ) -> Iterator[Predictions]:
        """Yield the predictions (m, targets) of all windows in order; `geometry` returns the vectors of a range."""
        if not self._inputs:
            assert geometry is not None
            yield self.predict(self.rows, geometry(slice(None)))
            return
        done = self._first = self._count = 0
        for batch in batches:
            self.push(batch)
            ready = int(np.searchsorted(self.rows[:, -1], self._first + self._count))
            for start in range(done, ready, self.step):
                windows = slice(start, min(start + self.step, ready))
                yield self.predict(self.rows[windows], None if geometry is None else geometry(windows))
            done = ready


def _split_top(stage_two: keras.Model, name: str) -> tuple[keras.Model | None, NamedTensors]:
    """The top that takes the input `name`, if there is one, and the tensors, by input, that the rest starts from."""
    tensors = {tensor.name: tensor for tensor in stage_two.inputs}
    if TOP not in [layer.name for layer in stage_two.layers]:
        return None, tensors
    top = stage_two.get_layer(TOP)
    # a single operation follows: it unfolds the frames of a window from the batch
    (unfold,) = (node.operation for node in top._outbound_nodes if node.operation in stage_two.operations)
    return top, tensors | {name: unfold.output}
