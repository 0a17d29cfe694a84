"""Runs of vehicle heads on a few rendered clips, without a network: only their tracks are stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from features.config import Config
from features.store import Store
from stage1_extract.datasets import scan
from stage1_extract.sample import render_sample_set
from stage1_extract.tracking.sequence_tracks import track_clips
from stage2_temporal.data.task import read_task
from stage2_temporal.train import train
from tests.helpers import write_store


def box_config(data: Path, length: int = 4) -> Config:
    """A box_ridge on windows of `length` frames of rendered clips."""
    return Config.model_validate(
        {
            "data": {"layout": "sample", "path": str(data), "target": "velocity", "fps": 10.0},
            "window": {"length": length},
            "head": {"name": "box_ridge"},
        }
    )


def train_on_rendered_boxes(folder: Path, clips: int = 12, length: int = 4) -> Path:
    """Render clips into `folder/data`, store their tracks in `s.h5`, and train and return the run `runs/boxes`."""
    config = box_config(folder / "data", length)
    render_sample_set(folder / "data", seed=3, train=clips, validation=0, test=2, workers=1)
    by_id = {clip.sequence.id: clip for clip in scan(config.data).clips}
    results = [tracks for _, tracks in track_clips(by_id, by_id, 1) if isinstance(tracks, dict)]
    tracks = {key: track for by_key in results for key, track in by_key.items()}
    maps = np.zeros((8 * len(by_id), 1, 1, 1), np.float32)
    write_store(folder / "s.h5", [c.sequence for c in by_id.values()], {"appearance": maps}, tracks=tracks)
    with Store(folder / "s.h5") as store:
        train(config, store, read_task(config, store), folder / "runs/boxes", report=False)
    return folder / "runs/boxes"
