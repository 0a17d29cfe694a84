"""Stage two: store in, models out.

    python -m stage2_temporal train    --config F [--store S] [--run NAME] [--section.field value …]
    python -m stage2_temporal evaluate --run NAME [--store S]     predict with the saved model anew
    python -m stage2_temporal report   --run NAME [--store S]     write report.html anew
    python -m stage2_temporal fuse     --run NAME [--store S]     one model from frames to the target

A run is a folder under runs/ with config, metrics, history, predictions, model and report. Without --run its name is
made of config, target and head, and what is trained already is not trained again. `train --help` lists every setting.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import ModuleType

from features.cli import config_from, run
from features.errors import ConfigError
from features.quiet import quiet_imports
from features.store import Store
from stage2_temporal.folder import choose, read_metrics, run_path
from stage2_temporal.tables import table
from stage2_temporal.task import origin, read_task


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
    return run(lambda: COMMANDS[options.command](options, flags))


def train(options: argparse.Namespace, flags: list[str]) -> int:
    """Train a head on a store."""
    if {"-h", "--help"} & set(flags):
        _help()
    config = config_from(options.config, flags, prog="stage2_temporal train")
    if options.store is None and options.config is None:
        raise ConfigError("which store?", mend="--config FILE or --store FILE")
    path = options.store or Path("stores") / f"{options.config.stem}.h5"
    with Store(path) as store:
        task = read_task(config, store)
        folder, done = choose(options.run, (options.config or path).stem, config, origin(store, task))
        if done:
            print(f"{folder}: trained already\n{table(read_metrics(folder))}\n{folder / 'report.html'}")
        else:
            _runs().train(config, store, task, folder)
    return 0


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
        from stage2_temporal import fuse as fusion
    with Store(path) as store:
        fused, equality = fusion.fuse(folder, store)
    print(
        f"{fusion.write(folder, fused, equality)}: largest difference from the two stages "
        f"{equality.output.absolute:.2g} ({equality.output.relative:.2g} of the largest value) over "
        f"{equality.windows} windows; storing the maps accounts for {equality.rounding:.2g}"
    )
    return 0


def _run_and_store(options: argparse.Namespace, flags: list[str]) -> tuple[Path, Path]:
    """A run's folder, and the store it was trained from unless another was named."""
    if flags:
        raise ConfigError("unknown flags", got=" ".join(flags), mend="python -m stage2_temporal --help")
    if options.run is None:
        raise ConfigError("which run?", mend="--run NAME, one of runs/")
    folder = run_path(options.run)
    metrics = read_metrics(folder)
    return folder, options.store or Path(metrics["store"]["path"])


def _runs() -> ModuleType:
    """The module that loads TensorFlow, which an early fault need not wait for."""
    with quiet_imports():
        from stage2_temporal import runs

    return runs


def _help() -> None:
    """What tyro does not know of: our own options and the heads."""
    with quiet_imports():
        from stage2_temporal.heads import HEADS

    print(__doc__)
    print("heads:")
    for name, head in HEADS.items():
        print(f"  {name:<14}{head.when}")
    print()


COMMANDS = {"train": train, "evaluate": evaluate, "report": report, "fuse": fuse}

if __name__ == "__main__":
    sys.exit(main())
