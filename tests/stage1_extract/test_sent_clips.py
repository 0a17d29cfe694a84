"""Clips that are sent to a worker, another process, read the same frames there."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from stage1_extract.datasets import scan
from stage1_extract.datasets.clip import Clip
from tests.dataset_helpers import data_config
from tests.helpers import picture, write_clips


def video(folder: Path) -> Path:
    path = folder / "drive.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10.0, (64, 48))
    for i in range(20):
        writer.write(picture(i))
    writer.release()
    path.with_suffix(".txt").write_text("\n".join(str(float(i)) for i in range(20)))
    return path


@pytest.mark.parametrize("kind", ["folder", "zip", "video"])
def test_a_sent_clip_has_the_same_frames(kind: str, tmp_path: Path) -> None:
    if kind == "video":
        config = data_config("video", video(tmp_path), segment=10)
    else:
        path = write_clips(tmp_path / "data", {"Train": 2})
        if kind == "zip":
            path = Path(shutil.make_archive(str(tmp_path / "data"), "zip", path))
        config = data_config("competition", path)
    clips = scan(config).clips
    assert len(clips) == 2
    for clip in reversed(clips):
        sent: Clip = pickle.loads(pickle.dumps(clip))
        assert sent.sequence == clip.sequence
        for start, stop in [(0, 4), (4, 8), (2, 3)]:
            frames = zip(sent.source.read(start, stop), clip.source.read(start, stop), strict=True)
            assert all(np.array_equal(a, b) for a, b in frames)


def test_clips_sent_one_after_another_share_their_archive(tmp_path: Path) -> None:
    path = Path(shutil.make_archive(str(tmp_path / "data"), "zip", write_clips(tmp_path / "data", {"Train": 2})))
    first, second = (pickle.loads(pickle.dumps(clip)) for clip in scan(data_config("competition", path)).clips)
    assert first.source.files[0]._archive is second.source.files[0]._archive


def test_an_archive_that_was_replaced_is_opened_again(tmp_path: Path) -> None:
    for frames in (3, 5):
        data = write_clips(tmp_path / str(frames), {"Train": 1}, frames=frames)
        path = Path(shutil.make_archive(str(tmp_path / "data"), "zip", data))
        (clip,) = scan(data_config("competition", path)).clips
        sent: Clip = pickle.loads(pickle.dumps(clip))
        assert len(list(sent.source.read(0, frames))) == frames
