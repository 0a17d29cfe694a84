"""Compare predicting with a sliding window with its trunk passes alone: 200 frames, T = 8, stride 1.

python -m benchmarks.prediction
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks.timing import median_ratio, median_seconds, take_turns
from features._common.console import text_table
from features._common.quiet_imports import quiet_imports
from features.config import BackboneConfig, Config
from features.head_config import FlattenLSTMConfig, PooledLSTMConfig
from features.streams import APPEARANCE

with quiet_imports():
    import keras

    from stage1_extract.backbone.trunk import build_trunk
    from stage1_extract.engines.engine import Engine
    from stage2_temporal.fused.fuse import build_fused_model
    from stage2_temporal.heads import build_model
    from stage2_temporal.sliding.sliding_window import RunModels, SlidingWindow
    from stage2_temporal.training.scaling import vector_scale

FRAMES, TIME = 200, 8
CASES = {
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
HEADER = ("frames per CPU second", "trunk", "sliding window", "window / trunk", "by CPU", "difference")


def measure(name: str, rounds: int = 7) -> dict[str, Any]:
    """Measure one case.

    `difference` is the largest between sliding windows and the fused model, relative to the largest prediction.
    """
    backbone, head = CASES[name]
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
    ratio = median_ratio(timings["window"], timings["trunk"])
    return {
        "case": name,
        "trunk_fps": FRAMES / median_seconds(timings["trunk"]).cpu,
        "sliding_fps": FRAMES / median_seconds(timings["window"]).cpu,
        "sliding_over_trunk": ratio.wall,
        "sliding_over_trunk_cpu": ratio.cpu,
        "difference": float(np.abs(values[compared] - expected).max() / np.abs(expected).max()),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Format the rows."""
    formats = {"trunk_fps": ".1f", "sliding_fps": ".1f", "difference": ".1e"}
    cells = [[v if isinstance(v, str) else f"{v:{formats.get(k, '.3f')}}" for k, v in row.items()] for row in rows]
    return text_table(HEADER, cells)


if __name__ == "__main__":
    print(table([measure(case) for case in CASES]))
