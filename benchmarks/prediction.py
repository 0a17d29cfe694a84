"""Does a sliding window cost its trunk passes and little more? 200 frames, T = 8, stride 1, beside the trunk alone.

python -m benchmarks.prediction
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from features._common.quiet_imports import quiet_imports
from features.config import BackboneConfig, Config, FramesConfig
from features.head_config import FlattenLSTMConfig, PooledLSTMConfig

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
        BackboneConfig(cut="block3b_add", top=False),  # as configs/sample.toml has it
        PooledLSTMConfig(units=64, grid=(3, 4), difference=True),
    ),
    "InceptionResNetV2, flatten_lstm": (
        BackboneConfig(
            name="InceptionResNetV2", weights="random", preprocess=False
        ),  # as configs/competition.toml has it
        FlattenLSTMConfig(activation="relu"),
    ),
}


def measure(name: str, rounds: int = 7) -> dict[str, float | str]:
    """Sliding over frames in memory against the trunk alone in the same batches; medians over rounds.

    Ratios are by the clock and by CPU seconds of all threads, which what else runs on the machine leaves alone.

    `difference` is the largest from the fused model's answers over a few windows, relative to the largest answer.
    """
    backbone, head = CASES[name]
    config = Config(frames=FramesConfig(), backbone=backbone, head=head)
    trunk = build_trunk(config)
    trunk = replace(trunk, recipe=replace(trunk.recipe, dtype="float32"))  # as load_parts has it
    frames = np.random.default_rng(0).integers(0, 256, (FRAMES, 180, 320, 3), dtype=np.uint8)
    some = Engine(trunk, TIME)(frames[:TIME])[None]
    # vectors of deviation 1, as training makes them: an LSTM driven into saturation magnifies rounding
    plain = build_model(some.shape[1:], head, 2, top=trunk.top())
    vectors = keras.Model(plain.input, plain.get_layer("lstm").input)
    scale = vector_scale([vectors.predict_on_batch(some)]) if head.name == "pooled_lstm" else None
    stage_two = build_model(some.shape[1:], head, 2, top=trunk.top(), vectors=scale)
    rows = np.arange(FRAMES - TIME + 1)[:, None] + np.arange(TIME)
    slider = SlidingWindow(RunModels(trunk, stage_two, config), rows)
    engine = slider.engine
    assert engine is not None
    batches = [frames[at : at + slider.step] for at in range(0, FRAMES, slider.step)]

    def slide() -> np.ndarray:
        return np.concatenate(list(slider.run({"appearance": batch} for batch in batches)))

    def batched() -> None:
        for batch in batches:
            engine(batch)

    values, few = slide(), [0, 50, len(rows) - 1]
    fused = build_fused_model(trunk.model, stage_two)
    expected = fused.predict(frames[rows[few]], verbose=0)
    difference = float(np.abs(values[few] - expected).max() / np.abs(expected).max())
    slide()  # every shape of batch is traced by now
    times = [(_time(slide), _time(batched)) for _ in range(rounds)]
    clock, cpu = ([(s[i], t[i]) for s, t in times] for i in (0, 1))
    return {
        "case": name,
        "frames": FRAMES,
        "trunk_fps": FRAMES / statistics.median(t for _, t in cpu),
        "sliding_fps": FRAMES / statistics.median(s for s, _ in cpu),
        "sliding_over_trunk": statistics.median(s / t for s, t in clock),
        "sliding_over_trunk_cpu": statistics.median(s / t for s, t in cpu),
        "difference": difference,
    }


def _time(work: Callable[[], object]) -> tuple[float, float]:
    begun, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - begun, time.process_time() - used


def show(rows: Iterable[dict[str, float | str]]) -> None:
    """Print a line for each case as it comes."""
    print(f"sliding over {FRAMES} frames in memory, T = {TIME}, stride 1, beside their trunk passes alone")
    print(f"{'frames per CPU second':<52}{'trunk':>8}{'sliding':>9}{'ratio':>8}{'by CPU':>8}{'difference':>12}")
    line = (
        "{case:<52}{trunk_fps:>8.1f}{sliding_fps:>9.1f}{sliding_over_trunk:>8.3f}{sliding_over_trunk_cpu:>8.3f}"
        "{difference:>12.1e}"
    )
    for row in rows:
        print(line.format(**row), flush=True)


if __name__ == "__main__":
    show(measure(case) for case in CASES)
