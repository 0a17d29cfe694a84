"""Hiding the cell that a prediction depends on changes it; the report shows where it is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from features.sequences import FrameSequence, Label
from features.store import Store
from framebank.cli import main
from stage2_temporal.data.task import read_task
from stage2_temporal.runs.results import OCCLUSION, read_results
from stage2_temporal.train import explain, train
from tests.helpers import write_store
from tests.stage2_helpers import CLIP_LENGTH, MAP_SHAPE, train_config

CELL = (1, 2)  # the only one whose map tells the speed


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store whose maps tell the speed in one cell, in all its channels, and a ridge regression on all cells."""
    rng, folder = np.random.default_rng(2), tmp_path_factory.mktemp("occlusion")
    splits = ["train"] * 60 + ["validation"] * 10 + ["test"] * 20
    speeds = rng.uniform(5, 30, len(splits))
    maps = rng.normal(0, 1, (len(splits), CLIP_LENGTH, *MAP_SHAPE))
    maps[:, :, *CELL, :] += speeds[:, None, None]
    sequences = [
        FrameSequence(f"c{i}", split, CLIP_LENGTH, 10.0, (64, 36), f"d{i}", (Label(5, {"ego_speed": speeds[i]}),))
        for i, split in enumerate(splits)
    ]
    store = write_store(folder / "s.h5", sequences, {"appearance": maps.reshape(-1, *MAP_SHAPE).astype(np.float16)})
    config = train_config({"name": "ridge", "grid": (3, 4)})
    with Store(store) as opened:
        train(config, opened, read_task(config, opened), folder / "r")
    return store, folder / "r"


def test_the_cell_that_tells_the_speed_counts_most(run: tuple[Path, Path]) -> None:
    store, folder = run
    with Store(store) as opened:
        explain(folder, opened)
    occlusion = read_results(folder).occlusion
    assert occlusion is not None and occlusion.examples == 20 and len(occlusion.clips) == 8
    mean = np.array(occlusion.mean)
    assert mean.shape == (3, 4)
    assert np.unravel_index(mean.argmax(), mean.shape) == CELL
    assert mean[CELL] > 0.5 and np.delete(mean.ravel(), mean.argmax()).max() < 0.3 * mean[CELL]


def test_report_shows_it_when_asked(run: tuple[Path, Path]) -> None:
    store, folder = run
    (folder / OCCLUSION).unlink(missing_ok=True)
    command = ["report", "--run", str(folder), "--store", str(store)]
    assert main(command) == 0
    assert "Where the model looks" not in (folder / "report.html").read_text()
    assert main([*command, "--occlusion"]) == 0
    page = (folder / "report.html").read_text()
    drawings = re.findall(r'<svg class="over look".*?</svg>', page, re.DOTALL)
    assert len(drawings) == 9  # the average, and the worst clips
    assert "row 2 of 3 from the top, column 3 of 4" in drawings[0]
    assert 'x="2" y="1" width="1" height="1" fill-opacity="0.75"' in drawings[0]
    largest = max(map(max, json.loads((folder / OCCLUSION).read_text())["mean"]))
    assert f"on average over 20 examples: {largest:.3f}" in page


def test_time_is_bounded(run: tuple[Path, Path]) -> None:
    store, folder = run
    with Store(store) as opened:
        explain(folder, opened, seconds=0.0)
    occlusion = read_results(folder).occlusion
    assert occlusion is not None and occlusion.examples == 16 and len(occlusion.clips) == 8


def test_head_without_maps_is_refused(
    run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    sequences = [
        FrameSequence(f"c{i}", "train", 3, 10.0, (64, 36), f"d{i}", (Label(2, {"ego_speed": float(i)}),))
        for i in range(20)
    ]
    store = write_store(tmp_path / "s.h5", sequences, {"appearance": rng.normal(size=(60, 5)).astype(np.float16)})
    config = train_config({"name": "ridge"}, window={"length": 3})
    with Store(store) as opened:
        train(config, opened, read_task(config, opened), tmp_path / "r", report=False)
    assert main(["report", "--run", str(tmp_path / "r"), "--store", str(store), "--occlusion"]) == 2
    assert "no cells to hide" in capsys.readouterr().err
