"""Extraction compared with its parts (the trunk alone plus decoding alone), and the trunk with Keras' `predict`.

Seconds are per frame: 1280x720 JPEGs, resized to 320x180, with random weights.
"""

from __future__ import annotations

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from joblib import cpu_count

from benchmarks.timing import Row, Timer, compare, timer
from features._common.types import Image
from features.config import BackboneConfig, Config, DataConfig, FramesConfig
from features.errors import ConfigError
from stage1_extract.backbone.trunk import build_trunk
from stage1_extract.datasets import scan
from stage1_extract.datasets.clip import Clip
from stage1_extract.engines.engine import Engine
from stage1_extract.extract import extract
from stage1_extract.frame_loader import resize_frame
from stage1_extract.sample import render_sample_set

BACKBONES = {  # each with a number of clips of 8 frames
    "EfficientNetLite0": (BackboneConfig(weights="random"), 128),
    "EfficientNetLite0 at block3b_add": (BackboneConfig(weights="random", cut="block3b_add", top=False), 128),
    "InceptionResNetV2": (BackboneConfig(name="InceptionResNetV2", weights="random"), 24),
}
PREDICT = "Keras predict, batches of 32"
DECODING = {
    "full decoding": FramesConfig(interpolation="cubic"),
    "fast decoding": FramesConfig(interpolation="cubic", decode="fast"),
}


def measure(rounds: int = 5) -> list[Row]:
    """One row per backbone and function."""
    return [row for name, case in BACKBONES.items() for row in _measure_backbone(name, *case, rounds)]


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
        timers: dict[str, Timer] = {
            "Keras predict, one frame": timer(lambda: model.predict(frames[:1], verbose=0)),
            PREDICT: timer(lambda: model.predict(frames, batch_size=32, verbose=0), len(frames)),
            **{name: timer(partial(_decode, clips, settings), len(frames)) for name, settings in DECODING.items()},
        }
        references: dict[str, tuple[str, ...]] = {}
        for engine_name, precision in (("tensorflow", "float32"), ("openvino", "float32"), ("openvino", "bfloat16")):
            options = {"engine": engine_name, "precision": precision, "tracks": False}
            config = config.with_settings({f"extract.{name}": value for name, value in options.items()})
            label = f"{engine_name} {precision}"
            try:
                engine = Engine(build_trunk(config), 0, engine_name)
                assert engine.batch  # compiles, which fails on a processor without the precision
            except ConfigError as e:
                print(f"skipped {label}: {e}", file=sys.stderr)
                continue
            trunk, extraction = f"trunk, {label}", f"extraction, {label}"
            timers[trunk], references[trunk] = timer(partial(engine, frames), len(frames)), (PREDICT,)
            fully_decoded = (f"{extraction}, full decoding",)
            variants: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
                *((name, {"frames.decode": settings.decode}, (trunk, name)) for name, settings in DECODING.items()),
                ("with tracks", {"extract.tracks": True}, fully_decoded),
                ("with tracks and flow", {"extract.tracks": True, "extract.motion": True}, fully_decoded),
            ]
            for variant, update, reference in variants:
                call = partial(_extract, config.with_settings(update), store, engine)
                timers[f"{extraction}, {variant}"] = timer(call, len(frames))
                references[f"{extraction}, {variant}"] = reference
        return [{"backbone": name} | row for row in compare(timers, references, rounds)]


def _extract(config: Config, store: Path, engine: Engine) -> None:
    store.unlink(missing_ok=True)
    extract(config, store, scan(config.data), engine=engine)


def _decode(clips: tuple[Clip, ...], frames: FramesConfig) -> list[Image]:
    """Read, decode and resize all frames on all cores."""

    def decode_clip(clip: Clip) -> Image:
        images = clip.source.read(0, clip.sequence.length, frames.min_size)
        return np.stack([resize_frame(image, frames) for image in images])

    with ThreadPoolExecutor(cpu_count()) as pool:
        return list(pool.map(decode_clip, clips))
