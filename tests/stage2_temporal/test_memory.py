"""Peak memory does not grow with the data, through both stages, nor with the number of trainings in one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from features.sequences import FrameSequence, Label
from tests.helpers import ROOT, picture, write_store

FEW, MANY, LENGTH = 500, 5000, 8
MAX_GROWTH = 1.1
# prints the peak of its child's resident memory in kB; a process of its own, so that the tests' memory does not count
MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
# trains several times on the same store in one process, as a sweep's worker does
TRAIN = """
import sys
from pathlib import Path
from features.config import read_config
from features.store import Store
from stage2_temporal.data.task import read_task
from stage2_temporal.train import train
config = read_config("c.toml")
for i in range(int(sys.argv[1])):
    with Store(Path("s.h5")) as store:
        train(config, store, read_task(config, store), Path(f"r{i}"), report=False)
"""

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]


def peak_memory(folder: Path, *arguments: str) -> int:
    """Largest resident memory of `python ARGUMENTS`, run in a folder, in kB."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", MEASURE, sys.executable, *arguments]
    return int(subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE).stdout)


def make_run_folder(folder: Path, clips: int, memory_gb: float) -> None:
    """A store of maps (205 MB for 5000 clips) and a config that trains on it."""
    rng = np.random.default_rng(0)
    labels = [(Label(LENGTH - 1, {"ego_speed": rng.uniform()}),) for _ in range(clips)]
    sequences = [FrameSequence(str(i), "train", LENGTH, 10.0, (64, 36), "d", label) for i, label in enumerate(labels)]
    maps = rng.random((clips * LENGTH, 4, 8, 80), np.float32).astype(np.float16)
    folder.mkdir()
    write_store(folder / "s.h5", sequences, {"appearance": maps})
    (folder / "c.toml").write_text(
        '[frames]\nwidth = 32\nheight = 18\n[backbone]\nname = "Tiny"\nweights = "random"\npreprocess = false\n'
        '[extract]\ndtype = "float32"\n[head]\nname = "flatten_lstm"\nunits = 8\n'
        f"[train]\nvalidation_split = 0.2\nmemory_gb = {memory_gb}\nepochs = 2\n"
    )


def test_extraction_of_ten_times_the_clips_takes_no_more_memory(tmp_path: Path) -> None:
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
        peaks[clips] = peak_memory(root, "-m", "stage1_extract", "extract", "--config", "c.toml", "--store", "s.h5")
    print(peaks)
    assert peaks[MANY] < MAX_GROWTH * peaks[FEW]


def test_streamed_training_on_ten_times_the_clips_takes_no_more_memory(tmp_path: Path) -> None:
    peaks = {}
    for clips in (FEW, MANY):
        make_run_folder(tmp_path / str(clips), clips, memory_gb=0.001)
        peaks[clips] = peak_memory(tmp_path / str(clips), "-c", TRAIN, "1")
    print(peaks)
    assert peaks[MANY] < MAX_GROWTH * peaks[FEW]


def test_many_trainings_in_one_process_take_no_more_memory_than_two(tmp_path: Path) -> None:
    make_run_folder(tmp_path / "many", MANY, memory_gb=4.0)
    peaks = {}
    for trainings in (2, 6):
        for run in (tmp_path / "many").glob("r*"):
            run.rename(tmp_path / f"{trainings}{run.name}")
        peaks[trainings] = peak_memory(tmp_path / "many", "-c", TRAIN, str(trainings))
    print(peaks)
    assert peaks[6] < MAX_GROWTH * peaks[2]  # each holds 205 MB of maps
