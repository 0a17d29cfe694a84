"""What a store saves: epochs of heads from it beside plain `model.fit` on arrays and beside training end to end.

    python -m benchmarks.training

The published model (configs/competition.toml, random weights): 365 clips to train on and 91 held out, 8 frames each.
End to end is measured on one batch of 38 clips and scaled to the 365, its frames lying in memory; extraction and
decoding are measured on a few rendered clips and scaled. All else is measured whole.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cv2
import numpy as np

from features._common.quiet_imports import quiet_imports
from features.config import Config, DataConfig, TrainConfig, read_config
from features.head_config import HeadConfig, PooledLSTMConfig
from features.sequences import FrameSequence, Label
from features.store import Header, Store, StreamInfo
from features.store_writer import StreamContent, assemble_store

with quiet_imports():
    import keras

    from stage1_extract.backbone.trunk import Trunk, build_trunk
    from stage1_extract.datasets import scan
    from stage1_extract.extract import extract
    from stage1_extract.sample import render_sample_set
    from stage2_temporal import train
    from stage2_temporal.data.batches import Batches, FrameReader
    from stage2_temporal.data.task import read_task
    from stage2_temporal.fused import fuse
    from stage2_temporal.heads import build_model
    from stage2_temporal.training import loop

CLIPS, HELD_OUT, LENGTH = 365, 91, 8
FEW, SOME = 2, 38  # clips that extraction is timed on: what it costs by the clip is the difference
Numbers = dict[str, float]


def measure(rounds: int = 3) -> Numbers:
    """Seconds and ratios, medians over alternating rounds of one process."""
    config = read_config("configs/competition.toml")
    config = config.model_copy(update={"backbone": config.backbone.model_copy(update={"weights": "random"})})
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        trunk = build_trunk(config)
        write_store(root / "store.h5", trunk)
        with Store(root / "store.h5") as store:
            found = epochs(store, trunk, config, rounds)
        found |= whole(root, config, found)
    return found


def write_store(path: Path, trunk: Trunk) -> None:
    """Random maps in half precision as the published cut has them, and their averages as a second stream."""

    def maps() -> Iterator[np.ndarray]:
        rng = np.random.default_rng(0)
        for _ in range(CLIPS + HELD_OUT):
            yield rng.standard_normal((LENGTH, *trunk.stream.shape), np.float32).astype(np.float16)

    rng = np.random.default_rng(1)
    sequences = [
        FrameSequence(
            f"Train/{i}", "train" if i < CLIPS else "validation", LENGTH, 20.0, (1280, 720), "d",
            (Label(39, {"vx": rng.normal(0.5, 2.3), "vy": rng.normal(-0.1, 0.3)}),),
        )
        for i in range(CLIPS + HELD_OUT)
    ]  # fmt: skip
    pooled = StreamInfo((1, 1, trunk.stream.shape[-1]), "float16", {"mean": "appearance"})
    streams = {
        "appearance": StreamContent(trunk.stream, batches=maps()),
        "pooled": StreamContent(pooled, batches=(m.mean(axis=(1, 2), keepdims=True, dtype=np.float32) for m in maps())),
    }
    header = Header(trunk.recipe, trunk={"parameters": trunk.model.count_params()})
    assemble_store(path, header, sequences, streams, trunk.top())


def epochs(store: Store, trunk: Trunk, config: Config, rounds: int) -> Numbers:
    """An epoch each way, in turn."""
    wanted = read_task(config.model_copy(update={"train": TrainConfig()}), store).examples
    chosen = wanted.split == "train"
    rows, targets = wanted.rows[chosen], wanted.targets[chosen]
    shape, top = (LENGTH, *trunk.stream.shape), store.top()
    pooled = PooledLSTMConfig(units=256)

    def ours(head: HeadConfig, stream: str, count: int, precision: str = "float32") -> Callable[[], float]:
        with_top = top if head.name == config.head.name else None
        model = build_model((LENGTH, *store.streams[stream].shape), head, 2, top=with_top)
        batches = Batches(FrameReader(store, rows, 4.0, stream), rows, targets, config.train.batch, seed=0)
        asked = config.train.model_copy(update={"epochs": count, "precision": precision})
        # the first epoch traces
        return lambda: statistics.median(e.seconds for e in loop.fit_model(model, batches, None, asked).history[1:])

    plain = build_model(shape, config.head, 2, top=top)
    plain.compile(keras.optimizers.Adam(), loss="mean_squared_error", metrics=["root_mean_squared_error"])
    arrays = store.read("appearance", rows.ravel()).astype(np.float32).reshape(len(rows), *shape), targets
    whole_model = end_to_end(trunk, build_model(shape, config.head, 2, top=top))
    batch = config.train.batch
    frames = np.random.default_rng(0).integers(0, 256, (batch, *whole_model.input.shape[1:]), dtype=np.uint8)

    def fit(model: keras.Model, x: np.ndarray, y: np.ndarray) -> Callable[[], float]:
        model.fit(x[:batch], y[:batch], batch_size=batch, verbose=0)  # traces
        return lambda: seconds(lambda: model.fit(x, y, batch_size=batch, verbose=0))

    whole_model.evaluate(frames, targets[:batch], batch_size=batch, verbose=0)
    ways = {
        "end_to_end_step": fit(whole_model, frames, targets[:batch]),
        "end_to_end_validation_step": lambda: seconds(
            lambda: whole_model.evaluate(frames, targets[:batch], batch_size=batch, verbose=0)
        ),
        "plain_epoch": fit(plain, *arrays),
        "epoch": ours(config.head, "appearance", 2),
        "epoch_bfloat16": ours(config.head, "appearance", 2, "bfloat16"),
        "pooled_epoch_on_maps": ours(pooled, "appearance", 4),
        "pooled_epoch_on_vectors": ours(pooled, "pooled", 6),
    }
    times: list[Numbers] = [{name: way() for name, way in ways.items()} for _ in range(rounds)]
    for row in times:
        row["end_to_end_epoch"] = row["end_to_end_step"] * len(rows) / batch
        row["end_to_end_validation"] = row["end_to_end_validation_step"] * HELD_OUT / batch
    found = {name: statistics.median(row[name] for row in times) for name in times[0]}
    for name in ("epoch", "epoch_bfloat16", "pooled_epoch_on_maps", "pooled_epoch_on_vectors"):
        for other in ("end_to_end_epoch", "plain_epoch"):
            found[f"{other}/{name}"] = statistics.median(row[other] / row[name] for row in times)
    return found


def end_to_end(trunk: Trunk, stage_two: keras.Model) -> keras.Model:
    """Frames through the whole network, the same layers trainable as in stage two."""
    trunk.model.trainable = False
    model = fuse.build_fused_model(trunk.model, stage_two)
    model.compile(keras.optimizers.Adam(), loss="mean_squared_error", metrics=["root_mean_squared_error"])
    return model


def whole(root: Path, config: Config, found: Numbers) -> Numbers:
    """From JPEGs to ten epochs: the notebook's way, scaled from its parts, beside ours."""
    clips = CLIPS + HELD_OUT
    render_sample_set(root / "data", seed=1, train=SOME, validation=0, test=0, progress=False)
    sample = config.model_copy(update={"data": DataConfig(layout="sample", path=str(root / "data"), fps=10.0)})
    catalogue = scan(sample.data)
    files = sorted((root / "data").rglob("*.jpg"))

    def load() -> np.ndarray:
        size = config.frames.width, config.frames.height
        return np.stack([cv2.resize(cv2.imread(str(f)), size, interpolation=cv2.INTER_CUBIC) for f in files])

    extraction = {
        n: seconds(
            lambda n=n: extract(sample, root / f"{n}.h5", replace(catalogue, clips=catalogue.clips[:n]))
        )
        for n in (FEW, SOME)
    }  # fmt: skip
    by_clip = (extraction[SOME] - extraction[FEW]) / (SOME - FEW)
    features = extraction[FEW] + by_clip * (clips - FEW)
    chosen = config.model_copy(update={"train": config.train.model_copy(update={"validation_split": 0.0})})
    with Store(root / "store.h5") as store:
        experiment = seconds(lambda: train.train(chosen, store, read_task(chosen, store), root / "run"))
    ten = config.train.epochs * (found["end_to_end_epoch"] + found["end_to_end_validation"])
    notebook = seconds(load) * clips / SOME + ten
    return {
        "features": features,
        "experiment": experiment,
        "end_to_end_experiment": ten,
        "notebook": notebook,
        "notebook/(features + experiment)": notebook / (features + experiment),
        "end_to_end_experiment/experiment": ten / experiment,
    }


def seconds(work: Callable[[], Any]) -> float:
    """Wall time."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def show(found: Numbers) -> None:
    """The figures, one a line: seconds, then ratios."""
    for name, value in found.items():
        print(f"{name:<45}{value:>10.1f}" if "/" in name else f"{name:<45}{value:>10.3f} s")


if __name__ == "__main__":
    results = measure()
    show(results)
    json.dump(results, sys.stdout, indent=1)
