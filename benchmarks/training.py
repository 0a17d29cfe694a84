"""Training heads from a store compared with plain `model.fit` on arrays, and with training end to end.

The published model (configs/competition.toml) with random weights, on rendered clips: 365 to train on and 91 to
validate on, of 8 frames each. End to end is measured on one batch, whose frames are in memory, and scaled up.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import cv2
import keras
import numpy as np

from benchmarks.timing import Row, Timer, compare, timer
from features.config import Config, read_config
from features.store import Store
from features.streams import APPEARANCE
from stage1_extract.backbone.trunk import build_trunk
from stage1_extract.datasets import scan
from stage1_extract.extract import extract
from stage1_extract.sample import render_sample_set
from stage2_temporal.data.examples import load_examples
from stage2_temporal.data.task import read_task
from stage2_temporal.fused.fuse import build_fused_model
from stage2_temporal.heads import find_head
from stage2_temporal.train import train
from tests.stage2_helpers import build_model

CLIPS = {"train": 365, "validation": 91, "test": 0}
END_TO_END, VALIDATION, PLAIN = "end to end, epoch", "end to end, validation", "plain model.fit, epoch"
POOLED_LSTM = {"head.name": "pooled_lstm", "head.units": 256, "head.activation": "tanh", "head.dropout": 0.2}
DECODING, EXTRACTION, EXPERIMENT = "decoding all clips", "extracting all clips", "training for ten epochs, with report"


def measure(rounds: int = 3) -> list[Row]:
    """One row per step, and two for all steps together."""
    with tempfile.TemporaryDirectory() as folder:
        data, path = Path(folder, "data"), Path(folder, "store.h5")
        render_sample_set(data, seed=1, **CLIPS)
        config = read_config("configs/competition.toml").with_settings({
            "data.layout": "sample", "data.path": str(data), "data.fps": 10.0, "data.label_frame": None,
            "data.target": "ego_speed", "window.end": 0, "backbone.weights": "random", "train.validation_split": 0.0,
        })  # fmt: skip
        size = config.frames.width, config.frames.height

        def decode() -> None:
            for file in data.rglob("*.jpg"):
                cv2.resize(cv2.imread(str(file)), size, interpolation=cv2.INTER_CUBIC)

        def experiment() -> None:
            with Store(path) as store:
                train(config, store, read_task(config, store), Path(folder, "run"))

        once = {DECODING: decode, EXTRACTION: lambda: extract(config, path, scan(config.data)), EXPERIMENT: experiment}
        rows: list[Row] = [{"function": name, "seconds": timer(call)()[0]} for name, call in once.items()]
        timers = _epochs(config, path)
        references = {name: (PLAIN,) for name in timers if name.startswith("framebank")} | {PLAIN: (END_TO_END,)}
        rows += compare(timers, references, rounds)
    seconds = {row["function"]: float(row["seconds"]) for row in rows}
    end_to_end = seconds[DECODING] + config.train.epochs * (seconds[END_TO_END] + seconds[VALIDATION])
    return [
        *rows,
        {"function": "ten epochs end to end, with decoding", "seconds": end_to_end},
        {"function": "ten epochs in two stages", "seconds": seconds[EXTRACTION] + seconds[EXPERIMENT]},
    ]


def _epochs(config: Config, path: Path) -> dict[str, Timer]:
    """Timers of one epoch each."""
    X, y, _ = load_examples(path, config, splits=("train",))
    batch, size = config.train.batch, len(y)
    with Store(path) as store:
        top = store.top()
        maps = store.read(APPEARANCE, X.examples.rows.ravel()).astype(np.float32)
    maps = maps.reshape(size, -1, *maps.shape[1:])
    plain = build_model(maps.shape[1:], config.head, 1, top=top)
    trunk = build_trunk(config).model
    trunk.trainable = False
    end_to_end = build_fused_model(trunk, build_model(maps.shape[1:], config.head, 1, top=top))
    frames = np.random.default_rng(0).integers(0, 256, (batch, *end_to_end.input.shape[1:]), dtype=np.uint8)
    for model in (plain, end_to_end):
        model.compile(keras.optimizers.Adam(), loss="mean_squared_error")

    def framebank_epoch(epochs: int, changes: dict[str, object]) -> Timer:
        settings = config.with_settings({"train.epochs": epochs, **changes})

        def call() -> np.ndarray:  # CPU seconds are not measured
            history = find_head(settings.head.name).from_config(settings).fit(X, y).outcome_.history
            return np.array([statistics.median(epoch.seconds for epoch in history[1:]), np.nan])  # 1st builds the graph

        return call

    return {
        END_TO_END: timer(lambda: end_to_end.fit(frames, y[:batch], batch_size=batch, verbose=0), batch / size),
        VALIDATION: timer(
            lambda: end_to_end.evaluate(frames, y[:batch], batch_size=batch, verbose=0), batch / CLIPS["validation"]
        ),
        PLAIN: timer(lambda: plain.fit(maps, y, batch_size=batch, verbose=0)),
        "framebank, epoch": framebank_epoch(2, {}),
        "framebank in bfloat16, epoch": framebank_epoch(2, {"train.precision": "bfloat16"}),
        "framebank with pooled_lstm, epoch": framebank_epoch(4, POOLED_LSTM),
    }
