"""Helpers that several test files share: small real data sets, images and stores."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from features.frame_files import shard_folder
from features.frame_ranges import covering_ranges, full_range
from features.recipe import Recipe
from features.sequences import FrameSequence
from features.shard_folder import delete_unused_shards
from features.shards import new_shard, shard_ranges
from features.store_tables import Header, StreamInfo, TopRecord
from features.store_writer import StoreContent, StreamContent, save_store
from features.tracks import Track

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared" / "data"
CHROMIUM = shutil.which("chromium")
IN_BROWSER = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")]
RECIPE = Recipe("cv2", (32, 18), "area", "rgb", "none", "Tiny", weights="random", dtype="float32")


def jpeg(colour: int = 90, size: tuple[int, int] = (160, 90)) -> bytes:
    """A small real JPEG of one grey."""
    return bytes(cv2.imencode(".jpg", np.full((size[1], size[0], 3), colour, np.uint8))[1])


def write_store(
    path: Path,
    sequences: Sequence[FrameSequence],
    maps: Mapping[str, NDArray[Any]],
    *,
    recipe: Recipe = RECIPE,
    top: TopRecord | None = None,
    trunk: Mapping[str, Any] | None = None,
    complete: bool = True,
    tracks: Mapping[str, Track] | None = None,
    packed: bool = True,
) -> Path:
    """Write a real store of given maps, as extraction does: a shard, then a store packed from it, or its index."""
    streams = {name: StreamInfo(values.shape[1:], values.dtype.name) for name, values in maps.items()}
    with new_shard(shard_folder(path), recipe, [full_range(s) for s in sequences], streams) as (writer, shard):
        writer.write(maps, [jpeg(i % 200) for i in range(sum(s.length for s in sequences))])
        writer.finish()
    stored = shard_ranges(shard, recipe.fingerprint)
    ranges = [covering_ranges(full_range(s), [r for r in stored if r.frame_range.sequence == s.id]) for s in sequences]
    header = Header(recipe, trunk=trunk or {}, complete=complete)
    contents = {name: StreamContent(info, ranges) for name, info in streams.items()}
    save_store(path, StoreContent(header, sequences, contents, top, tracks or {}), packed)
    delete_unused_shards(path)
    return path


StoreMaker = Callable[..., Path]


def picture(seed: int, size: tuple[int, int] = (64, 48)) -> NDArray[np.uint8]:
    """A smooth random picture, (height, width, 3) BGR."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC), np.uint8)


def write_clips(
    root: Path, counts: Mapping[str, int] | None = None, *, frames: int = 8, size: tuple[int, int] = (64, 48)
) -> Path:
    """A small data set of real JPEGs in the competition's layout; velocity and ego speed are functions of the clip."""
    for split, count in (counts or {"Train": 6, "Validation": 2, "Test": 2}).items():
        for i in range(1, count + 1):
            folder = root / split / split / str(i)
            (folder / "imgs").mkdir(parents=True)
            seed = zlib.crc32(f"{split}{i}".encode())
            for f in range(1, frames + 1):
                cv2.imwrite(str(folder / "imgs" / f"{f:03d}.jpg"), picture(seed + f, size))
            box = {"left": 10.0, "top": 10.0, "right": 30.0, "bottom": 30.0}
            vehicle = {"velocity": [i / 2, -i / 10], "bbox": box, "position": [10.0 * i, 1.0]}
            (folder / "annotation.json").write_text(json.dumps([vehicle]))
            (folder / "ego.json").write_text(json.dumps({"speed": 5.0 + i}))
    return root


def flip(path: Path, stream: str, row: int) -> None:
    """Change one byte of a frame's chunk on the disk."""
    with h5py.File(path) as f:
        where = f[f"frames/{stream}"].id.get_chunk_info_by_coord((row, 0, 0, 0))
    with path.open("r+b") as raw:
        raw.seek(where.byte_offset + 5)
        byte = raw.read(1)[0]
        raw.seek(where.byte_offset + 5)
        raw.write(bytes([byte ^ 0xFF]))
