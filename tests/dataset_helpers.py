"""What the tests of data sets share: clips of small images, archives, and a check for exactly one fault."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from features.config import DataConfig
from stage1_extract.datasets.clip import Catalogue

OLD = 1_700_000_000  # s: a time of modification long ago

VEHICLE = {"velocity": [-1.5, 0.25], "bbox": {"left": 1, "top": 2, "right": 9, "bottom": 7}, "position": [20.0, -1.5]}
SECOND_VEHICLE = {"velocity": [3.0, 0.0], "bbox": {"left": 11, "top": 2, "right": 19, "bottom": 7}}


def data_config(layout: str, path: Path, **settings: Any) -> DataConfig:
    """The [data] section of a config."""
    return DataConfig.model_validate({"layout": layout, "path": str(path)} | settings)


def noise_image(seed: int, size: tuple[int, int] = (32, 18), suffix: str = ".jpg") -> bytes:
    """An image file of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return bytes(cv2.imencode(suffix, pixels)[1])


def write_clip(folder: Path, annotation: object = (VEHICLE,), frames: int = 3) -> Path:
    """Write a clip of 32x18 px frames, `imgs/001.jpg …`, with its annotation.json unless `annotation` is None."""
    (folder / "imgs").mkdir(parents=True)
    for i in range(1, frames + 1):
        (folder / f"imgs/{i:03d}.jpg").write_bytes(noise_image(sum(folder.name.encode()) * 100 + i))
    if annotation is not None:
        (folder / "annotation.json").write_text(json.dumps(annotation))
    return folder


def zip_folder(folder: Path, path: Path) -> Path:
    """Write the contents of a folder into a zip archive at `path`."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for p in sorted(folder.rglob("*")):
            archive.write(p, p.relative_to(folder).as_posix())
    return path


def assert_only_fault(catalogue: Catalogue, path: Path | str, *parts: str) -> None:
    """Check that a scan found one fault, on one line that begins with the path, has all parts, and no hint."""
    assert len(catalogue.faults) == 1, catalogue.faults
    (line,) = catalogue.faults
    assert line.startswith(str(path)) and "\n" not in line and "Try" not in line, line
    for part in parts:
        assert part in line, line


def make_old(folder: Path) -> None:
    """Give all files in a folder a time of modification long ago, as those have that a scan remembers."""
    for file in folder.rglob("*"):
        os.utime(file, (OLD, OLD))
