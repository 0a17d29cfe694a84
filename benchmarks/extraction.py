"""How fast is extraction, beside what one would else do, and does it cost its parts and nothing more?

python -m benchmarks.extraction [BACKBONE …]

Everything is measured in turn, round by round, in one process; ratios are taken within a round and their median over
the rounds is given, by the clock and by CPU seconds of all threads (which what else runs on the machine leaves alone).
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from features._common.atomic import atomic_write
from features._common.cpu import cpu_count
from features._common.quiet_imports import quiet_imports
from features.config import BackboneConfig, Config, DataConfig, ExtractConfig, FramesConfig
from features.errors import ConfigError
from features.frame_ranges import full_range
from features.store import Store
from features.store_writer import ShardWriter
from features.streams import APPEARANCE
from stage1_extract.datasets import scan
from stage1_extract.datasets.clip import Clip
from stage1_extract.frame_loader import resize_frame
from stage1_extract.sample import render_sample_set

with quiet_imports():
    from stage1_extract.backbone.trunk import build_trunk
    from stage1_extract.engines import openvino
    from stage1_extract.engines.engine import Engine
    from stage1_extract.extract import extract

BASE = "keras predict, batches of 32"
BATCH, ONE_BY_ONE, WINDOW = 32, 16, 8
CASES = {"EfficientNetLite0": 128, "InceptionResNetV2": 24}  # and clips of 8 frames
Work = tuple[Callable[[], object], int]  # and how many frames it is
ENGINES = {
    "tensorflow": ("tensorflow", "float32", "full"),
    "openvino": ("openvino", "float32", "full"),
    "openvino bfloat16": ("openvino", "bfloat16", "full"),
    "openvino bfloat16, fast decode": ("openvino", "bfloat16", "fast"),
}


def measure(name: str, rounds: int = 5) -> dict[str, object]:
    """Every row's frames/s, by the clock and by CPU seconds, and its ratios to batched `predict` and to its parts.

    Args:
        name: backbone; its trunk is cut as `unfreeze = 4` says, with random weights.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        render_sample_set(root / "data", seed=1, train=CASES[name], validation=0, test=0, progress=False)
        config = Config(
            data=DataConfig(layout="sample", path=str(root / "data"), fps=10.0),
            frames=FramesConfig(interpolation="cubic"),
            backbone=BackboneConfig(name=name, weights="random"),
            extract=ExtractConfig(tracks=False),
        )
        works = _works(config, root)
        times: dict[str, list[tuple[float, float]]] = {label: [] for label in works}
        for work, _ in works.values():  # traces, compiles and warms up
            work()
        for _ in range(rounds):
            for store in (root / "stores").iterdir():  # to be made anew; taking the old ones away is nobody's work
                store.unlink()
            for label, (work, _) in works.items():
                times[label].append(_time(work))
    each = {label: [(c / works[label][1], p / works[label][1]) for c, p in spans] for label, spans in times.items()}
    rows = [_row(label, spans, each) for label, spans in each.items()]
    return {"backbone": name, "rounds": rounds, "rows": rows}


def table(result: dict[str, object]) -> str:
    """The rows of one backbone as Markdown."""
    lines = [
        f"| {result['backbone']} | frames/s | a CPU second | x `predict` | by CPU | whole / parts | by CPU |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:  # type: ignore[attr-defined]
        parts = [f"{row[k]:.2f}" if k in row else "" for k in ("ratio", "ratio_cpu", "over_parts", "over_parts_cpu")]
        lines.append(f"| {row['what']} | {row['fps']:.1f} | {row['fps_cpu']:.1f} | {' | '.join(parts)} |")
    return "\n".join(lines)


def _row(label: str, spans: list[tuple[float, float]], each: dict[str, list[tuple[float, float]]]) -> dict[str, object]:
    row: dict[str, object] = {"what": label}
    for i, suffix in enumerate(("", "_cpu")):
        row[f"fps{suffix}"] = 1 / statistics.median(span[i] for span in spans)
        if label.startswith(("trunk", "whole", "keras")):
            row[f"ratio{suffix}"] = statistics.median(
                base[i] / span[i] for base, span in zip(each[BASE], spans, strict=True)
            )
        if label.startswith("whole"):
            engine = label.removeprefix("whole: ")
            trunk, decode = each[f"trunk: {engine.split(',')[0]}"], each[f"decode, {ENGINES[engine][2]}"]
            row[f"over_parts{suffix}"] = statistics.median(
                w[i] / (t[i] + d[i]) for w, t, d in zip(spans, trunk, decode, strict=True)
            )
    return row


def _works(config: Config, root: Path) -> dict[str, Work]:
    clips = scan(config.data).clips
    fast = config.model_copy(update={"frames": config.frames.model_copy(update={"decode": "fast"})})
    frames = np.concatenate(_decode(clips, config.frames))
    count = len(frames)
    (root / "stores").mkdir()
    works: dict[str, Work] = {
        "decode, full": (lambda: _decode(clips, config.frames), count),
        "decode, fast": (lambda: _decode(clips, fast.frames), count),
    }
    model = build_trunk(config).model
    works["keras predict, one frame at a time"] = (
        lambda: [model.predict(frame[None], verbose=0) for frame in frames[:ONE_BY_ONE]],
        ONE_BY_ONE,
    )
    works[BASE] = (lambda: model.predict(frames, batch_size=BATCH, verbose=0), count)
    for label, (engine, precision, decode) in ENGINES.items():
        if engine == "openvino" and not openvino.openvino_installed():
            continue
        asked = (fast if decode == "fast" else config).model_copy(
            update={"extract": ExtractConfig(engine=engine, precision=precision, tracks=False)}  # type: ignore[arg-type]
        )
        try:
            runner = Engine(build_trunk(asked), 0, engine)
            assert runner.batch  # compiles: only then is it known whether this processor has the precision
        except ConfigError as e:
            print(f"left out, {label}: {e}", file=sys.stderr)
            continue
        if decode == "full":
            works[f"trunk: {label}"] = (lambda runner=runner: runner(frames), count)  # type: ignore[misc]
        store = root / "stores" / f"{label}.h5"
        works[f"whole: {label}"] = (lambda a=asked, s=store, r=runner: _whole(a, s, r), count)  # type: ignore[misc]
    _whole(config, root / "read.h5", Engine(build_trunk(config)))
    works["store, written"] = (lambda: _write(root / "read.h5", root / "shard.h5"), count)
    works["store, read as shuffled windows"] = (lambda: _read(root / "read.h5"), count)
    return works


def _whole(config: Config, store: Path, engine: Engine) -> None:
    extract(config, store, scan(config.data), engine=engine)


def _write(source: Path, target: Path) -> None:
    with Store(source) as store:
        maps, names = store.read(APPEARANCE, range(store.frames)), [full_range(s) for s in store.sequences]
        with atomic_write(target) as temporary:
            writer = ShardWriter(temporary, store.recipe, names, {APPEARANCE: store.streams[APPEARANCE]})
            for at in range(0, len(maps), BATCH):
                part = maps[at : at + BATCH]
                writer.write({APPEARANCE: part}, [b"jpeg"] * len(part))
            writer.finish()


def _read(path: Path) -> None:
    with Store(path) as store:
        for first in np.random.default_rng(0).permutation(store.frames // WINDOW) * WINDOW:
            store.read(APPEARANCE, np.arange(first, first + WINDOW))


def _decode(clips: tuple[Clip, ...], frames: FramesConfig) -> list[np.ndarray]:
    """Decoding alone, on all cores: read, decode, resize; no thumbnails, nothing kept but the small frames."""

    def one(clip: Clip) -> np.ndarray:
        images = clip.source.read(0, clip.sequence.length, frames.min_size)
        return np.stack([resize_frame(image, frames) for image in images])

    with ThreadPoolExecutor(cpu_count()) as pool:
        return list(pool.map(one, clips))


def _time(work: Callable[[], object]) -> tuple[float, float]:
    begun, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - begun, time.process_time() - used


if __name__ == "__main__":
    for backbone_name in sys.argv[1:] or CASES:
        found = measure(backbone_name)
        print(table(found), flush=True)
        print(json.dumps(found), file=sys.stderr)
