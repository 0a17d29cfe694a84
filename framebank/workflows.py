"""What the commands and the Python API do: extract a data set, train one run per target, predict.

Heavy libraries are imported when a function needs them, so that an early error does not wait for TensorFlow.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from features._common.atomic import sweep
from features._common.console import logger, quiet_imports
from features._common.user_path import expand_user
from features.backbone_names import check_computable
from features.config import Config
from features.errors import BadInputs, ConfigError, DataError
from features.limits import IMAGE_PIXELS
from features.store import Store
from features.strict_model import describe_validation_error

if TYPE_CHECKING:
    from features.verification import Damage
    from stage1_extract.extract import ExtractionResult
    from stage2_temporal.predict import PredictionFiles
    from stage2_temporal.runs.results import Metrics


def extract(config: Config, store: Path | str) -> Path:
    """Extract what the store does not hold yet; render the sample data set first if the config reads it.

    Args:
        config: which data set, frames and backbone.
        store: the HDF5 file to create or extend.

    Returns:
        The path of the store.

    Raises:
        FramebankError: something the user can correct, such as damaged files.
    """
    path = expand_user(store)
    extract_data_set(config, path)
    return path


def extract_data_set(
    config: Config, store: Path, damage: Damage | None = None, *, rehash: bool = False
) -> ExtractionResult:
    """Like `extract`, but return details; what the `damage` of the store has spoilt is extracted again.

    With `rehash`, files are read even if their size and time of modification are those of the last scan.
    """
    check_computable(config.backbone.name)  # before the sample set is rendered
    quiet_opencv()
    from stage1_extract.backends import reads_later
    from stage1_extract.datasets import scan
    from stage1_extract.datasets.scan_cache import scan_cache_of
    from stage1_extract.extract import extract as extract_catalogue

    if config.data.layout == "sample":
        render_sample(config)
    path = store.resolve() if store.is_symlink() else store  # replace the file that a link points to, not the link
    path.parent.mkdir(parents=True, exist_ok=True)
    # Python's search for cycles would walk the catalogue again and again: a quarter of the time of 100,000 files
    gc.disable()
    try:
        read_later = None if rehash or damage is not None else reads_later(config, path)
        catalogue = scan(config.data, cache=scan_cache_of(path, rehash=rehash), read_later=read_later)
        gc.freeze()
        gc.enable()
        return extract_catalogue(config, path, catalogue, damage=damage)
    finally:
        gc.enable()
        gc.unfreeze()


def estimate_data_set(config: Config, store: Path, damage: Damage | None = None, *, rehash: bool = False) -> str:
    """What `extract_data_set` would do, and how long it would take, as a table; nothing is written."""
    check_computable(config.backbone.name)  # before the sample set is rendered
    quiet_opencv()
    from stage1_extract.backends import reads_later
    from stage1_extract.datasets import scan
    from stage1_extract.datasets.scan_cache import scan_cache_of
    from stage1_extract.dry_run import estimate_extraction, estimate_table

    path = store.resolve() if store.is_symlink() else store
    read_later = None if rehash or damage is not None else reads_later(config, path)
    catalogue = scan(config.data, cache=scan_cache_of(path, rehash=rehash, read_only=True), read_later=read_later)
    if not catalogue.clips:
        raise BadInputs(f"{config.data.path}: every clip has errors", list(catalogue.faults))
    return estimate_table(estimate_extraction(config, path, catalogue, damage))


def render_sample(config: Config) -> None:
    """Render the sample data set into `data.path`, unless it is there."""
    from stage1_extract.sample import render_sample_set

    if not Path(config.data.path).exists():
        logger.info(f"{config.data.path}: rendering the sample data set there, since data.layout is sample")
    render_sample_set(Path(config.data.path), kind=config.data.sample, seed=config.data.seed)


def train(config: Config, store: Path | str, run: str | None = None) -> list[Path]:
    """Train the runs that the config compares, or one for each target; a run that exists is not trained again.

    Args:
        config: the task: `data.target` and `data.also`, windows, head and training.
        store: a complete store.
        run: name of the run, or its folder; only `data.target` is trained then. Default: one name for each target,
            made of the store's name, the target and the head.

    Returns:
        The folders of the runs.

    Raises:
        FramebankError: something the user can correct.
    """
    path = expand_user(store)
    return [folder for folder, _ in train_runs(config, path, run, stem=path.stem)]


def train_runs(config: Config, store: Path, run: str | None, *, stem: str) -> Iterator[tuple[Path, bool]]:
    """Like `train`, but yield each run's folder, named after `stem`, and whether it existed."""
    from stage2_temporal.data.task import check_recipe, read_task, store_origin
    from stage2_temporal.runs.folder import RUNS, choose_run_folder, run_path

    sweep(RUNS if run is None else run_path(run).parent)
    with Store(store) as opened:
        check_recipe(config, opened)
        configs = compared_configs(config, single=run is not None)
        derived = len(configs) == 1
        for number, task_config in enumerate(configs):
            task = read_task(task_config, opened)
            with quiet_imports():
                from stage2_temporal.heads.default_head import resolve_default_head
            task_config = resolve_default_head(task_config, opened, task.examples)
            folder, existed = choose_run_folder(run, stem, task_config, store_origin(opened, task, task_config))
            if not existed:
                with quiet_imports():
                    from stage2_temporal.train import derive_together
                    from stage2_temporal.train import train as train_run

                if not derived:
                    derive_together(configs[number:], opened)
                    derived = True
                train_run(task_config, opened, task, folder)
            yield folder, existed


def compared_configs(config: Config, *, single: bool = False) -> list[Config]:
    """The configs that `train` trains: those to compare, else one for each target; only the first target if `single`.

    A ConfigError if an entry of `compare` has an unknown setting or a wrong value.
    """
    if single or not config.compare:
        return [config.with_target(target) for target in [config.data.target, *(() if single else config.data.also)]]
    configs = []
    for number, entry in enumerate(config.compare, 1):
        try:
            settings = {name: value for name, value in entry.items() if name != "label"}
            configs.append(config.with_settings({"data.also": (), **settings}))
        except ValidationError as e:
            raise ConfigError(f"[[compare]] number {number}: {describe_validation_error(e)}") from None
    return configs


def predict(
    run: Path | str,
    source: Path | str | None = None,
    output: Path | str | None = None,
    *,
    overlay: Path | str | None = None,
    boxes: Path | str | None = None,
    stride: int | None = None,
    fps: float | None = None,
    camera: Path | str | None = None,
    allow_truncated: bool = False,
    threshold: float | None = None,
    level: float | None = None,
    report: Path | str | None = None,
) -> PredictionFiles:
    """Predict with a run on a video, a folder of frames or a data set, and write the predictions as CSV.

    Args:
        run: name of the run, or its folder.
        source: a video, a folder of frames, or a data set in the run's layout; default: the run's own data set.
        output: the CSV file; default: `predicted/<name of the source>.csv` in the run's folder.
        overlay: an .mp4 file with the predictions drawn on the frames.
        boxes: a CSV file with the vehicles' boxes, for heads that predict for a vehicle in a video.
        stride: take every stride-th frame, instead of those at the interval that the run was trained at.
        fps: frames per second, if the source's frame rate is missing or wrong.
        camera: a .toml file with the camera's numbers, or one like calibration.txt; default: the source's own.
        allow_truncated: use a video that breaks off as far as it goes.
        threshold: also write the probability that each target is above this value, in its unit.
        level: probability with which intervals are to contain the truth; default: the run's `train.interval_level`.
        report: an .html file to write, a page that shows the drive with its frames.

    Returns:
        The files written, the number of windows, and the sequences that were skipped.

    Raises:
        FramebankError: something the user can correct; nothing is written then.
    """
    folder = run_folder(run)  # an error here need not wait for TensorFlow
    quiet_opencv()
    with quiet_imports():
        from stage2_temporal.evaluation.uncertainty import IntervalOptions
        from stage2_temporal.predict import predict as predict_run

    paths = {"source": source, "output": output, "overlay": overlay, "boxes": boxes, "camera": camera, "report": report}
    expanded = {name: Path(expand(path)) for name, path in paths.items() if path is not None}
    return predict_run(
        folder,
        **expanded,
        stride=stride,
        fps=fps,
        allow_truncated=allow_truncated,
        options=IntervalOptions(level, threshold),
    )


def score(
    run: Path | str,
    source: Path | str | None = None,
    *,
    layout: str | None = None,
    camera: Path | str | None = None,
    fps: float | None = None,
) -> Metrics:
    """Predict a labelled data set with a run and score the predictions; nothing is written.

    Args:
        run: name of the run, or its folder.
        source: a data set; default: the run's own.
        layout: layout of its files; default: the run's.
        camera: a .toml file with the camera's numbers, or one like calibration.txt; default: the data set's own.
        fps: frames per second, if the data set does not state it; default: the run's.

    Returns:
        The run's metrics, with the scores on each split of the data set.

    Raises:
        FramebankError: something the user can correct.
    """
    folder = run_folder(run)
    quiet_opencv()
    with quiet_imports():
        from stage2_temporal.predict import predict_labelled
        from stage2_temporal.train import score_predictions

    paths = {name: Path(expand(path)) for name, path in (("source", source), ("camera", camera)) if path is not None}
    result = predict_labelled(folder, **paths, layout=layout, fps=fps)
    for line in result.skipped:
        logger.warning(f"skipped: {line}")
    return score_predictions(folder, result.examples, result.predictions)


def run_folder(run: Path | str) -> Path:
    """The folder of a finished run; a DataError if there is none."""
    from stage2_temporal.runs.folder import run_path
    from stage2_temporal.runs.results import read_metrics

    folder = run_path(expand(run))
    sweep(folder.parent, folder, folder / "export", folder / "predicted")
    read_metrics(folder)
    return folder


def reads_maps_alone(run: Path, config: Config) -> bool:
    """Whether a run's head reads the CNN's maps and nothing else, so that it can be fine-tuned."""
    from stage2_temporal.vehicle.camera_geometry import CAMERA_GEOMETRY_FILE

    has_track = (run / CAMERA_GEOMETRY_FILE).is_file()
    return bool(config.map_streams) and config.map_streams == config.head.input_streams and not has_track


def best_run_on_maps() -> str:
    """The run in runs/ with the highest validation skill whose head reads maps alone; a DataError if there is none."""
    from stage2_temporal.runs.folder import RUNS
    from stage2_temporal.runs.leaderboard import find_runs

    skills = {
        str(run.path): run.metrics.splits["validation"].model.skill
        for run in find_runs(RUNS)[0]
        if "validation" in run.metrics.splits and reads_maps_alone(run.path, run.config)
    }
    if not skills:
        raise DataError("no run whose head reads the CNN's maps alone", hint="framebank train, or --run NAME")
    return max(skills, key=skills.__getitem__)


def expand(path: Path | str) -> str:
    """A path with `~` replaced by the user's home folder."""
    return os.path.expanduser(path)  # noqa: PTH111 — Path would turn "./name" into "name", which means runs/name


def quiet_opencv() -> None:
    """Silence OpenCV and FFmpeg, whose faults framebank reports itself, and bound the size of images.

    This has an effect before cv2 is imported.
    """
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(IMAGE_PIXELS))  # for formats that Pillow does not know
