"""Whole extractions compared with Keras' `predict`, and with their parts: the trunk alone plus decoding alone.

1280x720 JPEGs, resized to 320x180, up to the cut of `unfreeze = 4`, with random weights.
"""

from __future__ import annotations

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.timing import Function, Row, ratio, speed, take_turns
from features._common.atomic import atomic_write
from features._common.cpu import cpu_count
from features._common.types import Image
from features.config import BackboneConfig, Config, DataConfig, ExtractConfig, FramesConfig
from features.errors import ConfigError
from features.frame_ranges import full_range
from features.store import Store
from features.store_writer import ShardWriter
from features.streams import APPEARANCE
from stage1_extract.backbone.trunk import build_trunk
from stage1_extract.datasets import scan
from stage1_extract.datasets.clip import Clip
from stage1_extract.engines.engine import Engine
from stage1_extract.engines.openvino import openvino_installed
from stage1_extract.extract import extract
from stage1_extract.frame_loader import resize_frame
from stage1_extract.sample import render_sample_set

PREDICT, ONE_FRAME = "Keras predict, batches of 32", "Keras predict, one frame at a time"
BATCH, SINGLE_FRAMES, WINDOW = 32, 16, 8
CLIPS = {"EfficientNetLite0": 128, "InceptionResNetV2": 24}  # of 8 frames, by backbone
ENGINES = {  # engine, precision, decoding
    "tensorflow": ("tensorflow", "float32", "full"),
    "openvino": ("openvino", "float32", "full"),
    "openvino bfloat16": ("openvino", "bfloat16", "full"),
    "openvino bfloat16, fast decoding": ("openvino", "bfloat16", "fast"),
}


def measure(rounds: int = 5) -> list[Row]:
    """One row per backbone and function."""
    return [row for backbone in CLIPS for row in _measure_backbone(backbone, rounds)]


def _measure_backbone(backbone: str, rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        render_sample_set(data, seed=1, train=CLIPS[backbone], validation=0, test=0, progress=False)
        config = Config(
            data=DataConfig(layout="sample", path=str(data), fps=10.0),
            frames=FramesConfig(interpolation="cubic"),
            backbone=BackboneConfig(name=backbone, weights="random"),
            extract=ExtractConfig(tracks=False),
        )
        timings = take_turns(_functions(config, Path(folder)), rounds)
    rows = []
    for name, times in timings.items():
        row: Row = {"backbone": backbone, "function": name}
        row |= speed(times, SINGLE_FRAMES if name == ONE_FRAME else CLIPS[backbone] * WINDOW)
        kind, _, engine = name.partition(": ")
        if kind in ("trunk", "extraction"):
            row |= ratio("predict / this", timings[PREDICT], times)
        if kind == "extraction":
            parts = timings[f"trunk: {engine.split(',')[0]}"], timings[f"decoding, {ENGINES[engine][2]}"]
            row |= ratio("this / its parts", times, *parts)
        rows.append(row)
    return rows


def _functions(config: Config, root: Path) -> dict[str, Function]:
    clips = scan(config.data).clips
    fast = config.model_copy(update={"frames": config.frames.model_copy(update={"decode": "fast"})})
    frames = np.concatenate(_decode(clips, config.frames))
    model = build_trunk(config).model
    functions: dict[str, Function] = {
        "decoding, full": lambda: _decode(clips, config.frames),
        "decoding, fast": lambda: _decode(clips, fast.frames),
        ONE_FRAME: lambda: [model.predict(frame[None], verbose=0) for frame in frames[:SINGLE_FRAMES]],
        PREDICT: lambda: model.predict(frames, batch_size=BATCH, verbose=0),
    }
    for name, (engine_name, precision, decoding) in ENGINES.items():
        if engine_name == "openvino" and not openvino_installed():
            continue
        options = ExtractConfig.model_validate({"engine": engine_name, "precision": precision, "tracks": False})
        engine_config = (fast if decoding == "fast" else config).model_copy(update={"extract": options})
        try:
            engine = Engine(build_trunk(engine_config), 0, engine_name)
            assert engine.batch  # compiles, which fails on a processor without the precision
        except ConfigError as e:
            print(f"skipped {name}: {e}", file=sys.stderr)
            continue
        if decoding == "full":
            functions[f"trunk: {name}"] = partial(engine, frames)
        functions[f"extraction: {name}"] = partial(_extract, engine_config, root / "extracted.h5", engine)
    store = root / "store.h5"
    _extract(config, store, Engine(build_trunk(config)))
    functions["writing a store"] = lambda: _write(store, root / "shard.h5")
    functions["reading a store as shuffled windows"] = lambda: _read(store)
    return functions


def _extract(config: Config, path: Path, engine: Engine) -> None:
    path.unlink(missing_ok=True)
    extract(config, path, scan(config.data), engine=engine)


def _write(source: Path, target: Path) -> None:
    with Store(source) as store, atomic_write(target) as temporary:
        maps, ranges = store.read(APPEARANCE, range(store.frames)), [full_range(s) for s in store.sequences]
        writer = ShardWriter(temporary, store.recipe, ranges, {APPEARANCE: store.streams[APPEARANCE]})
        for start in range(0, len(maps), BATCH):
            batch = maps[start : start + BATCH]
            writer.write({APPEARANCE: batch}, [b"jpeg"] * len(batch))
        writer.finish()


def _read(path: Path) -> None:
    with Store(path) as store:
        for first in np.random.default_rng(0).permutation(store.frames // WINDOW) * WINDOW:
            store.read(APPEARANCE, np.arange(first, first + WINDOW))


def _decode(clips: tuple[Clip, ...], frames: FramesConfig) -> list[Image]:
    """Read, decode and resize all frames on all cores."""

    def decode_clip(clip: Clip) -> Image:
        images = clip.source.read(0, clip.sequence.length, frames.min_size)
        return np.stack([resize_frame(image, frames) for image in images])

    with ThreadPoolExecutor(cpu_count()) as pool:
        return list(pool.map(decode_clip, clips))
