"""Sliding windows compared with their trunk passes alone: 200 frames, T = 8, stride 1."""

from __future__ import annotations

from dataclasses import replace

import keras
import numpy as np

from benchmarks.timing import Row, ratio, speed, take_turns
from features.config import BackboneConfig, Config
from features.head_config import FlattenLSTMConfig, HeadConfig, PooledLSTMConfig
from features.streams import APPEARANCE
from stage1_extract.backbone.trunk import build_trunk
from stage1_extract.engines.engine import Engine
from stage2_temporal.fused.fuse import build_fused_model
from stage2_temporal.heads import build_model
from stage2_temporal.sliding.sliding_window import RunModels, SlidingWindow
from stage2_temporal.training.scaling import vector_scale

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
    """Two rows per case; `difference` is from the fused model, relative to the largest prediction."""
    return [row for name, case in CASES.items() for row in _measure_case(name, *case, rounds)]


def _measure_case(name: str, backbone: BackboneConfig, head: HeadConfig, rounds: int) -> list[Row]:
    config = Config(backbone=backbone, head=head)
    trunk = build_trunk(config)
    trunk = replace(trunk, recipe=replace(trunk.recipe, dtype="float32"))  # as load_run_models does
    frames = np.random.default_rng(0).integers(0, 256, (FRAMES, 180, 320, 3), dtype=np.uint8)
    maps = Engine(trunk, TIME)(frames[:TIME])[None]
    scale = None
    if head.name == "pooled_lstm":  # vectors of deviation 1, as in training: a saturated LSTM would magnify rounding
        plain = build_model(maps.shape[1:], head, 2, top=trunk.top())
        vectors = keras.Model(plain.input, plain.get_layer("lstm").input)
        scale = vector_scale([vectors.predict_on_batch(maps)])
    stage_two = build_model(maps.shape[1:], head, 2, top=trunk.top(), vectors=scale)
    rows = np.arange(FRAMES - TIME + 1)[:, None] + np.arange(TIME)
    window = SlidingWindow(RunModels(trunk, stage_two, config), rows)
    engine = window.engine
    assert engine is not None
    batches = [frames[start : start + window.step] for start in range(0, FRAMES, window.step)]

    def slide() -> np.ndarray:
        return np.concatenate(list(window.run({APPEARANCE: batch} for batch in batches)))

    values, compared = slide(), [0, 50, len(rows) - 1]
    expected = build_fused_model(trunk.model, stage_two).predict(frames[rows[compared]], verbose=0)
    timings = take_turns({"window": slide, "trunk": lambda: [engine(batch) for batch in batches]}, rounds)
    difference = float(np.abs(values[compared] - expected).max() / np.abs(expected).max())
    return [
        {"case": name, "function": "trunk"} | speed(timings["trunk"], FRAMES),
        {"case": name, "function": "sliding window"}
        | speed(timings["window"], FRAMES)
        | ratio("window / trunk", timings["window"], timings["trunk"])
        | {"difference": difference},
    ]
