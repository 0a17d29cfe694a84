"""Sliding windows compared with their trunk passes alone: 200 frames, T = 8, stride 1. Seconds are per frame."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from benchmarks.timing import Row, compare, timer
from features import streams
from features.config import BackboneConfig, Config
from features.head_config import FlattenLSTMConfig, HeadConfig, PooledLSTMConfig
from features.streams import APPEARANCE
from stage1_extract.backbone.trunk import build_trunk
from stage2_temporal.sliding.sliding_window import RunModels, SlidingWindow
from tests.stage2_helpers import build_model

FRAMES, TIME = 200, 8
CASES: dict[str, tuple[BackboneConfig, HeadConfig]] = {
    "EfficientNetLite0, pooled_lstm": (BackboneConfig(), PooledLSTMConfig(units=256)),
    "EfficientNetLite0 at block3b_add, pooled_lstm 3x4": (
        BackboneConfig(cut="block3b_add", top=False),  # as in configs/sample.toml
        PooledLSTMConfig(units=64, grid=(3, 4), difference=True),
    ),
    "InceptionResNetV2, flatten_lstm": (
        BackboneConfig(name="InceptionResNetV2", weights="random", preprocess=False),  # as in configs/competition.toml
        FlattenLSTMConfig(activation="relu"),
    ),
}


def measure(rounds: int = 7) -> list[Row]:
    """Two rows per case."""
    return [{"case": name} | row for name, case in CASES.items() for row in _measure_case(*case, rounds)]


def _measure_case(backbone: BackboneConfig, head: HeadConfig, rounds: int) -> list[Row]:
    config = Config(backbone=backbone, head=head)
    trunk = build_trunk(config)
    trunk = replace(trunk, recipe=replace(trunk.recipe, dtype="float32"))  # as load_run_models does
    stage_two = build_model((TIME, *trunk.streams[APPEARANCE].shape), head, 2, top=trunk.top())
    rows = np.arange(FRAMES - TIME + 1)[:, None] + np.arange(TIME)
    window = SlidingWindow(RunModels(trunk, stage_two, config), rows)
    engine = window.engine
    assert engine is not None
    frames = np.random.default_rng(0).integers(0, 256, (FRAMES, 180, 320, 3), dtype=np.uint8)
    batches = [frames[start : start + window.step] for start in range(0, FRAMES, window.step)]
    timers = {
        "trunk": timer(lambda: [engine(batch) for batch in batches], FRAMES),
        "sliding window": timer(lambda: list(window.run({streams.FRAMES: batch} for batch in batches)), FRAMES),
    }
    return compare(timers, {"sliding window": ("trunk",)}, rounds)
