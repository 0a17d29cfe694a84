"""Runs trained on image files with a tiny backbone, and videos, for tests of predicting, fusing and fine-tuning."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from features._common.types import Image
from features.config import Config
from features.store import Store
from stage1_extract.datasets import scan
from stage1_extract.extract import extract
from stage2_temporal.data.task import read_task
from stage2_temporal.train import train
from tests.helpers import write_clips

MOBILENET = {"name": "MobileNet", "weights": "random", "arguments": {"alpha": 0.25}}
WITH_TOP = MOBILENET | {"unfreeze": 3}  # 83 layers in the trunk, 3 in the top
EARLY_CUT = MOBILENET | {"cut": "conv_pw_3_relu", "top": False}  # 22 layers in the trunk, so everything is fast


def image_config(clips: Path, /, **sections: Mapping[str, Any]) -> Config:
    """A config for 64x48 px frames of the data set at `clips`: two epochs of a small pooled LSTM behind `EARLY_CUT`.

    Args:
        clips: the data set's folder.
        sections: changes to these sections; one with a name replaces its section.
    """
    config: dict[str, Mapping[str, Any]] = {
        "data": {"layout": "competition", "path": str(clips), "target": "velocity"},
        "frames": {"width": 64, "height": 48},
        "backbone": EARLY_CUT,
        "extract": {"dtype": "float32"},
        "window": {"length": 4},
        "head": {"units": 4, "dense": 4, "dropout": 0.5},
        "train": {"epochs": 2, "batch": 4},
    }
    for name, changes in sections.items():
        config[name] = changes if "name" in changes else {**config[name], **changes}
    return Config.model_validate(config)


def train_on_images(root: Path, counts: Mapping[str, int], **sections: Mapping[str, Any]) -> Path:
    """Write clips to `root/clips`, extract them to `root/s.h5` and train `root/runs/r`; return the run's folder."""
    config = image_config(write_clips(root / "clips", counts), **sections)
    extract(config, root / "s.h5", scan(config.data))
    with Store(root / "s.h5") as store:
        train(config, store, read_task(config, store), root / "runs" / "r", report=False)
    return root / "runs" / "r"


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def write_video(path: Path, frames: list[Image], codec: str = "MJPG", fps: float = 10.0) -> Path:
    """Encode frames of one size as a video."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), fps, frames[0].shape[1::-1])
    assert writer.isOpened()
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


def read_video(path: Path) -> list[Image]:
    """Decode all frames of a video."""
    capture, frames = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG), []
    while (image := capture.read()[1]) is not None:
        frames.append(np.asarray(image, np.uint8))
    return frames
