"""Crops: which vehicles become sequences, which pixels the network sees of them, and what the store keeps."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

from features._common.types import Image
from features.config import Config, FramesConfig
from features.errors import DataError
from features.sequences import FrameSequence, Label
from features.store import Store
from features.tracks import tracked_vehicles
from stage1_extract.backbone.trunk import build_trunk
from stage1_extract.datasets import scan
from stage1_extract.datasets.clip import Catalogue, Clip
from stage1_extract.datasets.vehicle_crops import MAX_FRAMES, crop_vehicles
from stage1_extract.engines.engine import Engine
from stage1_extract.extract import extract
from stage1_extract.frame_loader import resize_frame
from tests.dataset_helpers import data_config
from tests.extraction_helpers import extraction_config
from tests.helpers import picture

SIZE = (256, 192)  # decoding may shrink such frames four times for a network's input of 32x32 px
NEAR, FAR = (100.0, 60.0, 180.0, 140.0), (236.0, 100.0, 266.0, 130.0)  # the far one is cut by the frame's right edge


class NumberedFrames:
    """Frames of one grey, which is their number."""

    parallel = True

    def read(self, start: int, stop: int, min_size: tuple[int, int] | None = None) -> Iterator[Image]:
        assert min_size is None
        for i in range(start, stop):
            yield np.full((8, 8, 3), i, np.uint8)


def clip(labels: tuple[Label, ...], length: int = 8) -> Clip:
    return Clip(FrameSequence("Train/7", "train", length, 10.0, SIZE, "abc", labels), NumberedFrames())


def crops(labels: tuple[Label, ...], length: int = 8, scale: float = 1.25) -> tuple[Clip, ...]:
    return crop_vehicles(Catalogue((clip(labels, length),), ("a fault",)), scale).clips


def label(frame: int, box: tuple[float, float, float, float] | None, vx: float = 1.0) -> Label:
    return Label(frame, {"vx": vx}, box, (20.0, 1.0))


def test_each_vehicle_is_a_sequence_and_the_others_keep_their_boxes_alone() -> None:
    labels = label(7, NEAR, 1.0), label(7, None), Label(7, {"ego_speed": 9.0}), label(7, FAR, 2.0)
    near, far = crops(labels)
    assert [c.sequence.id for c in (near, far)] == ["Train/7/1", "Train/7/4"]
    assert near.sequence.region == (90, 50, 190, 150)
    width, height = (far.sequence.region[i + 2] - far.sequence.region[i] for i in (0, 1))  # type: ignore[index]
    assert (width, height) == (38, 38) and far.sequence.region[2] > SIZE[0]  # type: ignore[index]
    for sequence, own in ((near.sequence, 0), (far.sequence, 3)):
        assert (sequence.split, sequence.length, sequence.fps, sequence.size) == ("train", 8, 10.0, SIZE)
        assert [x.box for x in sequence.labels] == [NEAR, None, None, FAR]
        assert sequence.labels[own] == labels[own]
        assert all(not x.targets and x.position is None for i, x in enumerate(sequence.labels) if i != own)
        assert len(tracked_vehicles(sequence)) == 2


@pytest.mark.parametrize(("frame", "box"), [(7, None), (7, (math.nan, 1.0, 9.0, 9.0)), (8, NEAR), (-1, NEAR)])
def test_labels_without_a_box_on_one_of_the_frames_get_no_crop(
    frame: int, box: tuple[float, float, float, float] | None
) -> None:
    assert crops((label(frame, box),)) == ()


def test_faults_of_the_data_set_are_kept() -> None:
    assert crop_vehicles(Catalogue((), ("a fault",)), 1.25).faults == ("a fault",)


def test_a_crop_of_a_long_sequence_ends_at_the_label() -> None:
    labels = label(100, NEAR), label(150, FAR), label(20, NEAR), label(30, None)
    first, second, early = crops(labels, length=200)
    assert [c.sequence.length for c in (first, second, early)] == [MAX_FRAMES, MAX_FRAMES, 21]
    assert [x.frame for x in first.sequence.labels] == [63, 113, -17, -7]
    assert [int(image[0, 0, 0]) for image in first.source.read(0, 64)] == list(range(37, 101))
    assert [int(image[0, 0, 0]) for image in early.source.read(19, 21, (1, 1))] == [19, 20]
    # only the boxes on the crop's frames are tracked
    assert [v.known_boxes for v in tracked_vehicles(first.sequence)] == [((63, NEAR),)]
    (whole,) = crops((label(20, NEAR),), length=MAX_FRAMES)
    assert whole.sequence.length == MAX_FRAMES and whole.sequence.labels[0].frame == 20


def test_digest_changes_with_the_region_and_the_frames() -> None:
    digests = {
        crop.sequence.digest
        for length, scale, box in ((8, 1.25, NEAR), (8, 1.5, NEAR), (8, 1.25, FAR), (80, 1.25, NEAR), (81, 1.25, NEAR))
        for crop in crops((label(length - 1, box),), length, scale)
    }
    assert len(digests) == 5  # the last two crops begin at frames 16 and 17
    assert crops((label(7, NEAR, 1.0),))[0].sequence.digest == crops((label(7, NEAR, 2.0),))[0].sequence.digest


def test_region_beyond_the_frame_repeats_the_pixels_at_its_edge() -> None:
    image, frames = picture(1, (20, 12)), FramesConfig(width=30, height=22, colour="bgr")
    seen = resize_frame(image, frames, (-5, -4, 25, 18))
    np.testing.assert_array_equal(seen, cv2.copyMakeBorder(image, 4, 6, 5, 5, cv2.BORDER_REPLICATE))
    np.testing.assert_array_equal(resize_frame(image, frames, (40, 30, 70, 52)), np.full((22, 30, 3), image[-1, -1]))
    whole = FramesConfig(width=10, height=6, colour="rgb")
    np.testing.assert_array_equal(resize_frame(image, whole, (0, 0, 20, 12)), resize_frame(image, whole))


def write_vehicles(root: Path) -> Path:
    """Two clips in the competition's layout: one vehicle at NEAR, one at FAR."""
    for number, box in enumerate((NEAR, FAR), 1):
        folder = root / f"Train/Train/{number}"
        (folder / "imgs").mkdir(parents=True)
        for i in range(8):
            cv2.imwrite(str(folder / f"imgs/{i + 1:03d}.jpg"), picture(10 * number + i, SIZE))
        sides = dict(zip(("left", "top", "right", "bottom"), box, strict=True))
        (folder / "annotation.json").write_text(json.dumps([{"velocity": [1.0, 0.0], "bbox": sides}]))
    return root


def vehicles_config(data: Path, crops: float | None = 1.25, decode: str = "full") -> Config:
    value = extraction_config(data, dtype="float32", motion=False, engine="tensorflow").model_dump()
    value["data"] |= {"crops": crops}
    value["frames"] |= {"decode": decode}
    return Config.model_validate(value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clips in `data`, and the store `crops.h5` of their crops."""
    root = tmp_path_factory.mktemp("crops")
    config = vehicles_config(write_vehicles(root / "data"))
    extract(config, root / "crops.h5", scan(config.data))
    return root


def test_stored_maps_are_those_of_crops_cut_by_hand(folder: Path) -> None:
    config = vehicles_config(folder / "data")
    images = {
        i: [cv2.imread(str(folder / f"data/Train/Train/{i}/imgs/{f:03d}.jpg")) for f in range(1, 9)] for i in (1, 2)
    }
    by_hand = [image[50:150, 90:190] for image in images[1]]
    with Store(folder / "crops.h5") as store:
        left, top, right, bottom = store.sequences[1].region or (0,) * 4
        assert (left, right - SIZE[0]) == (232, 14)
        by_hand += [
            cv2.copyMakeBorder(image[top:bottom, left:], 0, 0, 0, right - SIZE[0], cv2.BORDER_REPLICATE)
            for image in images[2]
        ]
        frames = np.stack([cv2.resize(x, (32, 32), interpolation=cv2.INTER_AREA)[..., ::-1] for x in by_hand])
        maps = Engine(build_trunk(config), 8, "tensorflow")
        expected = np.concatenate([maps(frames[:8])["appearance"], maps(frames[8:])["appearance"]])
        np.testing.assert_allclose(store.read("appearance", range(16)), expected, rtol=1e-4, atol=1e-5)
        thumbnail = cv2.imdecode(np.frombuffer(store.thumbnail(3), np.uint8), cv2.IMREAD_COLOR)
        assert thumbnail.shape == (160, 160, 3)
        small = cv2.resize(frames[3][..., ::-1], (160, 160), interpolation=cv2.INTER_AREA)
        assert np.abs(thumbnail.astype(int) - small).mean() < 5


def test_store_gives_regions_back_and_is_not_extracted_again(folder: Path) -> None:
    config = vehicles_config(folder / "data")
    catalogue = scan(config.data)
    with Store(folder / "crops.h5") as store:
        assert store.sequences == tuple(clip.sequence for clip in catalogue.clips)
        assert [s.id for s in store.sequences] == ["Train/1/1", "Train/2/1"]
        assert all(s.visible_region == s.region for s in store.sequences)
        assert len(store.tracks()) == 2
    assert extract(config, folder / "crops.h5", catalogue).extracted == 0


def test_another_region_is_extracted_again(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "s.h5").write_bytes((folder / "crops.h5").read_bytes())
    config = vehicles_config(folder / "data", crops=1.5)
    assert extract(config, tmp_path / "s.h5", scan(config.data)).extracted == 16
    with Store(tmp_path / "s.h5") as store:
        assert store.sequences[0].region == (80, 40, 200, 160)


def test_fast_decoding_gives_the_same_maps_since_crops_need_every_pixel(folder: Path, tmp_path: Path) -> None:
    config = vehicles_config(folder / "data", decode="fast")
    assert config.frames.min_size == (32, 32)
    extract(config, tmp_path / "s.h5", scan(config.data))
    with Store(folder / "crops.h5") as full, Store(tmp_path / "s.h5") as fast:
        np.testing.assert_array_equal(full.read("appearance", range(16)), fast.read("appearance", range(16)))


def test_store_of_whole_frames_has_no_regions(folder: Path, tmp_path: Path) -> None:
    config = vehicles_config(folder / "data", crops=None)
    extract(config, tmp_path / "s.h5", scan(config.data))
    with Store(tmp_path / "s.h5") as store, h5py.File(tmp_path / "s.h5") as f, h5py.File(folder / "crops.h5") as c:
        assert "region" not in f["sequences"] and c["sequences/region"].shape == (2, 4)
        assert [s.region for s in store.sequences] == [None, None]
        assert store.sequences[0].visible_region == (0, 0, *SIZE)


def test_data_set_without_a_vehicle_to_crop_is_refused(tmp_path: Path) -> None:
    write_vehicles(tmp_path)
    for path in tmp_path.rglob("annotation.json"):
        path.write_text('[{"velocity": [1.0, 0.0]}]')
    with pytest.raises(
        DataError, match=r"no vehicle to crop; expected labels with a box.*Try: leave data\.crops unset"
    ):
        scan(data_config("competition", tmp_path, crops=1.25))
