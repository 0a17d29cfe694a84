"""Training heads from a store compared with plain `model.fit` on arrays, and with training end to end.

The published model (configs/competition.toml, random weights), with 365 clips to train on and 91 to validate on, of 8
frames each. End to end is measured on one batch of 38 clips, whose frames are in memory, and scaled up; extraction
and decoding are measured on a few rendered clips and scaled up. Everything else is measured in full.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import keras
import numpy as np

from benchmarks.timing import Function, Row, seconds
from features.config import Config, DataConfig, TrainConfig, read_config
from features.head_config import HeadConfig, PooledLSTMConfig
from features.sequences import FrameSequence, Label
from features.store import Header, Store
from features.store_writer import StreamContent, assemble_store
from features.streams import APPEARANCE
from stage1_extract.backbone.trunk import Trunk, build_trunk
from stage1_extract.datasets import scan
from stage1_extract.extract import extract
from stage1_extract.sample import render_sample_set
from stage2_temporal.data.batches import Batches
from stage2_temporal.data.examples import StoreSource
from stage2_temporal.data.task import read_task
from stage2_temporal.fused.fuse import build_fused_model
from stage2_temporal.heads import build_model
from stage2_temporal.train import train
from stage2_temporal.training.loop import fit_model

TRAIN_CLIPS, VALIDATION_CLIPS, LENGTH = 365, 91, 8
FEW_CLIPS, MANY_CLIPS = 2, 38  # extraction is timed on both; the difference is its cost per clip
Figures = dict[str, float]


def measure(rounds: int = 3) -> list[Row]:
    """Seconds, and ratios (named a/b); medians over rounds in which all ways of training take turns."""
    config = read_config("configs/competition.toml")
    config = config.model_copy(update={"backbone": config.backbone.model_copy(update={"weights": "random"})})
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        trunk = build_trunk(config)
        _write_store(root / "store.h5", trunk)
        with Store(root / "store.h5") as store:
            figures = _epochs(store, trunk, config, rounds)
        figures |= _experiments(root, config, figures)
    return [{"figure": name, "seconds, or ratio": value} for name, value in figures.items()]


def _wall_seconds(function: Function) -> float:
    return float(seconds(function)[0])


def _write_store(path: Path, trunk: Trunk) -> None:
    """Write random maps in half precision, shaped like those at the published cut."""

    def maps() -> Iterator[np.ndarray]:
        rng = np.random.default_rng(0)
        for _ in range(TRAIN_CLIPS + VALIDATION_CLIPS):
            yield rng.standard_normal((LENGTH, *trunk.stream.shape), np.float32).astype(np.float16)

    rng = np.random.default_rng(1)
    sequences = [
        FrameSequence(
            f"Train/{i}", "train" if i < TRAIN_CLIPS else "validation", LENGTH, 20.0, (1280, 720), "d",
            (Label(39, {"vx": rng.normal(0.5, 2.3), "vy": rng.normal(-0.1, 0.3)}),),
        )
        for i in range(TRAIN_CLIPS + VALIDATION_CLIPS)
    ]  # fmt: skip
    header = Header(trunk.recipe, trunk={"parameters": trunk.model.count_params()})
    assemble_store(path, header, sequences, {APPEARANCE: StreamContent(trunk.stream, batches=maps())}, trunk.top())


def _epochs(store: Store, trunk: Trunk, config: Config, rounds: int) -> Figures:
    """One epoch in each way."""
    examples = read_task(config.model_copy(update={"train": TrainConfig()}), store).examples
    examples = examples[examples.split == "train"]
    rows, targets, batch = examples.rows, examples.targets, config.train.batch
    shape, top = (LENGTH, *trunk.stream.shape), store.top()

    def framebank_epoch(
        head: HeadConfig, epochs: int, precision: str = "float32", vectors: np.ndarray | None = None
    ) -> Callable[[], float]:
        read = partial(StoreSource(store.path, rows).windows, APPEARANCE) if vectors is None else vectors.__getitem__
        entries = rows if vectors is None else np.arange(len(rows))
        with_top = top if head.name == config.head.name else None
        model = build_model(read(entries[:1]).shape[1:], head, 2, top=with_top)
        options = config.train.model_copy(update={"epochs": epochs, "precision": precision})

        def median_epoch() -> float:
            result = fit_model(model, Batches(read, entries, targets, batch, seed=0), None, options)
            return statistics.median(epoch.seconds for epoch in result.history[1:])  # the first one builds the graph

        return median_epoch

    def plain_fit(model: keras.Model, x: np.ndarray, y: np.ndarray) -> Callable[[], float]:
        model.compile(keras.optimizers.Adam(), loss="mean_squared_error", metrics=["root_mean_squared_error"])
        model.fit(x[:batch], y[:batch], batch_size=batch, verbose=0)  # builds the graph
        return lambda: _wall_seconds(lambda: model.fit(x, y, batch_size=batch, verbose=0))

    def evaluate() -> float:
        return _wall_seconds(lambda: end_to_end.evaluate(frames, targets[:batch], batch_size=batch, verbose=0))

    trunk.model.trainable = False
    end_to_end = build_fused_model(trunk.model, build_model(shape, config.head, 2, top=top))
    frames = np.random.default_rng(0).integers(0, 256, (batch, *end_to_end.input.shape[1:]), dtype=np.uint8)
    maps = store.read(APPEARANCE, rows.ravel()).astype(np.float32).reshape(len(rows), *shape)
    pooled_head = PooledLSTMConfig(units=256)
    ways = {
        "end_to_end_step": plain_fit(end_to_end, frames, targets[:batch]),
        "end_to_end_validation_step": evaluate,
        "plain_epoch": plain_fit(build_model(shape, config.head, 2, top=top), maps, targets),
        "epoch": framebank_epoch(config.head, 2),
        "epoch_bfloat16": framebank_epoch(config.head, 2, "bfloat16"),
        "pooled_epoch_on_maps": framebank_epoch(pooled_head, 4),
        "pooled_epoch_on_vectors": framebank_epoch(pooled_head, 6, vectors=maps.mean(axis=(2, 3), keepdims=True)),
    }
    evaluate()  # builds the graph
    times: list[Figures] = [{name: way() for name, way in ways.items()} for _ in range(rounds)]
    for row in times:
        row["end_to_end_epoch"] = row["end_to_end_step"] * len(rows) / batch
        row["end_to_end_validation"] = row["end_to_end_validation_step"] * VALIDATION_CLIPS / batch
    figures = {name: statistics.median(row[name] for row in times) for name in times[0]}
    for name in ("epoch", "epoch_bfloat16", "pooled_epoch_on_maps", "pooled_epoch_on_vectors"):
        for reference in ("end_to_end_epoch", "plain_epoch"):
            figures[f"{reference}/{name}"] = statistics.median(row[reference] / row[name] for row in times)
    return figures


def _experiments(root: Path, config: Config, figures: Figures) -> Figures:
    """From JPEGs to ten epochs: end to end, scaled up from its parts, and in two stages."""
    clips = TRAIN_CLIPS + VALIDATION_CLIPS
    render_sample_set(root / "data", seed=1, train=MANY_CLIPS, validation=0, test=0, progress=False)
    sample = config.model_copy(update={"data": DataConfig(layout="sample", path=str(root / "data"), fps=10.0)})
    catalogue = scan(sample.data)
    files = sorted((root / "data").rglob("*.jpg"))
    size = config.frames.width, config.frames.height

    def extraction(count: int) -> float:
        part = replace(catalogue, clips=catalogue.clips[:count])
        return _wall_seconds(lambda: extract(sample, root / f"{count}.h5", part))

    def decode() -> None:
        for file in files:
            cv2.resize(cv2.imread(str(file)), size, interpolation=cv2.INTER_CUBIC)

    few = extraction(FEW_CLIPS)
    features = few + (extraction(MANY_CLIPS) - few) / (MANY_CLIPS - FEW_CLIPS) * (clips - FEW_CLIPS)
    config = config.model_copy(update={"train": config.train.model_copy(update={"validation_split": 0.0})})
    with Store(root / "store.h5") as store:
        experiment = _wall_seconds(lambda: train(config, store, read_task(config, store), root / "run"))
    end_to_end = config.train.epochs * (figures["end_to_end_epoch"] + figures["end_to_end_validation"])
    notebook = _wall_seconds(decode) * clips / MANY_CLIPS + end_to_end
    return {
        "features": features,
        "experiment": experiment,
        "end_to_end_experiment": end_to_end,
        "notebook": notebook,
        "notebook/(features + experiment)": notebook / (features + experiment),
        "end_to_end_experiment/experiment": end_to_end / experiment,
    }
