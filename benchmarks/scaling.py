"""What each change of a store costs, for stores of several sizes: bytes written and read, beside the new data and the
index; the most disk space used; memory and time. On Linux only."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import cv2
import numpy as np
import tomlkit

from benchmarks.timing import Row
from features.frame_files import shard_folder
from stage1_extract.datasets.scan_cache import SETTLED_NS

SIZES = (1_000, 10_000, 100_000)  # frames
LENGTH = 8  # frames per clip
CONFIG = {
    "data": {"layout": "competition", "target": "velocity", "fps": 10.0},
    "frames": {"width": 64, "height": 64},
    "backbone": {
        "name": "MobileNet",
        "weights": "random",
        "cut": "conv_pw_11_relu",
        "top": False,
        "arguments": {"alpha": 0.25},
    },
    "extract": {"packed_gb": 0.0},
}
COMMAND = """
import resource, sys
from framebank.cli import main
status = main(sys.argv[1:])
counts = dict(line.split(": ") for line in open("/proc/self/io").read().splitlines())
# not ru_maxrss, which begins with the memory of the process that started this one
memory = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
used = resource.getrusage(resource.RUSAGE_SELF)
print("", counts["wchar"], counts["rchar"], memory, round(1e6 * (used.ru_utime + used.ru_stime)), sep="\\n")
sys.exit(status)
"""


def measure(sizes: Sequence[int] = SIZES) -> list[Row]:
    """Measure every step for every size, a row each."""
    rows: list[Row] = []
    for frames in sizes:
        with tempfile.TemporaryDirectory() as folder:
            rows += measure_size(Path(folder), frames)
    return rows


def measure_size(root: Path, frames: int) -> Iterator[Row]:
    """Measure every step for a store of so many frames."""
    clips, data, store, config = frames // LENGTH, root / "data", root / "stores" / "s.h5", root / "c.toml"
    store.parent.mkdir()
    settings = CONFIG | {"data": CONFIG["data"] | {"path": str(data)}}
    config.write_text(tomlkit.dumps(settings), encoding="utf-8")
    write_clips(data, range(clips))
    extract = ["extract", "--config", str(config), "--store", str(store)]
    derive = ["derive", "--store", str(store), "--stream", "grid2x2"]
    yield _step(frames, "first extraction", extract, data, store)
    yield _step(frames, "nothing to do", extract, data, store)
    yield _step(frames, "derive a stream", derive, data, store)
    write_clips(data, range(clips, clips + max(1, clips // 100)))
    yield _step(frames, "1 % more clips", extract, data, store)
    yield _step(frames, "derive it for these", derive, data, store)
    write_labels(data, range(clips), speed=2.0)
    yield _step(frames, "other labels", extract, data, store)
    write_labels(data, range(0, clips, 100), speed=2.0, box=(10, 10, 30, 30))
    yield _step(frames, "1 % more tracks", extract, data, store)


def _step(frames: int, name: str, arguments: list[str], data: Path, store: Path) -> Row:
    time.sleep(SETTLED_NS / 1e9)  # files that have just been written are read again by the next scan
    old = set(shard_folder(store).glob("*.h5"))
    start = time.perf_counter()
    with _peak_disk_use(store.parent) as peak:
        done = subprocess.run([sys.executable, "-c", COMMAND, *arguments], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    written, read, memory, cpu = map(int, done.stdout.split()[-4:])
    new = sum(p.stat().st_size for p in set(shard_folder(store).glob("*.h5")) - old)
    index = store.stat().st_size
    return {
        "frames": f"{frames:,}",
        "step": name,
        "new MB": new / 1e6,
        "index MB": index / 1e6,
        "written MB": written / 1e6,
        "written / (new + index)": written / (new + index),
        "read MB": read / 1e6,
        "images MB": _size(data.rglob("*.jpg")) / 1e6,
        "peak / store": max(peak) / _size(store.parent.rglob("*.h5")),
        "memory MB": memory / 1e3,
        "seconds": seconds,
        "CPU seconds": cpu / 1e6,
    }


@contextmanager
def _peak_disk_use(folder: Path) -> Iterator[list[int]]:
    """Note the bytes of all files in a folder, every few milliseconds."""
    sizes, stop = [0], Event()

    def watch() -> None:
        while not stop.wait(0.02):
            sizes.append(_size(folder.rglob("*")))

    thread = Thread(target=watch)
    thread.start()
    try:
        yield sizes
    finally:
        stop.set()
        thread.join()


def _size(files: Iterable[Path]) -> int:
    total = 0
    for path in files:
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # deleted in the meantime
            continue
    return total


def write_clips(data: Path, clips: Iterable[int]) -> None:
    """Write clips of small JPEGs in the competition's layout."""
    for clip in clips:
        folder = data / "Train" / "Train" / str(clip + 1) / "imgs"
        folder.mkdir(parents=True)
        noise = np.random.default_rng(clip).integers(0, 256, (6, 8 + LENGTH, 3), dtype=np.uint8)
        for i in range(LENGTH):
            image = cv2.resize(noise[:, i : i + 8], (64, 64), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(folder / f"{i + 1:03d}.jpg"), image)
    write_labels(data, clips, speed=1.0)


def write_labels(data: Path, clips: Iterable[int], speed: float, box: tuple[int, int, int, int] | None = None) -> None:
    """Write the clips' labels, with a vehicle's box if one is given."""
    for clip in clips:
        label: dict[str, object] = {"velocity": [speed, 0.0]}
        if box is not None:
            label["bbox"] = dict(zip(("left", "top", "right", "bottom"), box, strict=True))
        path = data / "Train" / "Train" / str(clip + 1) / "annotation.json"
        path.write_text(json.dumps([label]), encoding="utf-8")
