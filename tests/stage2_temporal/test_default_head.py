"""Which head replaces `auto`, by the target and by what the store holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.config import Config, DataConfig
from features.head_config import AutoConfig, GRUConfig
from features.sequences import FrameSequence, Label
from features.store import Store
from features.tracks import Track, track_keys
from stage2_temporal.data.task import read_task
from stage2_temporal.heads.default_head import resolve_default_head
from tests.helpers import write_store

BOX = (10.0, 10.0, 30.0, 30.0)


def store(path: Path, *, motion: bool, tracks: bool) -> Path:
    labels = (Label(7, {"vx": 1.0, "vy": 0.5}, BOX, (20.0, 1.0)), Label(7, {"ego_speed": 20.0, "yaw": 0.1}))
    clips = [FrameSequence(f"Train/{i}", "train", 8, 10.0, (64, 48), f"{i:064x}", labels) for i in range(2)]
    maps = {"appearance": np.zeros((16, 2, 2, 3), np.float16)}
    maps |= {"motion": np.zeros((16, 3, 4, 2), np.float16)} if motion else {}
    box = Track(np.full((8, 4), BOX), np.ones(8))
    stored_tracks = {name: box for c in clips for name in track_keys(c)} if tracks else None
    return write_store(path / "s.h5", clips, maps, tracks=stored_tracks)


@pytest.mark.parametrize(
    ("target", "motion", "tracks", "name", "settings"),
    [
        ("velocity", True, True, "box_ridge", {}),
        ("velocity+position", False, True, "box_ridge", {}),
        ("velocity", True, False, "pooled_lstm", {}),
        ("ego_speed", True, True, "fusion", {"streams": ("motion",)}),
        (("ego_speed", "yaw"), True, False, "fusion", {"streams": ("motion",)}),
        ("ego_speed", False, True, "ridge", {}),
    ],
)
def test_head_depends_on_target_and_store(
    target: str | tuple[str, ...], motion: bool, tracks: bool, name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    config = Config(data=DataConfig(target=target), head=AutoConfig())
    with Store(store(tmp_path, motion=motion, tracks=tracks)) as opened:
        head = resolve_default_head(config, opened, read_task(config, opened).examples).head
    # the map has no more than 2x2 cells
    changes: dict[str, Any] = {"difference": True, "grid": (2, 2)} if name == "ridge" else {}
    assert head == Config.model_validate({"head": {"name": name, **changes, **settings}}).head


def test_named_head_is_kept(tmp_path: Path) -> None:
    config = Config(data=DataConfig(target="velocity"), head=GRUConfig())
    with Store(store(tmp_path, motion=True, tracks=True)) as opened:
        assert resolve_default_head(config, opened, read_task(config, opened).examples) == config
