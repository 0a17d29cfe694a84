"""Single wrong bits anywhere in a store: none is read as another value, and verify finds every one that matters."""

from __future__ import annotations

import random
import shutil
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from features.bit_errors import corrected_chunk
from features.errors import StoreError
from features.frame_files import shard_folder
from features.hdf5 import unchecked_values
from features.store import Store
from features.verification import find_damage
from tests.crafted import make_store

PARTS = ("header", "sequences", "labels", "tracks", "top", "bases", "frames", "thumbnails")
FLIPS = 15  # of each part, in each form; `make soak` makes more


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sound")
    return {form: make_store(folder / form / "s.h5", packed=form == "packed") for form in ("packed", "index")}


def content(path: Path) -> list[Any]:
    """Everything that a store says, in a form that shows every difference."""
    with Store(path) as store:
        top, tracks = store.top(), store.tracks()
        assert top is not None
        return [
            repr((store.header, store.sequences, store.first.tolist(), store.streams, top.architecture)),
            [(w.dtype.str, w.tobytes()) for w in top.weights],
            {key: (track.boxes.tobytes(), track.confidence.tobytes()) for key, track in tracks.items()},
            {name: store.read(name, range(store.frames)).tobytes() for name in store.streams},
            {name: {k: v.tobytes() for k, v in store.basis(name).items()} for name in store.streams},
            store.files.thumbnails(store.thumbnail_stream, 0, store.frames),
        ]


def places(path: Path, part: str) -> list[tuple[int, int]]:
    """Where the chunks of a part are in a file: (first byte, count) each; of `structure`, everything else."""
    chunks: list[tuple[int, int]] = []

    def visit(name: str, node: object) -> None:
        if isinstance(node, h5py.Dataset) and (part == "structure" or name.split("/")[0] == part) and node.chunks:
            infos = [node.id.get_chunk_info(i) for i in range(node.id.get_num_chunks())]
            chunks.extend((info.byte_offset, info.size) for info in infos)

    with h5py.File(path) as f:
        f.visititems(visit)
    if part != "structure":
        return chunks
    edges = [0, *(edge for first, count in sorted(chunks) for edge in (first, first + count)), path.stat().st_size]
    return [(a, b - a) for a, b in zip(edges[::2], edges[1::2], strict=True) if b > a]


def flip_bits(sound: Path, folder: Path, file: str, part: str, count: int, seed: int) -> tuple[int, int]:
    """Flip bits of a part, one at a time; return how many were refused, and how many changed nothing."""
    shutil.copytree(sound.parent, folder, dirs_exist_ok=True)
    expected, path = content(sound), folder / "s.h5"
    target = folder / file
    original = target.read_bytes()
    where = places(target, part)
    assert where, f"{file} has no {part}"
    rng, refused, harmless = random.Random(zlib.crc32(f"{part}{seed}".encode())), 0, 0
    sizes = [size for _, size in where]
    for _ in range(count):
        first, size = rng.choices(where, sizes)[0]
        at, bit = first + rng.randrange(size), rng.randrange(8)
        data = bytearray(original)
        data[at] ^= 1 << bit
        target.write_bytes(data)
        try:
            assert content(path) == expected, f"bit {bit} of byte {at}: another value"
            harmless += 1
        except StoreError:
            refused += 1
            with suppress(StoreError):  # it may not be recognised as a store any more
                assert find_damage(path), f"bit {bit} of byte {at}: not found by verify"
    return refused, harmless


def run(form: str, part: str, sound: Path, tmp_path: Path, count: int, seed: int = 0) -> None:
    file = "s.h5"
    if form == "index" and part in ("frames", "thumbnails", "pieces"):
        with h5py.File(sound) as f:
            names = [name.decode() for name in f["shards/name"][:]]
        for name in names:
            with h5py.File(shard_folder(sound) / name) as f:
                if part in f and ("appearance" in f["frames"]):
                    file = f"s.h5.shards/{name}"
    refused, harmless = flip_bits(sound, tmp_path, file, part, count, seed)
    assert refused + harmless == count
    if part not in ("structure", "pieces", "thumbnails"):
        assert harmless == 0
    if part != "pieces":
        assert refused > 0


CASES = [("packed", part) for part in (*PARTS, "structure")]
CASES += [("index", part) for part in (*PARTS, "shards", "runs", "structure")]


@pytest.mark.parametrize(("form", "part"), CASES)
def test_no_wrong_bit_is_read_in_silence(form: str, part: str, sound: dict[str, Path], tmp_path: Path) -> None:
    run(form, part, sound[form], tmp_path, FLIPS)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("form", "part"), CASES)
def test_none_of_many_wrong_bits_is_read_in_silence(
    form: str, part: str, sound: dict[str, Path], tmp_path: Path
) -> None:
    run(form, part, sound[form], tmp_path, 1000 if part == "structure" else 100, seed=1)


@pytest.mark.parametrize("size", [1, 2, 7, 400])
def test_a_single_wrong_bit_is_corrected(size: int, tmp_path: Path) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f.create_dataset("x", data=data, chunks=(size,), fletcher32=True)
        _, chunk = f["x"].id.read_direct_chunk((0,))
        assert corrected_chunk(chunk) == data.tobytes()
        for bit in range(8 * len(chunk)):
            wrong = bytearray(chunk)
            wrong[bit // 8] ^= 1 << bit % 8
            assert corrected_chunk(bytes(wrong)) == data.tobytes()
        wrong = bytearray(chunk)
        wrong[0] ^= 0b101
        assert corrected_chunk(bytes(wrong)) != data.tobytes()


def test_a_column_that_is_more_than_a_bit_off_is_not_certain(sound: dict[str, Path], tmp_path: Path) -> None:
    path = shutil.copy(sound["packed"], tmp_path / "s.h5")
    [(first, _)] = places(path, "header")
    data = bytearray(path.read_bytes())
    data[first : first + 8] = b"\0" * 8
    path.write_bytes(data)
    with h5py.File(path) as f:
        assert not unchecked_values(f["header"])[1]
        assert unchecked_values(f["labels/frame"])[1]
