"""Stage one: frames in, store out.

    python -m stage1_extract extract --config F [--store S] [--section.field value …]   frames → store
    python -m stage1_extract info    --store S                                         what a store holds
    python -m stage1_extract verify  --store S                                         read every chunk
    python -m stage1_extract repair  --config F [--store S]                            extract damaged frames anew
    python -m stage1_extract sample  [--config F] [--section.field value …]            render the sample set

`extract` does only what is not yet done, and goes on where a killed one stopped. `extract --help` lists every setting.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")  # before cv2 is imported: our own lines name what is wrong
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

from features._common.cli import config_with_flags, run_command
from features._common.progress import progress_bar
from features._common.quiet_imports import quiet_imports
from features.config import Config
from features.errors import ConfigError, StoreError
from features.store import Store


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and do what it says; the exit status."""
    parser = argparse.ArgumentParser(
        "stage1_extract",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("command", nargs="?", choices=["extract", "info", "verify", "repair", "sample"])
    parser.add_argument("--config", type=Path)
    parser.add_argument("--store", type=Path)
    options, flags = parser.parse_known_args(argv)
    if options.command is None:
        print(__doc__)
        return 0 if {"-h", "--help"} & set(flags) else 2
    return run_command(lambda: COMMANDS[options.command](options, flags))


def extract(options: argparse.Namespace, flags: list[str], redo: dict[int, list[str]] | None = None) -> int:
    """Bring the store to what the config and the data set want."""
    config, store = config_with_flags(options.config, flags, prog="stage1_extract extract"), _store(options)
    from stage1_extract.datasets import scan

    if config.data.layout == "sample":
        _render(config)
    catalogue = scan(config.data)
    with quiet_imports():  # TensorFlow, which an early fault need not wait for
        from stage1_extract.extract import extract as bring_up

    outcome = bring_up(config, store, catalogue, redo=redo)
    extracted = f"frames extracted by {outcome.engine}"
    counts = {extracted: outcome.extracted, "frames' flow": outcome.flows, "vehicles": outcome.tracks}
    done = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count) or "nothing to extract"
    print(f"{store}: {done}, {outcome.frames:,} frames in the store")
    for note in outcome.notes:
        print(note, file=sys.stderr)
    if outcome.missing:
        print(f"{store}: {len(outcome.missing)} faults were left out, make info names them", file=sys.stderr)
    if config.backbone.weights == "random":
        print(f"{store}: the backbone's weights are random, UNTRAINED: for tests only", file=sys.stderr)
    return 0


def info(options: argparse.Namespace, flags: list[str]) -> int:
    """Print what the store holds."""
    from stage1_extract.info import describe_store

    _no_more(flags)
    with Store(_store(options)) as store:
        print(describe_store(store))
    return 0


def verify(options: argparse.Namespace, flags: list[str]) -> int:
    """Read every chunk and name the frames that are damaged."""
    _no_more(flags)
    path = _store(options)
    bad = _damaged(path)
    if not bad:
        print(f"{path}: sound, every frame read")
        return 0
    lines = "\n".join(_lines(path, bad))
    raise StoreError(
        f"{lines}\n{path}: {len(bad)} frames are damaged",
        hint=f"python -m stage1_extract repair --config F --store {path}",
    )


def repair(options: argparse.Namespace, flags: list[str]) -> int:
    """Extract the damaged frames anew, and only these."""
    bad = _damaged(_store(options))
    if not bad:
        print(f"{_store(options)}: sound, nothing to repair")
        return 0
    return extract(options, flags, bad)


def sample(options: argparse.Namespace, flags: list[str]) -> int:
    """Render the sample data set."""
    config = config_with_flags(options.config, flags, prog="stage1_extract sample")
    _render(config)
    print(f"{config.data.path}: the sample set of seed {config.data.seed}")
    return 0


def _render(config: Config) -> None:
    from stage1_extract.sample import render_sample_set

    render_sample_set(Path(config.data.path), seed=config.data.seed)


def _damaged(path: Path) -> dict[int, list[str]]:
    """Rows of the store with the streams that are damaged there."""
    bad: dict[int, list[str]] = {}
    with Store(path) as store, progress_bar(store.frames, "verify", "frames") as progress:
        for row, streams in store.damaged():
            if streams:
                bad[row] = streams
            progress.update()
        store.tracks()
    return bad


def _lines(path: Path, bad: dict[int, list[str]]) -> list[str]:
    with Store(path) as store:
        owners = [int(store.first.searchsorted(row, "right")) - 1 for row in bad]
        return [
            f"{path}: {store.sequences[at].id} frame {row - int(store.first[at])}: {', '.join(streams)} damaged"
            for at, (row, streams) in zip(owners, bad.items(), strict=True)
        ]


def _store(options: argparse.Namespace) -> Path:
    if options.store is not None:
        # a link is kept, what it points at is replaced
        return options.store.resolve() if options.store.is_symlink() else Path(options.store)
    if options.config is None:
        raise ConfigError("which store?", hint="--store FILE or --config FILE")
    return Path("stores") / f"{options.config.stem}.h5"


def _no_more(flags: list[str]) -> None:
    if flags:
        raise ConfigError("unknown flags", got=" ".join(flags), hint="python -m stage1_extract --help")


COMMANDS = {"extract": extract, "info": info, "verify": verify, "repair": repair, "sample": sample}

if __name__ == "__main__":
    sys.exit(main())
