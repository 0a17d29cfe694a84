"""Peak memory doesn't grow with the data: ten times the clips through both stages, each a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from features.sequences import FrameSequence, Label
from tests.helpers import picture, write_store

ROOT = Path(__file__).parents[2]
FEW, MANY, LENGTH = 500, 5000, 8
GROWTH = 1.1
# a process in between, so that the memory of the test's own does not count as its child's
WATCH = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""

pytestmark = pytest.mark.soak


def peak(folder: Path, *command: str) -> int:
    """Largest resident memory of `python -m command`, run in a folder, in kB."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", WATCH, sys.executable, "-m", *command]
    return int(subprocess.run(line, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE).stdout)


@pytest.mark.timeout(1800)
def test_features(tmp_path: Path) -> None:
    import cv2

    images = [cv2.imencode(".jpg", picture(i))[1].tobytes() for i in range(LENGTH)]
    peaks = {}
    for clips in (FEW, MANY):
        root = tmp_path / str(clips)
        for i in range(1, clips + 1):
            folder = root / "data" / "Train" / "Train" / str(i)
            (folder / "imgs").mkdir(parents=True)
            for f, image in enumerate(images, 1):
                (folder / "imgs" / f"{f:03d}.jpg").write_bytes(image)
            (folder / "annotation.json").write_text(json.dumps([{"velocity": [i / clips, 0.0]}]))
        (root / "c.toml").write_text(
            '[data]\nlayout = "competition"\npath = "data"\ntarget = "velocity"\n'
            "[frames]\nwidth = 64\nheight = 48\n"
            '[backbone]\nname = "MobileNet"\nweights = "random"\narguments = { alpha = 0.25 }\n'
        )
        peaks[clips] = peak(root, "stage1_extract", "extract", "--config", "c.toml", "--store", "s.h5")
    print(peaks)
    assert peaks[MANY] < GROWTH * peaks[FEW]


@pytest.mark.timeout(1800)
def test_training(tmp_path: Path) -> None:
    rng, peaks = np.random.default_rng(0), {}
    for clips in (FEW, MANY):
        sequences = [
            FrameSequence(
                str(i), "train", LENGTH, 10.0, (64, 36), "d", (Label(LENGTH - 1, {"ego_speed": rng.uniform()}),)
            )
            for i in range(clips)
        ]
        root = tmp_path / str(clips)
        root.mkdir()
        maps = rng.random((clips * LENGTH, 4, 8, 80), np.float32).astype(np.float16)  # 205 MB for the many
        write_store(root / "s.h5", sequences, {"appearance": maps})
        (root / "c.toml").write_text(
            '[frames]\nwidth = 32\nheight = 18\n[backbone]\nname = "Tiny"\nweights = "random"\npreprocess = false\n'
            '[extract]\ndtype = "float32"\n[head]\nname = "flatten_lstm"\nunits = 8\n'
            "[train]\nvalidation_split = 0.2\nmemory_gb = 0.001\nepochs = 2\n"
        )
        peaks[clips] = peak(root, "stage2_temporal", "train", "--config", "c.toml", "--store", "s.h5", "--run", "r")
    print(peaks)
    assert peaks[MANY] < GROWTH * peaks[FEW]
