"""Optical flow of known shifts, of rendered clips and of real frames."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from features._common.types import Floats
from stage1_extract import optical_flow
from stage1_extract.sample import render_sample_set

WIDTH, HEIGHT = optical_flow.SIZE


@pytest.fixture(autouse=True)
def one_thread() -> None:
    cv2.setNumThreads(1)


def texture(right: float = 0.0, down: float = 0.0, size: tuple[int, int] = (1280, 720)) -> NDArray[np.uint8]:
    """A random texture, shifted by px of the strip."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1] // 8, size[0] // 8), np.uint8)
    picture = cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC)
    band = size[1] * (optical_flow.BAND[1] - optical_flow.BAND[0])
    shift = np.array([[1, 0, right * size[0] / WIDTH], [0, 1, down * band / HEIGHT]])
    moved = cv2.warpAffine(picture, shift, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(cv2.cvtColor(moved, cv2.COLOR_GRAY2BGR), np.uint8)


def channel(entry: Floats, name: str) -> Floats:
    return entry[..., optical_flow.CHANNELS.index(name)]


def test_flow_equals_a_known_shift_in_every_cell() -> None:
    strips = [optical_flow.flow_strip(texture()), optical_flow.flow_strip(texture(2.0, 3.0))]
    (entry,) = optical_flow.flow_entries(strips).astype(np.float64)
    assert entry.shape == optical_flow.FLOW_INFO.shape
    np.testing.assert_allclose(channel(entry, "u0.5"), 2.0, atol=0.3)
    np.testing.assert_allclose(channel(entry, "v0.5"), 3.0, atol=0.3)
    assert (channel(entry, "v0.1") <= channel(entry, "v0.9")).all()
    assert (channel(entry, "texture") > 0.5).all()


def test_cells_without_texture_have_none() -> None:
    image = texture()
    image[:, :640] = 90
    (entry,) = optical_flow.flow_entries([optical_flow.flow_strip(image), optical_flow.flow_strip(image)])
    np.testing.assert_array_equal(channel(entry, "texture")[:, :3], 0)
    assert (channel(entry, "texture")[:, 5:] > 0.5).all()
    np.testing.assert_allclose(entry[..., :6], 0, atol=0.01)


def test_the_first_frame_has_the_entry_of_the_second() -> None:
    strips = [optical_flow.flow_strip(texture(i * 1.0)) for i in range(4)]
    entries, rest = optical_flow.flow_entries(strips, starts_sequence=True), optical_flow.flow_entries(strips)
    np.testing.assert_array_equal(entries[1:], rest)
    np.testing.assert_array_equal(entries[0], entries[1])
    np.testing.assert_array_equal(optical_flow.flow_entries(strips[2:]), rest[2:])  # wherever a range begins
    np.testing.assert_array_equal(
        optical_flow.flow_entries(strips[:1], starts_sequence=True), np.zeros((1, *optical_flow.FLOW_INFO.shape))
    )


def test_frames_may_have_any_size() -> None:
    for size in ((1226, 370), (320, 180), (64, 48), (3, 2)):
        assert optical_flow.flow_strip(cv2.resize(texture(), size)).shape == (HEIGHT, WIDTH)


def skill(x: Floats, y: Floats, train: NDArray[np.bool_], test: NDArray[np.bool_]) -> float:
    """R² of ridge regression."""
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 5, 25))).fit(x[train], y[train])
    return float(model.score(x[test], y[test]))


def test_real_flow_carries_speed(real: Path) -> None:
    """One drive at 11.5 m/s; leaving out frames gives two and three times the speed."""
    scene = real / "kitti_odometry"
    rows = list(csv.DictReader((scene / "labels.csv").read_text().splitlines()))
    strips = [optical_flow.flow_strip(cv2.imread(str(next(scene.rglob(row["frame"]))))) for row in rows]
    x, y, at = [], [], []
    for step in (1, 2, 3):
        for i in range(len(strips) - step):
            x.append(optical_flow.flow_entries([strips[i], strips[i + step]]).astype(np.float64).reshape(-1))
            y.append(float(rows[i + step]["ego_speed_mps"]) * step)
            at.append(i)
    block = np.array(at) // 10
    scores = [skill(np.array(x), np.array(y), np.abs(block - b) > 0, block == b) for b in range(5)]
    assert min(scores) > 0.9


@pytest.mark.soak
def test_linear_regression_on_flow_predicts_rendered_ego_speed(tmp_path: Path) -> None:
    render_sample_set(tmp_path / "set", seed=0, validation=0)
    x, y = [], []
    clips = [tmp_path / "set" / s / s / str(i) for s, n in (("Train", 200), ("Test", 60)) for i in range(1, n + 1)]
    for clip in clips:
        strips = [optical_flow.flow_strip(cv2.imread(str(clip / "imgs" / f"{i:03d}.jpg"))) for i in range(1, 9)]
        x.append(np.median(optical_flow.flow_entries(strips).astype(np.float64), axis=0).reshape(-1))
        y.append(json.loads((clip / "ego.json").read_text())["speed"])
    train = np.arange(260) < 200
    assert skill(np.array(x), np.array(y), train, ~train) >= 0.97
