"""Stage two: store in, models out.

    python -m stage2_temporal train    --config F [--store S] [--run NAME] [--section.field value …]
    python -m stage2_temporal sweep    --config F [--store S] --sweep F [--section.field value …]
                                       train many settings, cross-validated, several at a time
    python -m stage2_temporal leaderboard [--runs FOLDER] [--target T]
    python -m stage2_temporal evaluate --run NAME [--store S]     predict with the saved model anew
    python -m stage2_temporal report   --run NAME [--store S]     write report.html anew
    python -m stage2_temporal fuse     --run NAME [--store S]     one model from frames to the target
    python -m stage2_temporal finetune --run NAME [--store S] [--data.path P] [--finetune.field value …]
    python -m stage2_temporal predict  --run NAME [--input PATH] [--output FILE.csv] [--overlay FILE.mp4]
                                       [--stride N] [--fps N]     on a video, a folder of frames or a data set
                                       [--boxes FILE.csv]         of the vehicles in a video that are asked about
    python -m stage2_temporal benchmark --predictions submission.json --truth gt.json      TuSimple's EV and EP
    python -m stage2_temporal export   --run NAME [--store S] [--data.path P] [--format NAME …]

    python -m stage2_temporal derive   --store S --stream NAME …  what pooled heads look at, once into the store:
                                       pooled, grid3x4, change3x4, change3x4lag2, pca64, motion.grid3x4

A run is a folder under runs/ with config, metrics, history, predictions, model and report. Without --run its name is
made of config, target and head, and what is trained already is not trained again. `train --help` lists every setting.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from types import ModuleType

from features._common.cli import config_with_flags, run_command
from features._common.quiet_imports import quiet_imports
from features.config import Config
from features.errors import BadInputs, ConfigError, DataError
from features.store import Store
from stage2_temporal.data.task import check_recipe, read_task, store_origin
from stage2_temporal.evaluation import tusimple
from stage2_temporal.heads.default_head import resolve_default_head
from stage2_temporal.runs.folder import RUNS, choose_run_folder, read_metrics, run_path
from stage2_temporal.runs.leaderboard import Run, boards, find_runs, read_run
from stage2_temporal.runs.tables import metrics_table


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and do what it says; the exit status."""
    parser = argparse.ArgumentParser("stage2_temporal", add_help=False, allow_abbrev=False)
    parser.add_argument("command", nargs="?", choices=list(COMMANDS))
    parser.add_argument("--config", type=Path)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--run")
    options, flags = parser.parse_known_args(argv)
    if options.command is None:
        print(__doc__)
        return 0 if {"-h", "--help"} & set(flags) else 2
    return run_command(lambda: COMMANDS[options.command](options, flags))


def train(options: argparse.Namespace, flags: list[str]) -> int:
    """Train a head on a store."""
    config, path = _task(options, flags, "train")
    one = options.run is not None or any(flag.split("=")[0] == "--data.target" for flag in flags)
    targets = [config.data.target, *(() if one else config.data.also)]
    with Store(path) as store:
        check_recipe(config, store)
        for target in targets:
            _train(config.with_target(target), store, options.run, (options.config or path).stem)
    return 0


def sweep(options: argparse.Namespace, flags: list[str]) -> int:
    """Train what a sweep's file asks for, and show the leaderboard of it."""
    parser = argparse.ArgumentParser("stage2_temporal sweep", add_help=False, allow_abbrev=False)
    parser.add_argument("--sweep", type=Path)
    asked, rest = parser.parse_known_args(flags)
    config, path = _task(options, rest, "sweep")
    if asked.sweep is None:
        raise ConfigError("which sweep?", hint="--sweep configs/sweep.toml")
    from stage2_temporal.sweep.spec import read_sweep, sweep_entries

    wanted = read_sweep(asked.sweep)
    runs = sweep_entries(wanted, config)
    with quiet_imports():
        from stage2_temporal.sweep import runner
    done = runner.run_sweep(wanted.sweep, runs, path)
    _show([read_run(done.folder / name) for name in done.names], done.folder)
    if done.left:
        print(f"time is over, {done.left} runs were not begun: the same command goes on", file=sys.stderr)
    if done.failed:
        raise BadInputs(
            f"{len(done.failed)} of {len(runs)} runs failed; each folder's error.json says more",
            list(done.failed),
            hint="edit the sweep, or mend the cause; the same command tries them again",
        )
    return 0


def leaderboard(options: argparse.Namespace, flags: list[str]) -> int:
    """Every run beside the constant predictor."""
    parser = argparse.ArgumentParser("stage2_temporal leaderboard", add_help=False, allow_abbrev=False)
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--target")
    asked, rest = parser.parse_known_args(flags)
    if rest:
        raise ConfigError("unknown flags", got=" ".join(rest), hint="python -m stage2_temporal --help")
    found, faults = find_runs(asked.runs)
    for fault in faults:
        print(f"left out: {fault}", file=sys.stderr)
    if not found:
        raise DataError(f"{asked.runs}: no finished run in it", hint="make train, or make sweep")
    _show(found, asked.runs, asked.target)
    return 0


def _show(found: list[Run], folder: Path, target: str | None = None) -> None:
    """Print the leaderboard and write its page and table."""
    from stage2_temporal.report import leaderboard_page

    made = boards(found, target)
    if not made and target is not None:
        known = sorted({", ".join(run.metrics.target) for run in found})
        raise ConfigError(f"no run has the target {target}", expected=f"one of {'; '.join(known)}", hint="--target T")
    print(f"{leaderboard_page.leaderboard_text(made)}\n{leaderboard_page.write_leaderboard(made, folder)}")


def _task(options: argparse.Namespace, flags: list[str], command: str) -> tuple[Config, Path]:
    """The config with its flags, and the store."""
    if {"-h", "--help"} & set(flags):
        _help()
    config = config_with_flags(options.config, flags, prog=f"stage2_temporal {command}")
    if options.store is None and options.config is None:
        raise ConfigError("which store?", hint="--config FILE or --store FILE")
    return config, options.store or Path("stores") / f"{options.config.stem}.h5"


def _train(config: Config, store: Store, name: str | None, stem: str) -> None:
    """One run, unless it is there already."""
    task = read_task(config, store)
    config = resolve_default_head(config, store, task.examples)
    folder, done = choose_run_folder(name, stem, config, store_origin(store, task, config))
    if done:
        print(f"{folder}: trained already\n{metrics_table(read_metrics(folder))}\n{folder / 'report.html'}")
    else:
        _runs().train(config, store, task, folder)


def evaluate(options: argparse.Namespace, flags: list[str]) -> int:
    """Predict with a run's saved model anew."""
    folder, path = _run_and_store(options, flags)
    with Store(path) as store:
        _runs().evaluate(folder, store)
    return 0


def report(options: argparse.Namespace, flags: list[str]) -> int:
    """Write a run's report anew."""
    from stage2_temporal.report import write_report

    folder, path = _run_and_store(options, flags)
    with Store(path) as store:
        print(write_report(folder, store))
    return 0


def fuse(options: argparse.Namespace, flags: list[str]) -> int:
    """Make one model of backbone, top and head, checked against the two stages."""
    folder, path = _run_and_store(options, flags)
    with quiet_imports():
        from stage2_temporal.fused import fuse as fusion
    with Store(path) as store:
        fused, equality = fusion.fuse_run(folder, store)
    print(
        f"{fusion.save_fused_model(folder, fused, equality)}: largest difference from the two stages "
        f"{equality.output.absolute:.2g} ({equality.output.relative:.2g} of the largest value) over "
        f"{equality.windows} windows; storing the maps accounts for {equality.rounding:.2g}"
    )
    return 0


def predict(options: argparse.Namespace, flags: list[str]) -> int:
    """Predict on a video, a folder of frames or a data set."""
    parser = argparse.ArgumentParser("stage2_temporal predict", add_help=False, allow_abbrev=False)
    for name, kind in PREDICT:
        parser.add_argument(f"--{name}", type=kind)
    asked, rest = parser.parse_known_args(flags)
    folder, _ = _run_and_store(options, rest)
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")  # before cv2 is imported: our own lines name what is wrong
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    with quiet_imports():
        from stage2_temporal import predict as prediction
    where = (asked.input, asked.output, asked.overlay)
    written = prediction.predict(folder, *where, stride=asked.stride, fps=asked.fps, boxes=asked.boxes)
    print(f"{written.windows:,} windows: {', '.join(map(str, written.files))}")
    if written.left_out:
        raise BadInputs(
            f"{len(written.left_out)} sequences would not decode and are left out",
            list(written.left_out),
            hint="replace their files and run the same command",
        )
    return 0


def finetune(options: argparse.Namespace, flags: list[str]) -> int:
    """Train a run's fused model end to end on frames."""
    folder, path = _run_and_store(options, [])
    config = config_with_flags(folder / "config.toml", flags, prog="stage2_temporal finetune")
    with quiet_imports():
        from stage2_temporal.finetune import finetune as tuning
    with Store(path) as store:
        tuning.finetune(folder, store, config)
    return 0


def export(options: argparse.Namespace, flags: list[str]) -> int:
    """Write the fused model for serving, each format checked in its own runtime."""
    parser = argparse.ArgumentParser("stage2_temporal export", add_help=False, allow_abbrev=False)
    parser.add_argument("--format", action="append", dest="formats")
    asked, rest = parser.parse_known_args(flags)
    folder, path = _run_and_store(options, [])
    config = config_with_flags(folder / "config.toml", rest, prog="stage2_temporal export")
    with quiet_imports():
        from stage2_temporal.fused import export as exporting
    with Store(path) as store:
        for file, difference in exporting.export_run(folder, store, config, asked.formats):
            print(f"{file}: largest difference from Keras {difference:.2g} of the largest value")
    return 0


def benchmark(options: argparse.Namespace, flags: list[str]) -> int:
    """TuSimple's EV and EP of predictions in the benchmark's form."""
    del options
    parser = argparse.ArgumentParser("stage2_temporal benchmark", add_help=False, allow_abbrev=False)
    for name in ("predictions", "truth"):
        parser.add_argument(f"--{name}", type=Path)
    asked, rest = parser.parse_known_args(flags)
    if rest or asked.predictions is None or asked.truth is None:
        raise ConfigError("which files?", hint="benchmark --predictions submission.json --truth gt.json")
    print(
        tusimple.tusimple_table(
            tusimple.read_tusimple_json(asked.predictions), tusimple.read_tusimple_json(asked.truth)
        )
    )
    return 0


def derive(options: argparse.Namespace, flags: list[str]) -> int:
    """Compute streams from those of a store, once, into it."""
    parser = argparse.ArgumentParser("stage2_temporal derive", add_help=False, allow_abbrev=False)
    parser.add_argument("--stream", action="append", nargs="+", default=[], dest="streams")
    asked, rest = parser.parse_known_args(flags)
    names = [name for group in asked.streams for name in group]
    if rest:
        raise ConfigError("unknown flags", got=" ".join(rest), hint="python -m stage2_temporal --help")
    if options.store is None or not names:
        raise ConfigError("which streams of which store?", hint="--store FILE --stream grid3x4 change3x4")
    with quiet_imports():
        from stage2_temporal.data import derived_streams
    made = derived_streams.derive_streams(options.store, [derived_streams.parse_stream_name(name) for name in names])
    print(f"{options.store}: {', '.join(made) + ' derived' if made else 'they are there already'}")
    return 0


def _run_and_store(options: argparse.Namespace, flags: list[str]) -> tuple[Path, Path]:
    """A run's folder, and the store it was trained from unless another was named."""
    if flags:
        raise ConfigError("unknown flags", got=" ".join(flags), hint="python -m stage2_temporal --help")
    if options.run is None:
        raise ConfigError("which run?", hint="--run NAME, one of runs/")
    folder = run_path(options.run)
    metrics = read_metrics(folder)
    return folder, options.store or Path(metrics["store"]["path"])


def _runs() -> ModuleType:
    """The module that loads TensorFlow, which an early fault need not wait for."""
    with quiet_imports():
        from stage2_temporal import train as module

    return module


def _help() -> None:
    """What tyro does not know of: our own options and the heads."""
    with quiet_imports():
        from stage2_temporal.heads import HEADS

    print(__doc__)
    print("heads:")
    for name, head in HEADS.items():
        print(f"  {name:<14}{head.when}")
    print()


PREDICT = (
    ("input", Path),
    ("output", Path),
    ("overlay", Path),
    ("boxes", Path),
    ("stride", int),
    ("fps", float),
)

COMMANDS = {
    "train": train,
    "sweep": sweep,
    "leaderboard": leaderboard,
    "evaluate": evaluate,
    "report": report,
    "fuse": fuse,
    "finetune": finetune,
    "export": export,
    "predict": predict,
    "derive": derive,
    "benchmark": benchmark,
}

if __name__ == "__main__":
    sys.exit(main())
