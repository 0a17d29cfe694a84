"""The subcommands: one class each, with its options and what it does. Their docstrings are the help.

Heavy libraries are imported when a command runs, so that help and early errors come at once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from features._common.atomic import exclusive_write_lock, sweep
from features._common.console import logger, progress_bar, quiet_imports
from features._common.output_file import check_output
from features.config import Config, read_run_config
from features.errors import BadInputs, ConfigError, DataError, StoreError
from features.head_config import list_heads
from features.limits import FASTEST_RATE, GREATEST_HEIGHT, SLOWEST_RATE
from features.shard_folder import sweep_store
from features.store import Store
from features.strict_model import read_toml
from features.verification import TOLERATED, Damage, find_damage
from framebank import workflows
from framebank.options import Command, Settings, given_options, last_value, wrap

if TYPE_CHECKING:
    from stage1_extract.extract import ExtractionResult
    from stage2_temporal.report.search_plots import SearchedSetting
    from stage2_temporal.runs.leaderboard import Run
    from stage2_temporal.runs.pruned import PrunedRun


def hint(metavar: str, default: str) -> Any:
    """Describe an option in the help: the name of its value, and its default."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


LEAST_CORNERS = 3  # of a checkerboard, for OpenCV
Words = tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]]  # --format a b, or --format a --format b
File = Annotated[Path, tyro.conf.arg(metavar="FILE")]
RunName = Annotated[str, tyro.conf.arg(metavar="NAME")]


@dataclass(frozen=True)
class StoreCommand(Command):
    """A command on a store."""

    config: Annotated[Path | None, hint("FILE", "none")] = None
    """TOML file with the settings, which options override."""
    store: Annotated[Path | None, hint("FILE", "stores/NAME.h5 for the config NAME.toml")] = None
    """The store, an HDF5 file."""

    @property
    def store_path(self) -> Path:
        """The store that the options name."""
        if self.store is not None:
            if self.store.name in ("", ".."):
                raise ConfigError(f"--store {self.store}: not a file's name", hint="--store FILE.h5")
            return self.store
        if self.config is None:
            raise ConfigError("which store?", hint="--config FILE or --store FILE")
        return Path("stores") / f"{self.config.stem}.h5"

    def delete_leftovers(self) -> None:
        if self.store is not None or self.config is not None:
            sweep_store(self.store_path)
        if (settings := getattr(self, "settings", None)) is not None:
            sweep(Path(settings.data.path).parent)  # where the sample set is rendered


@dataclass(frozen=True)
class Sample(StoreCommand):
    """Render the sample data set: 320 short clips of a drive, with labels. Needs no download."""

    sections = ("data",)
    store: tyro.conf.Suppress[Path | None] = None
    settings: Settings = Config()

    def __call__(self) -> None:
        workflows.render_sample(self.settings)
        data = self.settings.data
        print(f"{data.path}: the sample data set with seed {data.seed}")


@dataclass(frozen=True)
class Extract(StoreCommand):
    """Run the frozen trunk over every frame that is not in the store yet. Resumes where it was interrupted."""

    sections = ("data", "frames", "backbone", "extract", "compute")
    rehash: bool = False
    """Read every file again, even if its size and time of modification are those of the last scan."""
    dry_run: bool = False
    """Only print how many frames, bytes and hours it would take, at this machine's rate, and write nothing."""
    card: bool = False
    """Also write the store's card, STORE.md beside STORE.h5, if it is older than the store."""
    settings: Settings = Config()

    def __call__(self) -> None:
        if self.dry_run:
            self.estimate()
        else:
            self.extract()

    def estimate(self, damage: Damage | None = None) -> None:
        """Print what extracting would take."""
        print(workflows.estimate_data_set(self.settings, self.store_path, damage, rehash=self.rehash))

    def extract(self, damage: Damage | None = None) -> ExtractionResult:
        """Extract, and print what was done."""
        path = self.store_path
        result = workflows.extract_data_set(self.settings, path, damage, rehash=self.rehash)
        counts = {
            f"frames extracted by {result.engine}": result.extracted,
            "frames with optical flow computed": result.flows,
            "frames with the road's speed curve computed": result.roads,
            "vehicles tracked": result.tracks,
        }
        done = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count) or "nothing to extract"
        print(f"{path}: {done}; {result.frames:,} frames in the store")
        for note in result.notes:
            logger.warning(note)
        if result.missing:
            items = "1 item" if len(result.missing) == 1 else f"{len(result.missing)} items"
            logger.warning(f"{path}: skipped {items} with errors; run `framebank info --store {path}` to list them")
        if self.settings.backbone.weights == "random":
            logger.warning(f"{path}: the backbone's weights are random (UNTRAINED): this store is only for tests")
        if self.card and (card := _updated_store_card(path)):
            print(card)
        return result


@dataclass(frozen=True)
class Import(Command):
    """Make a store of per-frame features that another tool computed, from .npy, HDF5 or parquet files and a table."""

    features: tyro.conf.Positional[File]
    """File with the features of all sequences, or folder with a file for each, named after the sequence."""
    table: File = dataclasses.field(kw_only=True)
    """CSV file with the columns sequence and split, optionally frame, fps, first and length, and the targets."""
    store: File = dataclasses.field(kw_only=True)
    """The store to write."""
    name: Annotated[str, hint("NAME", "the features' file name")] = ""
    """What computed the features, such as dinov2; the store's backbone is then import:NAME."""
    fps: float = 20.0
    """Frames per second of sequences for which the table does not state it."""
    dtype: Literal["float16", "float32"] = "float16"
    """Type in which the features are stored."""

    def __call__(self) -> None:
        from stage1_extract.feature_import import ImportOptions, import_features

        name = self.name or self.features.stem
        if not 0 < self.fps < math.inf:
            raise ConfigError("--fps must be positive", got=self.fps, hint="--fps 20")
        print(import_features(self.features, self.table, self.store, ImportOptions(name, self.fps, self.dtype)))
        print(f"framebank train --store {self.store} --backbone.name import:{name} --data.target TARGET")


@dataclass(frozen=True)
class Info(StoreCommand):
    """Print what a store holds: backbone, streams, sequences, labels, and what is missing."""

    card: bool = False
    """Also write it into a card, STORE.md beside STORE.h5, for publishing the store."""

    def __call__(self) -> None:
        from stage1_extract.info import describe_store

        with Store(self.store_path) as store:
            print(describe_store(store))
        if self.card:
            print(f"\n{_write_store_card(self.store_path)}")


@dataclass(frozen=True)
class Table(StoreCommand):
    """Write a store's labels and sequences, and a run's predictions for them, as a CSV or Parquet file."""

    output: File = dataclasses.field(kw_only=True)
    """File to write, .csv or .parquet."""
    run: Annotated[str | None, hint("NAME", "none")] = None
    """Also write the predictions of this run, a folder in runs/ or its path; its store is the default store."""

    def __call__(self) -> None:
        from features.table import write_table

        folder = None if self.run is None else workflows.run_folder(self.run)
        check_output(self.output, *([] if folder is None else [folder / "predictions.csv"]))
        with Store(self._path(folder)) as store:
            table = store.table(folder)
        write_table(self.output, table)
        print(f"{self.output}: {len(table):,} rows, {len(table.columns)} columns")

    def _path(self, run: Path | None) -> Path:
        if run is None or self.store is not None or self.config is not None:
            return self.store_path
        from stage2_temporal.runs.results import read_metrics

        return Path(read_metrics(run).store.path)


@dataclass(frozen=True)
class Verify(StoreCommand):
    """Read everything in a store and list the parts and frames that are damaged."""

    def __call__(self) -> None:
        path = self.store_path
        damage = _find_damage(path)
        if not damage:
            print(f"{path}: intact; every part and every frame was read")
            return
        raise StoreError("\n".join(damage.lines), hint=f"framebank repair --config FILE --store {path}")


@dataclass(frozen=True)
class Repair(Extract):
    """Restore the damaged parts of a store, and extract again only its damaged frames."""

    def __call__(self) -> None:
        path = self.store_path
        damage = _find_damage(path)
        if not damage:
            print(f"{path}: intact, nothing to repair")
            return
        if self.dry_run:
            self.estimate(damage)
            return
        for _ in range(2):  # damaged frames may show only once the tables are restored
            for line in damage.lines:
                logger.warning(line)
            self._derive(self.extract(damage).dropped)
            if not (damage := _find_damage(path)):
                break
        if damage:
            raise StoreError("\n".join(damage.lines), hint=f"framebank repair --config FILE --store {path}")
        print(f"{path}: intact")

    def _derive(self, dropped: Sequence[str]) -> None:
        """Compute derived streams again whose frames or principal components were damaged."""
        with Store(self.store_path, TOLERATED) as store:
            names = sorted({*dropped, *store.partial_streams} - store.streams.keys())
        if names:
            with quiet_imports():
                from stage2_temporal.data.derived_streams import derive_streams, parse_stream_name
            derive_streams(self.store_path, [parse_stream_name(name) for name in names])


@dataclass(frozen=True)
class Pack(StoreCommand):
    """Copy a store's shards into its own file, so that it is a single one to copy or publish."""

    def __call__(self) -> None:
        from features.store_writer import pack_store

        with exclusive_write_lock(self.store_path):
            pack_store(self.store_path)
        print(f"{self.store_path}: a single file of {self.store_path.stat().st_size / 1e6:,.1f} MB")


@dataclass(frozen=True)
class Unpack(StoreCommand):
    """Make a store an index with a folder of shards, so that adding frames or streams copies none of the others."""

    def __call__(self) -> None:
        from features.frame_files import shard_folder
        from features.store_writer import unpack_store

        with exclusive_write_lock(self.store_path):
            unpack_store(self.store_path)
        print(f"{self.store_path}: an index; the frames are in {shard_folder(self.store_path)}")


@dataclass(frozen=True)
class Train(StoreCommand):
    """Train a head on a store and write a run with its report. Each of data.target and data.also gets a run; one that
    exists with the same settings is not trained again."""

    run: Annotated[str | None, hint("NAME", "CONFIG-TARGET-HEAD")] = None
    """Name of the run, which becomes a folder in runs/. If given, only data.target is trained."""
    settings: Settings = Config()

    def __call__(self) -> None:
        stem = (self.config or self.store_path).stem
        run = None if self.run is None else workflows.expand(self.run)
        labels = [] if run else [str(entry.get("label", "")) for entry in self.settings.compare]
        folders = []
        for folder, existed in workflows.train_runs(self.settings, self.store_path, run, stem=stem):
            if existed:
                print(f"{folder}: trained already; to train it again, delete this folder")
            if labels:
                print(folder / "report.html")
            else:
                _print_run(folder)
            folders.append(folder)
        if labels:
            _print_comparison(labels, folders)

    @classmethod
    def read_config(cls, arguments: Sequence[str]) -> Config:
        config = super().read_config(arguments)
        if "data.target" in given_options(arguments):  # the one to train
            config = config.with_target(config.data.target)
        return config

    @classmethod
    def description(cls) -> str:
        heads = [wrap(when, f"    {name:<17}", 21 * " ") for name, when in list_heads().items()]
        title = "  Heads, chosen with --head.name, which decides what other --head options there are:"
        return "\n".join([super().description(), "", title, *heads])


@dataclass(frozen=True)
class Sweep(StoreCommand):
    """Train many settings, several at a time, and rank them in a leaderboard. Run it again to resume it."""

    sweep: File = dataclasses.field(kw_only=True)
    """TOML file that lists the settings to try, such as configs/sweep.toml."""
    settings: Settings = Config()

    def __call__(self) -> None:
        from stage2_temporal.sweep import spec

        sweep = read_toml(spec.Sweep, self.sweep)
        searching, path = sweep.sweep.search == "optuna", self.store_path
        spaces = spec.search_spaces(sweep, self.settings) if searching else []
        entries = {} if searching else spec.sweep_entries(sweep, self.settings)
        with quiet_imports():
            from stage2_temporal.runs.leaderboard import read_run
            from stage2_temporal.runs.pruned import read_pruned
            from stage2_temporal.sweep.runner import run_sweep
            from stage2_temporal.sweep.search import run_search
        if searching:
            result = run_search(sweep.sweep, spaces, self.settings, path)
        else:
            result = run_sweep(sweep.sweep, entries, path)
        finished = [read_run(result.folder / name) for name in result.names]
        pruned = [read_pruned(result.folder / name) for name in result.pruned]
        _print_leaderboard(finished, result.folder, pruned=pruned, settings=result.settings)
        if result.remaining:
            logger.warning(f"Time is up; {result.remaining} runs were not started. Run the same command to continue.")
        if result.failed:
            count = len(entries) or len(result.names) + len(result.pruned) + len(result.failed)
            raise BadInputs(
                f"{len(result.failed)} of {count} runs failed; for details, see error.json in each run's folder",
                list(result.failed),
                hint="edit the sweep or correct the cause, and run the same command again",
            )


@dataclass(frozen=True)
class Leaderboard(Command):
    """Rank all runs and the constant predictor, in the terminal and on an HTML page."""

    runs: Path = Path("runs")
    """Folder with the runs."""
    target: Annotated[str | None, hint("TARGET", "all")] = None
    """Only runs with this target."""

    def __call__(self) -> None:
        from stage2_temporal.runs.leaderboard import find_pruned, find_runs

        (runs, faults), (pruned, more_faults) = find_runs(self.runs), find_pruned(self.runs)
        for fault in [*faults, *more_faults]:
            logger.warning(f"skipped: {fault}")
        if not runs:
            raise DataError(f"{self.runs}: no finished run in this folder", hint="framebank train, or framebank sweep")
        _print_leaderboard(runs, self.runs, self.target, pruned)


@dataclass(frozen=True)
class RunCommand(Command):
    """A command on a run."""

    run: RunName
    """Name of the run, a folder in runs/, or the path of its folder."""
    store: Annotated[Path | None, hint("FILE", "the one that the run was trained on")] = None
    """The store, an HDF5 file."""

    def __call__(self) -> None:
        from stage2_temporal.runs.results import read_metrics

        folder = workflows.run_folder(self.run)
        path = self.store or Path(read_metrics(folder).store.path)
        sweep_store(path)
        with Store(path) as store:
            self.run_with(folder, store)

    def run_with(self, folder: Path, store: Store) -> None:
        """Run the command on the run's folder and its open store."""
        raise NotImplementedError


@dataclass(frozen=True)
class Evaluate(RunCommand):
    """Predict again with a run's saved model, and rewrite its metrics and report. With --input, score the run on other
    labelled data instead, and write nothing."""

    input: Annotated[Path | None, hint("PATH", "the run's own store")] = None
    """A labelled data set."""
    layout: Annotated[str | None, hint("LAYOUT", "the run's")] = None
    """Layout of the data set's files, as data.layout."""
    camera: Annotated[Path | None, hint("FILE", "the data set's own")] = None
    """File with the camera's numbers, as data.calibration."""
    fps: Annotated[float | None, hint("FLOAT", "the run's data.fps")] = None
    """Frames per second, for data sets whose files do not state it."""

    def __call__(self) -> None:
        options = {name: getattr(self, name) for name in ("layout", "camera", "fps")}
        if self.input is None and all(value is None for value in options.values()):
            super().__call__()
            return
        from stage2_temporal.runs.tables import metrics_table

        print(metrics_table(workflows.score(self.run, self.input, **options)))

    def run_with(self, folder: Path, store: Store) -> None:
        with quiet_imports():
            from stage2_temporal.train import evaluate
        evaluate(folder, store)
        _print_run(folder)


@dataclass(frozen=True)
class Report(RunCommand):
    """Regenerate the report and the card of a run."""

    occlusion: bool = False
    """Also measure how much each cell of the CNN's maps counts, and show it in the report; takes up to a minute."""

    def run_with(self, folder: Path, store: Store) -> None:
        if self.occlusion:
            with quiet_imports():
                from stage2_temporal.train import explain
            explain(folder, store)
        from stage2_temporal.report import write_report
        from stage2_temporal.runs.card import write_card

        write_card(folder)
        print(write_report(folder, store))


@dataclass(frozen=True)
class Fuse(RunCommand):
    """Combine backbone, top and head into one model, from frames to the target, and compare it with the two stages."""

    def run_with(self, folder: Path, store: Store) -> None:
        with quiet_imports():
            from stage2_temporal.fused.fuse import fuse_run, save_fused_model
        fused, equality = fuse_run(folder, store)
        precision = store.recipe.precision
        causes = "storing the maps accounts" if precision == "float32" else f"{precision} and storing the maps account"
        print(
            f"{save_fused_model(folder, fused, equality)}: largest difference from the two stages "
            f"{equality.output.absolute:.2g} ({equality.output.relative:.2g} of the largest value) over "
            f"{equality.windows} windows; {causes} for {equality.rounding:.2g}"
        )


@dataclass(frozen=True)
class RunConfigCommand(RunCommand):
    """A command on a run that reads its config, which flags override."""

    @classmethod
    def read_config(cls, arguments: Sequence[str]) -> Config:
        run = last_value(arguments, "--run")
        return Config() if run is None else read_run_config(workflows.run_folder(run))


@dataclass(frozen=True)
class Finetune(RunConfigCommand):
    """Train a run's fused model end to end on frames. Only data.path, extract.threads and the settings of
    finetune can be changed."""

    sections = ("data", "extract", "finetune")
    run: Annotated[str, hint("NAME", "the best run on maps alone")] = ""
    """Name of the run, a folder in runs/, or the path of its folder."""
    settings: Settings = Config()

    @classmethod
    def with_defaults(cls, arguments: Sequence[str]) -> Sequence[str]:
        if last_value(arguments, "--run") is not None or {"-h", "--help"} & set(arguments):
            return arguments
        best = workflows.best_run_on_maps()
        logger.info(f"fine-tuning {best}, the run on maps alone with the highest validation skill")
        return [*arguments, "--run", best]

    def run_with(self, folder: Path, store: Store) -> None:
        with quiet_imports():
            from stage2_temporal.finetune.finetune import finetune, finetune_table
        result = finetune(folder, store, self.settings)
        print(f"{finetune_table(result)}\n{folder / 'report.html'}")


@dataclass(frozen=True)
class Export(RunConfigCommand):
    """Write a run's fused model for serving: SavedModel, ONNX, LiteRT or OpenVINO. Each is compared with Keras."""

    sections = ("data",)
    format: Annotated[Words, hint("NAME ...", "saved_model onnx litert")] = ()
    """Formats to write: saved_model, onnx, litert or openvino."""
    settings: Settings = Config()

    def run_with(self, folder: Path, store: Store) -> None:
        with quiet_imports():
            from stage2_temporal.fused.export import export_run
        for file, difference in export_run(folder, store, self.settings, list(chain(*self.format))):
            print(f"{file}: largest difference from Keras {difference:.2g} of the largest value")


@dataclass(frozen=True)
class Predict(Command):
    """Predict with a run on a video, a folder of frames or a data set, and write a CSV file."""

    run: RunName
    """Name of the run, a folder in runs/, or the path of its folder."""
    input: Annotated[Path | None, hint("PATH", "the run's own data set")] = None
    """A video, a folder of frames, or a data set in the run's layout."""
    output: Annotated[Path | None, hint("FILE", "predicted/INPUT.csv in the run's folder")] = None
    """CSV file to write."""
    overlay: Annotated[Path | None, hint("FILE", "none")] = None
    """Also write this .mp4 file, with the predictions drawn on the frames."""
    boxes: Annotated[Path | None, hint("FILE", "none")] = None
    """CSV file with the boxes of the vehicles to predict for, in a video."""
    stride: Annotated[int | None, hint("INT", "by the time between frames in training")] = None
    """Take every stride-th frame, whatever the time between them."""
    fps: Annotated[float | None, hint("FLOAT", "the input's frame rate")] = None
    """Frames per second, if the input's frame rate is missing or wrong."""
    camera: Annotated[Path | None, hint("FILE", "the input's own")] = None
    """File with the camera's numbers: .toml, or in the format of calibration.txt."""
    allow_truncated: bool = False
    """Use a video that breaks off as far as it goes, instead of refusing it."""
    threshold: Annotated[float | None, hint("FLOAT", "none")] = None
    """Also write the probability that each target is above this value, in its unit (m/s for speeds)."""
    level: Annotated[float | None, hint("FLOAT", "the run's train.interval_level")] = None
    """Probability with which the intervals are to contain the true value."""
    report: Annotated[Path | None, hint("FILE", "none")] = None
    """Also write this .html file, a page that shows the drive: its frames, and the predictions over time."""

    def __call__(self) -> None:
        names = (
            "output",
            "overlay",
            "boxes",
            "stride",
            "fps",
            "camera",
            "allow_truncated",
            "threshold",
            "level",
            "report",
        )
        options = {name: getattr(self, name) for name in names}
        result = workflows.predict(self.run, self.input, **options)
        print(f"{result.windows:,} windows: {', '.join(map(str, result.files))}")
        if result.skipped:
            raise BadInputs(
                f"{len(result.skipped)} sequences could not be decoded and were skipped",
                list(result.skipped),
                hint="replace their files and run the same command again",
            )


@dataclass(frozen=True)
class MeasureCamera(Command):
    """Find a camera's focal length and principal point, and write them into a camera file. Takes photos or a video of a
    printed checkerboard, or one photo's EXIF tags."""

    input: tyro.conf.Positional[Annotated[Path | None, hint("PATH", "none")]] = None
    """A folder of photos, or a video, of the checkerboard."""
    board: Annotated[tuple[int, int], tyro.conf.arg(metavar="COLUMNS ROWS")] = (9, 6)
    """Inner corners of the checkerboard along a row and along a column: its squares less one."""
    exif: Annotated[Path | None, hint("FILE", "none")] = None
    """Unedited photo whose EXIF tags state the focal length, instead of a checkerboard."""
    size: Annotated[tuple[int, int] | None, hint("WIDTH HEIGHT", "the photo's")] = None
    """With --exif: size of the video's frames in px, which show the photo's full width."""
    height: Annotated[float | None, hint("FLOAT", "none")] = None
    """Height of the lens above the road in m."""
    output: Annotated[Path, hint("FILE", "camera.toml")] = Path("camera.toml")
    """Camera file to write."""

    def __call__(self) -> None:
        if (self.input is None) == (self.exif is None):
            raise ConfigError("from what?", expected="a folder or video, or --exif", hint="framebank camera --help")
        if self.height is not None and not 0 < self.height <= GREATEST_HEIGHT:
            expected = f"m above 0, at most {GREATEST_HEIGHT:g}"
            raise ConfigError("--height out of range", expected=expected, got=self.height, hint="--height 1.31")
        if self.size is not None and min(self.size) < 1:
            raise ConfigError("--size must be positive", got=self.size, hint="--size 1920 1080")
        if min(self.board) < LEAST_CORNERS:
            expected, got = f"at least {LEAST_CORNERS} inner corners each way", f"{self.board[0]} {self.board[1]}"
            raise ConfigError("--board: too few corners", expected=expected, got=got, hint="--board 9 6")
        from stage1_extract import camera_calibration as calibration
        from stage1_extract.datasets.image_file import IMAGE_SUFFIXES

        inputs = [path for path in (self.input, self.exif) if path is not None]
        check_output(self.output, *inputs, suffixes=IMAGE_SUFFIXES)
        if self.exif is not None:
            camera, summary = calibration.camera_from_exif(self.exif, self.height, self.size), "from its EXIF tags"
        elif self.input is not None:
            result = calibration.camera_from_checkerboard(self.input, self.board, self.height)
            camera, summary = result.camera, calibration.checkerboard_summary(result)
        calibration.write_camera_file(self.output, camera)
        print(f"{self.output}: {summary}; fx {camera.fx:.1f}, cx {camera.cx:.1f}, cy {camera.cy:.1f} px")


@dataclass(frozen=True)
class Speed(Command):
    """Measure the car's own speed in a video or a folder of frames, from the road's motion. Needs no training, but a
    camera whose focal length and height are known."""

    input: tyro.conf.Positional[File]
    """A video, or a folder of frames."""
    camera: File = dataclasses.field(kw_only=True)
    """Camera file, as framebank camera writes it, or a calibration.txt."""
    calibrate: Annotated[str | None, hint("SPEED|FILE", "none")] = None
    """Known mean speed in m/s, or a CSV file with some frames' speeds, that tells the camera's height."""
    output: Annotated[Path, hint("FILE", "speed.csv")] = Path("speed.csv")
    """CSV file to write, with time, frame, speed and confidence."""
    fps: Annotated[float | None, hint("FLOAT", "the video's times; 20 for a folder")] = None
    """Frames per second of a folder of frames, or of a video whose times are wrong."""
    allow_truncated: bool = False
    """Use a video that breaks off as far as it goes, instead of refusing it."""

    def __call__(self) -> None:
        if self.fps is not None and not SLOWEST_RATE <= self.fps <= FASTEST_RATE:
            expected = f"{SLOWEST_RATE:g} to {FASTEST_RATE:g}"
            raise ConfigError("--fps out of range", expected=expected, got=self.fps, hint="--fps 20")
        from stage1_extract.datasets.image_file import IMAGE_SUFFIXES
        from stage1_extract.ground_flow.drive_speed import measure_drive, speed_summary, write_speeds

        inputs = [self.input, self.camera, *([Path(self.calibrate)] if self.calibrate else [])]
        check_output(self.output, *inputs, suffixes=IMAGE_SUFFIXES)
        drive = measure_drive(
            self.input, self.camera, fps=self.fps, calibrate=self.calibrate, allow_truncated=self.allow_truncated
        )
        write_speeds(self.output, drive)
        print(f"{self.output}: {speed_summary(drive)}")


@dataclass(frozen=True)
class Doctor(Command):
    """Check this installation: versions, engines, cores, memory, GPU, folders that can be written, and the speed of ten
    frames. Says what is missing and how to install it."""

    frames: int = 10
    """Frames to measure each engine's speed with; 0: do not measure."""

    def __call__(self) -> None:
        from framebank import doctor

        packages, faults = doctor.find_packages(), doctor.folder_faults(Path())
        if any(p.version is None and p.extra is None for p in packages):
            raise ConfigError("\n".join(doctor.advice(packages, faults)))
        rates = doctor.measure_engines(self.frames, Config()) if self.frames > 0 else {}
        print(doctor.doctor_report(packages, doctor.describe_machine(), faults, rates))


@dataclass(frozen=True)
class Derive(Command):
    """Add derived streams to a store, so that pooled heads train faster."""

    store: File
    """The store, an HDF5 file."""
    stream: Annotated[Words, tyro.conf.arg(metavar="NAME ...", help_behavior_hint="(required)")]
    """Names of the streams, such as pooled, grid3x4, change3x4, change3x4lag2, pca64 or motion.grid3x4."""

    def delete_leftovers(self) -> None:
        sweep_store(self.store)

    def __call__(self) -> None:
        names = list(chain(*self.stream))
        if not names:
            raise ConfigError("no stream named", hint="--stream grid3x4 change3x4")
        with quiet_imports():
            from stage2_temporal.data.derived_streams import derive_streams, parse_stream_name
        derived = derive_streams(self.store, [parse_stream_name(name) for name in names])
        print(f"{self.store}: {', '.join(derived) + ' derived' if derived else 'the store has these streams already'}")


@dataclass(frozen=True)
class Benchmark(Command):
    """Compute the TuSimple errors EV and EP for a file of predictions in the benchmark's format."""

    predictions: File
    """JSON file with the predictions, as TuSimple's submission.json."""
    truth: File
    """JSON file with the labels, TuSimple's gt.json."""

    def __call__(self) -> None:
        from stage2_temporal.evaluation.tusimple import tusimple_table

        print(tusimple_table(self.predictions, self.truth))


def _by_name(*commands: type[Command]) -> dict[str, type[Command]]:
    return {command.__name__.lower(): command for command in commands}


STAGE_ONE = _by_name(Sample, Extract, Import, Info, Table, Verify, Repair, Pack, Unpack) | {
    "camera": MeasureCamera,
    "speed": Speed,
}
STAGE_TWO = _by_name(Train, Evaluate, Report, Sweep, Leaderboard, Predict, Finetune, Fuse, Export, Derive, Benchmark)
COMMANDS = STAGE_ONE | STAGE_TWO | _by_name(Doctor)


def _write_store_card(path: Path) -> Path:
    from stage1_extract.store_card import write_store_card

    with Store(path) as store:
        return write_store_card(store)


def _updated_store_card(path: Path) -> Path | None:
    from stage1_extract.store_card import has_current_card

    return None if has_current_card(path) else _write_store_card(path)


def _print_run(folder: Path) -> None:
    from stage2_temporal.runs.results import read_metrics
    from stage2_temporal.runs.tables import metrics_table

    print(f"{metrics_table(read_metrics(folder))}\n{folder / 'report.html'}")


def _print_comparison(labels: list[str], folders: list[Path]) -> None:
    """Print one table for each target, and what to do next."""
    from stage2_temporal.runs.results import read_metrics
    from stage2_temporal.runs.tables import comparison_table

    runs = list(zip(labels, map(read_metrics, folders), strict=True))
    for target in dict.fromkeys(metrics.target for _, metrics in runs):
        print(comparison_table([(label, metrics) for label, metrics in runs if metrics.target == target]))
    print()
    if any(workflows.reads_maps_alone(folder, read_run_config(folder)) for folder in folders):
        print("make finetune                       trains the best CNN + LSTM further, on altered images")
    print("""\
make predict RUN=NAME DATA=PATH     predicts a video, a folder of frames or a data set
make report RUN=NAME                writes runs/NAME/report.html again
make leaderboard                    ranks all runs, in runs/leaderboard.html""")


def _print_leaderboard(
    runs: list[Run],
    folder: Path,
    target: str | None = None,
    pruned: Sequence[PrunedRun] = (),
    settings: Sequence[SearchedSetting] = (),
) -> None:
    """Print the leaderboard and write its page."""
    from stage2_temporal.report.leaderboard_page import leaderboard_text, write_leaderboard
    from stage2_temporal.runs.leaderboard import boards

    tables = boards(runs, target, pruned)
    if not tables and target is not None:
        targets = sorted({", ".join(run.metrics.target) for run in runs})
        raise ConfigError(f"no run has the target {target}", expected=f"one of {'; '.join(targets)}", hint="--target T")
    print(f"{leaderboard_text(tables, folder)}\n{write_leaderboard(tables, folder, settings)}")


def _find_damage(path: Path) -> Damage:
    """Read the whole store, with a progress bar."""
    with ExitStack() as stack:
        bar: Any = None

        def progress(done: int, total: int) -> None:
            nonlocal bar
            bar = bar or stack.enter_context(progress_bar(total, "verify", "frames"))
            bar.update(done - bar.n)

        return find_damage(path, progress)
