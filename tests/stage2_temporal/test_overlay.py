"""Overlay videos as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from features.sequences import FrameSequence
from stage1_extract.datasets.video import Video
from stage2_temporal.sliding.overlay import open_overlay


@pytest.mark.parametrize("name", ["12:30:05.mp4", "http:drive", "drive 100%?.mp4"])
def test_overlay_may_have_any_relative_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with open_overlay(Path(name), FrameSequence("a", "test", 3, 12.0, (64, 48), "")) as write_frame:
        for i in range(3):
            write_frame(np.full((48, 64, 3), 40 * i, np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert Video(Path(name)).length == 3
