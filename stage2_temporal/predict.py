"""Predict from images with a run: the examples of a data set, or windows that slide over one video.

    framebank predict --run NAME [--input DATA_SET]                  one row per label, as in the run's predictions.csv
    framebank predict --run NAME --input VIDEO [--overlay OUT.mp4]   one row per frame, from the first full window on
    framebank predict --run NAME --input VIDEO --boxes BOXES.csv     one row per frame and vehicle

A folder of frames counts as a video. Each frame is decoded once and goes through the trunk once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from features._common.atomic import atomic_write
from features._common.console import logger
from features._common.csv_table import write_csv_table
from features._common.output_file import check_output
from features._common.types import Image
from features.backbone_names import is_imported
from features.config import Config, read_run_config
from features.errors import BadInputs, ConfigError, DataError
from features.sequences import FrameSequence, Label
from features.streams import MOTION, PAIR_STREAMS
from features.strict_model import describe_validation_error
from features.windows import Examples, labels_with_targets, make_examples, slowest_interval
from stage1_extract.datasets import scan
from stage1_extract.datasets.camera_file import with_camera
from stage1_extract.datasets.clip import Catalogue, Clip, every_nth
from stage1_extract.datasets.image_file import IMAGE_SUFFIXES
from stage1_extract.datasets.single_video import holds_videos, is_single_clip, use_single_clip
from stage1_extract.datasets.video import UnexpectedFramesError
from stage1_extract.frame_loader import encode_thumbnail, resize_frame
from stage1_extract.optical_flow import FLOW_INFO
from stage2_temporal.evaluation.uncertainty import (
    IntervalOptions,
    UncertainPredictions,
    WindowOrigin,
    check_options,
    one_sequence,
    read_outputs,
    read_uncertainty,
)
from stage2_temporal.heads import uses_track
from stage2_temporal.report.drive_page import Drive, shown_frames, write_drive_page
from stage2_temporal.runs.results import read_metrics, write_predictions
from stage2_temporal.runs.submission import write_submission_files
from stage2_temporal.sliding.boxes_csv import BOXES_HINT, SIDES, BoxesByFrame, read_boxes
from stage2_temporal.sliding.frame_log import FrameLog, read_pictures
from stage2_temporal.sliding.frame_stream import FrameStream
from stage2_temporal.sliding.overlay import draw_box, open_overlay, prediction_texts, write_overlay
from stage2_temporal.sliding.sliding_window import (
    CLIP_LAYOUTS,
    RunModels,
    SlidingWindow,
    flow_step,
    load_run_models,
    sliding_windows,
    trained_interval,
)
from stage2_temporal.sliding.vehicle_prediction import VehiclePrediction, VehicleTracks, predict_vehicles

PICTURE_TEXT = 0.5  # size of vehicles' names on the small pictures of a drive's page


@dataclass(frozen=True)
class PredictionFiles:
    """What a prediction wrote: its files, the number of windows, and a line per sequence that was skipped."""

    files: tuple[Path, ...]
    windows: int
    skipped: tuple[str, ...] = ()


def predict(
    run: Path,
    source: Path | None = None,
    output: Path | None = None,
    overlay: Path | None = None,
    *,
    stride: int | None = None,
    fps: float | None = None,
    boxes: Path | None = None,
    camera: Path | None = None,
    allow_truncated: bool = False,
    options: IntervalOptions = IntervalOptions(),  # noqa: B008 — frozen
    report: Path | None = None,
) -> PredictionFiles:
    """Predict with the run in a folder, and write the predictions as CSV; see `framebank.predict` for the arguments."""
    check_options(run, read_uncertainty(run), options)
    for option, value in (("--stride", stride), ("--fps", fps)):
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{option} must be positive", got=value, hint=f"{option} 1")
    settings = {
        "data.path": source and str(source),
        "data.fps": fps,
        "data.calibration": camera and str(camera),
        "data.allow_truncated": allow_truncated or None,
        "window.stride": stride,
    }
    if source is not None and holds_videos(source) and not is_single_clip(source):
        settings["data.layout"] = "video"
    config = _prediction_config(run, settings)
    path = Path(config.data.path)
    is_clip = source is not None and is_single_clip(path)
    _check_options(run, config, is_clip, boxes, overlay, report)
    output = output or run / "predicted" / f"{path.stem}.csv"
    inputs = [file for file in (path, boxes, camera) if file is not None]
    for file in (output, overlay, report):
        if file is not None:
            check_output(file, *inputs, suffixes=IMAGE_SUFFIXES)
    if not is_clip:
        return _predict_data_set(run, config, output, options)

    def predict_clip(clip: Clip) -> PredictionFiles:
        if camera is not None:
            (clip,) = with_camera([clip], camera)
        boxes_by_frame = None if boxes is None else read_boxes(boxes, clip.sequence)
        reads_flow = not set(PAIR_STREAMS).isdisjoint(config.head.input_streams) and stride is None and boxes is None
        step = flow_step(clip.sequence, read_metrics(run).frame_interval) if reads_flow else 1
        rows = sliding_windows(every_nth(clip, step).sequence, config, _slowest(run, config))
        models = load_run_models(run)
        if boxes_by_frame is None:
            return _predict_clip(models, clip, step, rows, config, output, options, overlay, report)
        return _predict_vehicles(models, clip, rows, boxes_by_frame, config, output, options, overlay, report)

    return use_single_clip(path, config.data, fps, predict_clip)


def predict_labelled(
    run: Path,
    source: Path | None = None,
    *,
    layout: str | None = None,
    camera: Path | None = None,
    fps: float | None = None,
) -> DataSetPredictions:
    """Predict the examples of a data set in any layout; see `framebank.workflows.score` for the arguments."""
    settings = {
        "data.path": source and str(source),
        "data.layout": layout,
        "data.calibration": camera and str(camera),
        "data.fps": fps,
    }
    return _predict_examples(run, _prediction_config(run, settings), IntervalOptions())


def _prediction_config(run: Path, settings: Mapping[str, Any]) -> Config:
    """A run's config with the settings that are not None, to predict at the interval that it was trained at."""
    cv2.setNumThreads(1)  # frames are decoded in parallel; and optical flow depends on the number of threads
    metrics, config = read_metrics(run), read_run_config(run)
    if is_imported(config.backbone.name) and config.map_streams:
        raise ConfigError(
            f"{run}: another tool computed its features ({config.backbone.name}), so it cannot predict from images",
            hint="import features of the new clips with the others, and train again",
        )
    if metrics.store.streams.get(MOTION, FLOW_INFO.fingerprint) != FLOW_INFO.fingerprint:
        logger.warning(
            f"{run}: trained on optical flow that another version of framebank computed, so its predictions may be "
            "worse. Extract and train again."
        )
    trained = config
    try:
        given = {name: value for name, value in settings.items() if value is not None}
        if given.get("data.path", trained.data.path) != trained.data.path:
            given = {"data.calibration": None} | given  # the run's is that of its own data
        config = config.with_settings(given)
    except ValidationError as e:
        raise ConfigError(describe_validation_error(e)) from None
    # footage of another frame rate is brought to the interval that the run was trained at
    interval = None if settings.get("window.stride") is not None else trained_interval(metrics, trained)
    return config.with_settings({"window.interval": interval})


def _slowest(run: Path, config: Config) -> float | None:
    """The `slowest` of `window_frames` for a run's head; flow between frames far apart in time may fail."""
    if not config.any_frame_rate:
        return None
    reads_flow = not set(PAIR_STREAMS).isdisjoint(config.head.input_streams)
    checked = reads_flow and config.window.interval is not None
    return slowest_interval(read_metrics(run).frame_interval if checked else None)


def _check_options(
    run: Path, config: Config, is_clip: bool, boxes: Path | None, overlay: Path | None, report: Path | None
) -> None:
    """Raise ConfigError where boxes, an overlay or a page do not suit the input and the head."""
    head, takes_track = config.head.name, uses_track(run, config)
    if config.data.crops is not None and is_clip:
        raise ConfigError(
            f"{run} was trained on the crops of labelled vehicles", got="one video", hint="--input DATA_SET, with boxes"
        )
    if boxes is not None and not is_clip:
        raise ConfigError("--boxes is for a video; a data set has boxes in its labels", hint="leave out --boxes")
    if boxes is not None and not takes_track:
        raise ConfigError(f"--boxes: {head} does not use boxes", hint="leave out --boxes")
    if boxes is None and is_clip and takes_track:
        raise ConfigError(f"{head} predicts for a vehicle in a box, but no box is given", hint=BOXES_HINT)
    for option, file in (("--overlay", overlay), ("--report", report)):
        if file is not None and not is_clip:
            path = Path(config.data.path)
            raise ConfigError(f"{option} needs one video or one folder of frames", got=path, hint="--input VIDEO")


def _predict_clip(
    models: RunModels,
    clip: Clip,
    step: int,
    rows: NDArray[np.int64],
    config: Config,
    output: Path,
    options: IntervalOptions,
    overlay: Path | None,
    report: Path | None,
) -> PredictionFiles:
    """Predict each window of a video: columns time [s], frame (the window's last), the targets and their intervals.

    `rows` (n, T) count every `step`-th frame of the clip.
    """
    columns, used = config.data.columns, every_nth(clip, step)
    window = SlidingWindow(models, rows)
    stream = FrameStream([used], np.arange(used.sequence.length), config, models)
    outputs = np.concatenate(list(window.run(stream.batches(window.step))))
    profiles, origin = stream.frame_log.profiles(rows[:, [0, -1]]), one_sequence(clip.sequence, len(rows))
    predictions = read_outputs(models.uncertainty, outputs, profiles, origin, options)
    frames, times = rows[:, -1] * step, clip.sequence.frame_times
    with atomic_write(output) as temporary:
        lines = zip(
            frames.tolist(), times[frames].tolist(), predictions.values.tolist(), predictions.cells(), strict=True
        )
        table = ([f"{time:.6f}", frame, *row, *cells] for frame, time, row, cells in lines)
        write_csv_table(temporary, ["time", "frame", *columns, *predictions.header(columns)], table)
    _warn(predictions)
    files = [output]
    if overlay is not None:
        write_overlay(overlay, clip, frames, predictions, columns)
        files.append(overlay)
    if report is not None:
        drive = Drive(clip.sequence.id, times, frames, predictions, columns)
        write_drive_page(report, drive, read_pictures(clip, shown_frames(drive)))
        files.append(report)
    return PredictionFiles(tuple(files), len(rows))


def _predict_vehicles(
    models: RunModels,
    clip: Clip,
    rows: NDArray[np.int64],
    boxes: BoxesByFrame,
    config: Config,
    output: Path,
    options: IntervalOptions,
    overlay: Path | None,
    report: Path | None,
) -> PredictionFiles:
    """Predict each window of each vehicle: columns time [s], frame, vehicle, box in px, targets and their intervals."""
    columns, times = config.data.columns, clip.sequence.frame_times
    names = sorted({name for by_vehicle in boxes.values() for name in by_vehicle})
    everything: list[VehiclePrediction] = []
    frame_log, row_of = FrameLog(), {int(row[-1]): row for row in rows}

    def read(some: list[VehiclePrediction]) -> UncertainPredictions:
        profiles = frame_log.profiles(np.array([row_of[p.frame][[0, -1]] for p in some]))
        origin = one_sequence(clip.sequence, len(some))
        return read_outputs(models.uncertainty, np.array([p.values for p in some]), profiles, origin, options)

    with nullcontext() if overlay is None else open_overlay(overlay, clip.sequence) as write_frame:
        for image, predictions in predict_vehicles(models, clip, boxes, rows, config):
            frame_log.add(encode_thumbnail(resize_frame(image, config.frames), config.frames.colour))
            everything += predictions
            if write_frame is not None:
                texts = [prediction_texts(read([p]), 0, columns) for p in predictions]
                for p, text in zip(predictions, texts, strict=True):
                    draw_box(image, p.box, text, names.index(p.vehicle))
                write_frame(image)
        if not everything:
            raise DataError(
                f"{config.data.path}: no vehicle could be followed to the end of a window",
                expected="a box with contrast, at least 6 px wide and high, in or before the last frame of a window",
                hint=BOXES_HINT,
            )
    uncertain = read(everything)
    with atomic_write(output) as temporary:
        lines = zip(everything, uncertain.values.tolist(), uncertain.cells(), strict=True)
        table = ([f"{times[p.frame]:.6f}", p.frame, p.vehicle, *p.box, *row, *cells] for p, row, cells in lines)
        header = ["time", "frame", "vehicle", *SIDES, *columns, *uncertain.header(columns)]
        write_csv_table(temporary, header, table)
    _warn(uncertain)
    if report is not None:
        frames, vehicles = np.array([p.frame for p in everything]), [p.vehicle for p in everything]
        drive = Drive(clip.sequence.id, times, frames, uncertain, columns, vehicles)

        def draw(frame: int, picture: Image, scale: float) -> None:
            for p in everything[slice(*np.searchsorted(frames, (frame, frame + 1)))]:
                left, top, right, bottom = (side * scale for side in p.box)
                draw_box(picture, (left, top, right, bottom), [p.vehicle], names.index(p.vehicle), PICTURE_TEXT)

        write_drive_page(report, drive, read_pictures(clip, shown_frames(drive), draw))
    return PredictionFiles((output, *filter(None, (overlay, report))), len(everything))


def _warn(predictions: UncertainPredictions) -> None:
    if predictions.warning:
        logger.warning(predictions.warning)


@dataclass(frozen=True)
class DataSetPredictions:
    """The examples of a data set and what a run predicts for them."""

    examples: Examples
    predictions: UncertainPredictions
    sequences: list[FrameSequence]
    skipped: tuple[str, ...]  # a line per sequence that could not be decoded


def _predict_data_set(run: Path, config: Config, output: Path, options: IntervalOptions) -> PredictionFiles:
    """Predict the examples of a data set: predictions.csv and the files that the data set's own evaluation needs."""
    result = _predict_examples(run, config, options)
    examples, predictions = result.examples, result.predictions
    with atomic_write(output) as temporary:
        write_predictions(temporary, examples, examples.split, predictions, result.sequences)
    _warn(predictions)
    values = predictions.values
    submission = write_submission_files(output.parent, config.data.layout, examples, values, result.sequences)
    return PredictionFiles((output, *submission), len(examples), result.skipped)


def _predict_examples(run: Path, config: Config, options: IntervalOptions) -> DataSetPredictions:
    """Predict all examples; the frames of videos are counted by decoding only where their packets do not tell."""
    try:
        return _predict_catalogue(run, config, options, scan(config.data, need_labels=False, by_packets=True))
    except UnexpectedFramesError:
        return _predict_catalogue(run, config, options, scan(config.data, need_labels=False))


def _predict_catalogue(run: Path, config: Config, options: IntervalOptions, catalogue: Catalogue) -> DataSetPredictions:
    window = config.window
    if catalogue.faults and not config.extract.skip_damaged:
        what = f"{config.data.path}: {len(catalogue.faults)} errors, nothing was predicted"
        raise BadInputs(what, list(catalogue.faults), hint="correct these files and run the same command")
    if not catalogue.clips:
        raise BadInputs(f"{config.data.path}: no readable clip", list(catalogue.faults), hint="--input DATA_SET")
    sequences = [_with_unknown_labels(clip.sequence, config) for clip in catalogue.clips]
    first = np.cumsum([0, *(s.length for s in sequences)])
    examples = make_examples(
        sequences, first[:-1], config.data.columns, **window.model_dump(), slowest=_slowest(run, config)
    )
    models = load_run_models(run)
    vehicles = VehicleTracks(models, catalogue.clips, examples, first, config) if models.camera_geometry else None
    order = np.argsort(examples.rows[:, -1], kind="stable")
    needed = np.unique(examples.rows)  # frames outside all windows are not decoded
    sliding = SlidingWindow(models, np.searchsorted(needed, examples.rows[order]))
    stream = FrameStream(catalogue.clips, needed, config, models, vehicles)
    geometry = None if vehicles is None else lambda windows: vehicles.vectors(order[windows])
    ordered = np.concatenate(list(sliding.run(stream.batches(sliding.step), geometry)))
    values = np.empty(ordered.shape)
    values[order] = ordered
    ends = examples.rows[:, [0, -1]]
    if not models.inputs:  # no frame has been decoded yet
        needed = np.unique(ends)
        stream = FrameStream(catalogue.clips, needed, config, models, vehicles)
        for _ in stream.batches(sliding.step):
            pass
    profiles = stream.frame_log.profiles(np.searchsorted(needed, ends))
    origin = WindowOrigin(sequences, examples.sequence, examples.split)
    predictions = read_outputs(models.uncertainty, values, profiles, origin, options)
    decoded = np.array([sequences[i].id not in stream.faults for i in examples.sequence])
    faults = tuple(stream.faults.values())
    if not decoded.any():
        raise BadInputs(f"{config.data.path}: nothing could be decoded", list(faults), hint="replace these files")
    return DataSetPredictions(examples[decoded], predictions[decoded], sequences, faults)


def _with_unknown_labels(sequence: FrameSequence, config: Config) -> FrameSequence:
    """Add unknown labels, if there are none with the target: at a clip's label frame, or at each frame of a video."""
    columns, data = config.data.columns, config.data
    if labels_with_targets(sequence, columns):
        return sequence
    last = (data.label_frame or sequence.length) - 1
    frames = [last] if data.layout in CLIP_LAYOUTS else range(sequence.length)
    unknown = dict.fromkeys(columns, math.nan)
    return replace(sequence, labels=(*sequence.labels, *(Label(frame, unknown) for frame in frames)))
