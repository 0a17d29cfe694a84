"""Semi-real clips: photographs whose road is moved at a known speed, by a tool beside the checkout."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from features._common.types import Image
from features.sequences import Camera
from tests.helpers import REAL

SEMI_REAL_CAMERA = Camera(714.15, 714.15, 675.58, 376.26, 1012.7 / 714.15)  # the tool's, whose horizon is 345.7


def semi_real_clips(folder: Path, count: int) -> Iterator[tuple[list[Image], float]]:
    """The grey frames and the speed in m/s of each clip, at 10 frames per second."""
    tool, stills = REAL.parent / "tools" / "semireal.py", REAL / "stills"
    if not tool.is_file():
        pytest.skip("no ../shared/tools beside this checkout")
    counts = ["--train", str(count), "--validation", "0", "--test", "0"]
    command = [sys.executable, str(tool), str(stills), str(stills / "annotation.json"), str(folder), *counts]
    subprocess.run(command, check=True, capture_output=True)
    for clip in sorted((folder / "Train" / "Train").iterdir()):
        frames = [np.asarray(cv2.imread(str(p), 0), np.uint8) for p in sorted((clip / "imgs").iterdir())]
        yield frames, float(json.loads((clip / "ego.json").read_text())["speed"])
