"""Run folders as training writes them, made up within milliseconds, and stores in memory for their frames."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from features.config import Config
from features.errors import StoreError
from features.sequences import FrameSequence, Label
from features.tracks import Track
from stage2_temporal.evaluation.metrics import scores, verdict
from stage2_temporal.report import write_report
from stage2_temporal.runs.results import SplitMetrics

VELOCITY = ("vx", "vy")


def road(frame: int, speed: float, distance: float) -> bytes:
    """A thumbnail: a road with lane marks that pass by, and a car ahead."""
    picture = np.full((90, 160, 3), (178, 160, 140), np.uint8)
    picture[42:] = (82, 84, 86)
    for k in range(5):
        depth = 3 + 6 * k + 6 - (speed * frame * 0.1) % 6
        width, row = round(30 / depth), round(42 + 130 / depth)
        cv2.rectangle(picture, (80 - 150 // max(1, round(depth)) - width, row), (80 - 40 // round(depth), row + 2),
                      (230, 230, 230), -1)  # fmt: skip
    half, foot = 170 / distance, 42 + 130 / distance
    cv2.rectangle(
        picture, (round(90 - half), round(foot - 1.6 * half)), (round(90 + half), round(foot)), (40, 30, 150), -1
    )
    return bytes(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 80])[1])


class MemoryStore:
    """Sequences and thumbnails like a store's, without a file; it records which thumbnails were read."""

    def __init__(self, sequences: tuple[FrameSequence, ...]) -> None:
        self.sequences = sequences
        self.tracks: dict[tuple[str, int], Track] = {}
        self.first = np.cumsum([0, *(s.length for s in sequences)])[:-1]
        self.thumbnails_read: list[int] = []

    def index(self, sequence_id: str) -> int:
        found = [i for i, s in enumerate(self.sequences) if s.id == sequence_id]
        if not found:
            raise StoreError(f"no sequence {sequence_id!r}")
        return found[0]

    def thumbnail(self, row: int) -> bytes:
        self.thumbnails_read.append(row)
        index = int(np.searchsorted(self.first, row, side="right")) - 1
        targets = self.sequences[index].labels[0].targets
        return road(row - int(self.first[index]), targets.get("ego_speed", 14.0), 12 + 7 * (index % 6))

    @property
    def track_keys(self) -> list[str]:
        return [name for name, _ in self.tracks]

    def track(self, sequence: int, label: int) -> Track | None:
        return self.tracks.get((self.sequences[sequence].id, label))


def make_run(
    folder: Path,
    target: tuple[str, ...] = ("ego_speed",),
    *,
    noise: float = 0.35,
    shrink: float = 0.9,
    clips: int = 40,
    length: int = 8,
    dense: bool = False,
    **changes: Any,
) -> tuple[Path, MemoryStore]:
    """A run's folder as training writes it, with metrics computed from its predictions, and its store.

    Args:
        noise: standard deviation of the predictions' noise, in standard deviations of the target.
        shrink: how far predictions follow the target; 0 is a constant predictor.
        dense: one sequence per split with a label for every frame, instead of clips with one label each.
        changes: keys of metrics.json to override.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(target))
    mean, deviation = (np.array([18.0]), np.array([7.5])) if len(target) == 1 else (np.zeros(2), np.array([2.3, 0.3]))
    sequences, rows, splits = [], [], {}
    train: Any = None
    for split, count in (("train", 3 * clips), ("validation", clips), ("test", clips)):
        true = mean + deviation * rng.normal(size=(count, len(target)))
        if dense:
            true = mean + deviation * np.sin(np.arange(count) / 9)[:, None]
        train = true if train is None else train
        constant = train.mean(axis=0)
        position = np.column_stack([rng.uniform(8, 70, count), np.zeros(count)])
        predicted = constant + shrink * (true - constant + noise * deviation * rng.normal(size=true.shape))
        for i in range(count):
            name = split if dense else f"{split}/{i + 1}"
            last = i + length - 1 if dense else length - 1
            rows.append([split, name, i if dense else 0, last, last - length + 1, 1, length,
                         *np.ravel(list(zip(true[i], predicted[i], strict=True))),
                         position[i, 0] if target == VELOCITY else ""])  # fmt: skip
        labels = [
            Label(length - 1, dict(zip(target, map(float, t), strict=True)), box=(560, 340, 840, 610)) for t in true
        ]
        if dense:
            sequences.append(FrameSequence(split, split, count + length, 10.0, (1280, 720), "0" * 64, tuple(labels)))
        else:
            sequences += [
                FrameSequence(f"{split}/{i + 1}", split, length, 10.0, (1280, 720), "0" * 64, (v,))
                for i, v in enumerate(labels)
            ]
        model = scores(true, predicted, constant, target, position)
        baseline = scores(true, np.broadcast_to(constant, true.shape), constant, target, position)
        splits[split] = json.loads(SplitMetrics(examples=count, model=model, constant=baseline).model_dump_json())
    sentence, no_better = verdict("test", model)
    metrics = {
        "target": target, "unit": "m/s", "head": "pooled_lstm", "backbone": "EfficientNetLite0", "weights": "imagenet",
        "trained_backbone": True, "parameters": {"total": 5_020_673, "trainable": 1_739_265, "frozen": 3_281_408},
        "epochs": 12, "best_epoch": 10, "seconds": 41.2,
        "store": {"path": "stores/sample.h5", "fingerprint": "5f" * 32, "frames": 2560, "sequences": 320},
        "splits": splits, "verdict": sentence, "no_better_than_constant": no_better, **changes,
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "config.toml").write_text(Config().to_toml())
    with (folder / "history.csv").open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["epoch", "loss", "rmse", "val_loss", "val_rmse", "seconds"])
        for epoch in range(1, 13):
            error = deviation[0] * (0.3 + 0.9 * math.exp(-epoch / 4))
            later = 1.08 * error + 0.05 * abs(epoch - 10)
            writer.writerow([epoch, error**2 / deviation[0] ** 2, error, later**2 / deviation[0] ** 2, later, 3.4])
    write_predictions(folder, target, rows)
    return folder, MemoryStore(tuple(sequences))


def write_predictions(folder: Path, target: tuple[str, ...], rows: list[list[Any]]) -> None:
    """Write predictions.csv; see `read_predictions`."""
    head = ["split", "sequence", "label", "frame", "first", "stride", "length"]
    values = [f"{c}_{kind}" for c in target for kind in ("true", "pred")]
    with (folder / "predictions.csv").open("w", newline="") as f:
        csv.writer(f).writerows([[*head, *values, "distance"], *rows])


def read_predictions(folder: Path) -> list[list[str]]:
    """The rows of predictions.csv: split, sequence, label, frame, first, stride, length, values, distance."""
    with (folder / "predictions.csv").open(newline="") as f:
        return list(csv.reader(f))[1:]


def body(folder: Path, store: MemoryStore) -> str:
    """The report's HTML, without its script and the script's data."""
    text = write_report(folder, store).read_text(encoding="utf-8")
    return re.sub(r"<script.*?</script>", "", text, flags=re.S)


def script_data(folder: Path) -> Any:
    """The data that the report's script gets."""
    text = (folder / "report.html").read_text(encoding="utf-8")
    script = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, flags=re.S)
    assert script is not None
    return json.loads(script[1])


def row(page: str, split: str, predictor: str) -> str:
    """A predictor's first row for a split in the table of metrics."""
    group = next(part for part in page.split("<tbody")[1:] if f'rowspan="2">{split}<' in part)
    return re.search(rf'<tr class="{predictor}">(.*?)</tr>', group, flags=re.S)[1]  # type: ignore[index]
