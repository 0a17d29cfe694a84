"""The trunk and whole extractions compared with Keras' batched `predict`, and other ways to run the trunk.

Seconds are per frame: 1280x720 JPEGs, resized to 320x180. Errors of the maps are relative to `predict`.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from joblib import cpu_count
from numpy.typing import NDArray

from benchmarks.arithmetic import operations, peak
from benchmarks.peers import PREDICT, PREDICT_ONE, peers
from benchmarks.timing import Row, Timer, compare, timer
from features._common.types import Image
from features.config import BackboneConfig, Config, DataConfig, FramesConfig
from features.errors import ConfigError
from features.frame_files import shard_folder
from stage1_extract.backbone.trunk import build_trunk
from stage1_extract.datasets import scan
from stage1_extract.datasets.clip import Clip
from stage1_extract.engine_setup import new_engine
from stage1_extract.engines.engine import Engine, relative_error
from stage1_extract.extract import extract
from stage1_extract.frame_loader import resize_frame
from stage1_extract.sample import render_sample_set

BACKBONES = {  # each with a number of clips of 8 frames
    "EfficientNetLite0": (BackboneConfig(), 128),
    "EfficientNetLite0 at block3b_add": (BackboneConfig(cut="block3b_add", top=False), 128),
    "InceptionResNetV2": (BackboneConfig(name="InceptionResNetV2", weights="random"), 24),
}
PEAKS = ("float32", "bfloat16", "int8")
ONE_BY_ONE = 16  # frames
DECODING = {
    "full decoding": FramesConfig(interpolation="cubic"),
    "fast decoding": FramesConfig(interpolation="cubic", decode="fast"),
}


def measure(rounds: int = 5) -> list[Row]:
    """One row per backbone and function, and this machine's peak arithmetic per precision."""
    peaks: list[Row] = [
        {"function": f"peak of a matrix product, {precision}", "Gflop/s": rate / 1e9}
        for precision in PEAKS
        if (rate := peak(precision)) is not None
    ]
    return [row for name, case in BACKBONES.items() for row in _measure_backbone(name, *case, rounds)] + peaks


def _measure_backbone(name: str, backbone: BackboneConfig, clip_count: int, rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        data, store = Path(folder, "data"), Path(folder, "store.h5")
        render_sample_set(data, seed=1, train=clip_count, validation=0, test=0)
        config = Config(
            data=DataConfig(layout="sample", path=str(data), fps=10.0),
            frames=DECODING["full decoding"],
            backbone=backbone,
        )
        clips = scan(config.data).clips
        frames = np.concatenate(_decode(clips, config.frames))
        model = build_trunk(config).model
        timers: dict[str, Timer] = {}
        for decoding, frame_settings in DECODING.items():
            timers[decoding] = timer(partial(_decode, clips, frame_settings), len(frames))
        exact: dict[str, Any] = model.predict(frames, batch_size=ONE_BY_ONE, verbose=0)
        errors: dict[str, float] = {}

        def add(label: str, function: Callable[[Image], object], part: Image) -> None:
            timers[label] = timer(partial(function, part), len(part))
            if part is frames and isinstance(maps := function(part), dict):
                errors[label] = max(relative_error(maps[stream], values) for stream, values in exact.items())

        for peer, function in peers(model, name, frames, Path(folder)):
            add(peer, function, frames[:ONE_BY_ONE] if peer == PREDICT_ONE else frames)
        references: dict[str, tuple[str, ...]] = {}
        precisions = [("tensorflow", "float32"), *(("openvino", precision) for precision in PEAKS)]
        for engine_name, precision in precisions:
            options = {"engine": engine_name, "precision": precision, "tracks": False}
            config = config.with_settings({f"extract.{name}": value for name, value in options.items()})
            label = f"{engine_name} {precision}"
            try:
                engine = new_engine(config, store, None, clips)
                assert engine.batch  # compiles, which fails on a processor without the precision
            except ConfigError as e:
                print(f"skipped {label}: {e}", file=sys.stderr)
                continue
            trunk, extraction = f"trunk, {label}", f"extraction, {label}"
            add(trunk, engine, frames)
            references[trunk] = (PREDICT,)
            fully_decoded = (f"{extraction}, full decoding",)
            variants: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
                *((name, {"frames.decode": f.decode}, (PREDICT,)) for name, f in DECODING.items()),
                ("with tracks", {"extract.tracks": True}, fully_decoded),
                ("with tracks and flow", {"extract.tracks": True, "extract.motion": True}, fully_decoded),
            ]
            for variant, update, reference in variants:
                settings = config.with_settings(update)
                timers[f"{extraction}, {variant}"] = extraction_timer(settings, store, engine, len(frames))
                references[f"{extraction}, {variant}"] = reference
        rows = compare(timers, references, rounds)
        needed = operations(model)
        for row in rows:
            if not str(row["function"]).endswith("decoding"):
                row["Gflop/s"] = needed * float(row["per second"]) / 1e9
            if row["function"] in errors:
                row["error"] = errors[str(row["function"])]
        return [{"backbone": name} | row for row in rows]


def extraction_timer(config: Config, store: Path, engine: Engine, frames: int) -> Timer:
    """Time, per frame, how a data set is extracted into a new store; the one at its path is deleted before."""
    timed = timer(lambda: extract(config, store, scan(config.data), engine=engine), frames)

    def call() -> NDArray[np.float64]:
        store.unlink(missing_ok=True)
        shutil.rmtree(shard_folder(store), ignore_errors=True)
        return timed()

    return call


def _decode(clips: tuple[Clip, ...], frames: FramesConfig) -> list[Image]:
    """Read, decode and resize all frames on all cores."""

    def decode_clip(clip: Clip) -> Image:
        images = clip.source.read(0, clip.sequence.length, frames.min_size)
        return np.stack([resize_frame(image, frames) for image in images])

    with ThreadPoolExecutor(cpu_count()) as pool:
        return list(pool.map(decode_clip, clips))
