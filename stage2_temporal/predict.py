"""Prediction from images: a data set's examples, or a window that slides over a video or a folder of frames.

Each frame is decoded once, and what the head looks at, the trunk's maps or the flow, is computed once of it, in
batches; only as many frames' are kept as a window spans. `slider` runs the windows, `stream` decodes.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from features._common.atomic import atomic_write
from features._common.log import logger
from features._common.progress import progress_bar
from features._common.types import Image
from features.config import Config, read_run_config
from features.errors import BadInputs, ConfigError, DataError
from features.sequences import FrameSequence, Label
from features.streams import MOTION, UNITS
from features.windows import labels_with_targets, make_examples, window_offsets
from stage1_extract.datasets import scan
from stage1_extract.datasets.clip import Clip
from stage1_extract.datasets.single_video import is_single_clip, read_single_clip
from stage2_temporal.heads import uses_track
from stage2_temporal.runs import submission, tables
from stage2_temporal.runs.folder import read_metrics
from stage2_temporal.sliding import overlay, vehicle_prediction
from stage2_temporal.sliding.boxes_csv import SIDES, BoxesByFrame, read_boxes
from stage2_temporal.sliding.frame_stream import FrameStream
from stage2_temporal.sliding.sliding_window import Maps, RunModels, SlidingWindow, load_run_models

CLIPS = ("sample", "competition", "tusimple")  # layouts whose sequences are clips of one rate, `data.fps`


@dataclass(frozen=True)
class PredictionFiles:
    """What a prediction wrote: its files, how many windows, and one line for each sequence left out."""

    files: tuple[Path, ...]
    windows: int
    left_out: tuple[str, ...] = ()


def predict(
    run: Path,
    source: Path | None = None,
    output: Path | None = None,
    overlaid: Path | None = None,
    *,
    stride: int | None = None,
    fps: float | None = None,
    boxes: Path | None = None,
) -> PredictionFiles:
    """Predict with a run's model and write the CSV, and where asked the video with the values drawn on it.

    Args:
        source: a video, a folder of frames, or a data set in the config's layout; None: the config's data set.
        output: the CSV; None: `predicted/<source's stem>.csv` in the run's folder.
        overlaid: an .mp4, for a video or a folder of frames.
        stride: take every stride-th frame into the window instead of the run's.
        fps: frames a second, where the source doesn't say or says it wrong.
        boxes: where the vehicles are, see `read_boxes`; for a head that is told which.

    Raises:
        FramebankError: what the user can mend; nothing is written then.
    """
    cv2.setNumThreads(1)  # frames are what runs in parallel; and flow depends on it
    read_metrics(run)
    config = read_run_config(run)
    for name, value in (("--stride", stride), ("--fps", fps)):
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{name} must be positive", got=value, hint=f"{name} N")
    config = config.model_copy(
        update={
            "data": config.data.model_copy(
                update={"path": str(source or config.data.path), "fps": fps or config.data.fps}
            ),
            "window": config.window.model_copy(update={"stride": stride or config.window.stride}),
        }
    )
    path = Path(config.data.path)
    sliding = source is not None and is_single_clip(path)
    boxed = uses_track(run, config)
    if boxes is not None and not (boxed and sliding):
        why = f"{config.head.name} asks for no box" if sliding else "a data set's boxes are its labels'"
        raise ConfigError(f"--boxes: {why}", hint="leave it out")
    if boxed and sliding and boxes is None:
        raise ConfigError(f"{config.head.name} answers for a vehicle in a box", hint=vehicle_prediction.BOXES_HINT)
    if overlaid and not sliding:
        raise ConfigError("--overlay draws on one video or one folder of frames", got=path, hint="--input VIDEO")
    output = output or run / "predicted" / f"{path.stem}.csv"
    for file in filter(None, (output, overlaid)):
        _check_output(file, path)
    if not sliding:
        return _predict_data_set(run, config, output)
    clip = read_single_clip(path, config.data, fps)
    rows = sliding_windows(clip, config)
    given = None if boxes is None else read_boxes(boxes, clip.sequence)
    parts = load_run_models(run)
    _compare_rates(clip, config, parts)
    if given is not None:
        return _predict_vehicles(parts, clip, given, rows, config, output, overlaid)
    slider = SlidingWindow(parts, rows)
    stream = FrameStream([clip], np.arange(clip.sequence.length), config, list(parts.streams))
    values = np.concatenate(list(slider.run(stream.batches(slider.step))))
    with atomic_write(output) as temporary:
        _write_footage(temporary, rows[:, -1], values, clip.sequence.fps, config.data.columns)
    if overlaid is None:
        return PredictionFiles((output,), len(rows))
    with atomic_write(overlaid) as temporary, progress_bar(clip.sequence.length, "overlay", "frames") as progress:
        images = _counted(clip.source.read(0, clip.sequence.length), progress)
        labels = [(c, UNITS.get(c, "")) for c in config.data.columns]
        overlay.write_overlay(temporary, images, clip.sequence, int(rows[0, -1]), values, labels)
    return PredictionFiles((output, overlaid), len(rows))


def sliding_windows(clip: Clip, config: Config) -> NDArray[np.int64]:
    """(n, T) frames of every window of a clip.

    Raises:
        DataError: the clip is shorter than one.
    """
    length, stride = config.window.length, config.window.stride
    span = (length - 1) * stride + 1
    if clip.sequence.length < span:
        raise DataError(
            f"{config.data.path}: shorter than one window ({length} frames, stride {stride})",
            expected=f"at least {span} frames",
            got=clip.sequence.length,
            hint="--input a longer one" if stride == 1 else "--stride 1, or --input a longer one",
        )
    ends = np.arange(span - 1, clip.sequence.length, dtype=np.int64)
    return ends[:, None] + window_offsets(length, stride, 0)


def _predict_vehicles(
    parts: RunModels,
    clip: Clip,
    given: BoxesByFrame,
    rows: NDArray[np.int64],
    config: Config,
    output: Path,
    overlaid: Path | None,
) -> PredictionFiles:
    """The vehicles in given boxes along a video: one row a window and vehicle."""
    columns, fps, count = config.data.columns, clip.sequence.fps, 0
    names = sorted({name for boxes in given.values() for name in boxes})
    with ExitStack() as stack:
        table = stack.enter_context(atomic_write(output))
        draw = None
        if overlaid is not None:
            draw = stack.enter_context(overlay.open_overlay(stack.enter_context(atomic_write(overlaid)), clip.sequence))
        writer = csv.writer(stack.enter_context(table.open("w", newline="", encoding="utf-8")), lineterminator="\n")
        writer.writerow(["time", "frame", "vehicle", *SIDES, *columns])
        for image, sights in vehicle_prediction.predict_vehicles(parts, clip, given, rows, config):
            for s in sights:
                writer.writerow([f"{s.frame / fps:.6f}", s.frame, s.vehicle, *s.box, *s.values])
                texts = [f"{c} {v:+.1f} {UNITS.get(c, '')}" for c, v in zip(columns, s.values, strict=True)]
                if draw is not None:
                    overlay.draw_box(image, s.box, texts, names.index(s.vehicle))
            if draw is not None:
                draw(image)
            count += len(sights)
        vehicle_prediction.check_any_followed(count, Path(config.data.path))
    return PredictionFiles((output, *([overlaid] if overlaid else [])), count)


def _predict_data_set(run: Path, config: Config, output: Path) -> PredictionFiles:
    """The examples of a data set: their predictions, and the competition's submission."""
    catalogue = scan(config.data)
    if catalogue.faults and not config.extract.skip_damaged:
        what = f"{len(catalogue.faults)} faults in {config.data.path}, nothing was predicted"
        raise BadInputs(what, list(catalogue.faults), hint="put them right")
    if not catalogue.clips:
        raise BadInputs(f"{config.data.path}: no sound clip", list(catalogue.faults))
    sequences = [_labelled(clip.sequence, config) for clip in catalogue.clips]
    first = np.cumsum([0, *(s.length for s in sequences)])
    window = config.window
    found = make_examples(
        sequences, first[:-1], config.data.columns, length=window.length, stride=window.stride, end=window.end
    )
    parts = load_run_models(run)
    told = vehicle_prediction.track_labelled_vehicles(parts, catalogue.clips, found, first, config)
    order = np.argsort(found.rows[:, -1], kind="stable")
    needed = np.unique(found.rows)  # frames that no window needs are not even decoded
    slider = SlidingWindow(parts, np.searchsorted(needed, found.rows[order]))
    faults = {} if told is None else told.faults
    if parts.streams:
        followed, tracks = (set(), {}) if told is None else (told.followed, told.tracks)
        stream = FrameStream(catalogue.clips, needed, config, list(parts.streams), followed, tracks, faults)
        answers = slider.run(stream.batches(slider.step), None if told is None else lambda w: told.vectors(order[w]))
    else:
        assert told is not None
        answers = iter([slider.answer(slider.rows, told.vectors(order))])
    values = np.empty((len(found), len(found.columns)))
    values[order] = np.concatenate(list(answers))
    sound = np.array([sequences[i].id not in faults for i in found.sequence])
    if not sound.any():
        raise BadInputs(
            f"{config.data.path}: nothing could be decoded", list(faults.values()), hint="replace the files"
        )
    found, values = found[sound], values[sound]
    with atomic_write(output) as temporary:
        tables.write_predictions(temporary, found, found.split, values, sequences, window.stride)
    submitted = submission.write_submission_files(output.parent, config.data.layout, found, values, sequences)
    return PredictionFiles((output, *submitted), len(found), tuple(faults.values()))


def _labelled(sequence: FrameSequence, config: Config) -> FrameSequence:
    """The sequence; where no label is about the target, with unknown ones where a prediction is wanted.

    A clip's is at the frame its label would hold for; a video is predicted at every frame.
    """
    columns, data = config.data.columns, config.data
    if labels_with_targets(sequence, columns):
        return sequence
    last = (data.label_frame or sequence.length) - 1
    wanted = [last] if data.layout in CLIPS else range(sequence.length)
    unknown = dict.fromkeys(columns, math.nan)
    return replace(sequence, labels=(*sequence.labels, *(Label(frame, unknown) for frame in wanted)))


def _compare_rates(clip: Clip, config: Config, parts: RunModels) -> None:
    """Say so where the model sees frames of another distance in time than in training."""
    trained, streams = parts.config, parts.streams
    if trained.data.layout not in CLIPS:
        return
    if MOTION in streams and not 0.9 < trained.data.fps / clip.sequence.fps < 1.1:
        logger.warning(
            f"the run was trained on flow between frames {1 / trained.data.fps:.3g} s apart, these are "
            f"{1 / clip.sequence.fps:.3g} s apart: give {trained.data.fps:g} frames a second, no --stride mends it"
        )
        return
    before = trained.window.stride / trained.data.fps
    now = config.window.stride / clip.sequence.fps
    if not 0.9 < now / before < 1.1:
        best = max(1, round(before * clip.sequence.fps))
        hint = f"; --stride {best} comes nearest" if best != config.window.stride else ""
        logger.warning(f"the run was trained on frames {before:.3g} s apart, these are {now:.3g} s apart{hint}")


def _check_output(path: Path, source: Path) -> None:
    """Refuse before the work what could not be written after it."""
    hint = "give a file in a folder that can be written"
    if path.exists() and (path.is_dir() or path.samefile(source)):
        raise ConfigError(f"{path}: {'a folder' if path.is_dir() else 'the input itself'}, not written to", hint=hint)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(f".{path.name}.{os.getpid()}.probe")
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise ConfigError(f"{path}: cannot be written", got=e.strerror or e, hint=hint) from None


def _write_footage(path: Path, frames: NDArray[np.int64], values: Maps, fps: float, columns: tuple[str, ...]) -> None:
    """`time` [s], `frame` (each window's last, from 0), and the targets; one row a window."""
    with path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(["time", "frame", *columns])
        for frame, row in zip(frames.tolist(), values.tolist(), strict=True):
            writer.writerow([f"{frame / fps:.6f}", frame, *row])


def _counted(images: Iterable[Image], progress: Any) -> Iterator[Image]:
    for image in images:
        yield image
        progress.update()
