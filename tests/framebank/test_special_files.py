"""Pipes, devices and links in the place of files: nothing waits for ever, and nothing of others is replaced."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features._common.atomic import atomic_write, exclusive_write_lock
from features._common.bounded_file import read_bounded
from features._common.csv_table import read_csv_table
from features._common.zip_limits import open_zip
from features.errors import DataError, FramebankError
from features.frame_files import shard_folder
from features.principal_components import load_bases
from features.sequences import FrameSequence
from features.shard_folder import OBSOLETE, sweep_store, used_shards
from features.store import Store
from features.store_writer import pack_store
from framebank.cli import main
from stage1_extract.camera_calibration import camera_from_exif
from stage1_extract.datasets.image_file import read_start
from stage1_extract.datasets.video import Video
from stage1_extract.engines.quantised_network import QuantisedNetwork
from stage1_extract.new_shards import NewShards
from stage2_temporal.runs.pruned import read_pruned
from tests.helpers import write_store

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes among its files"),
]
READERS: dict[str, Callable[[Path], Any]] = {
    "text": lambda path: read_bounded(path, 100),
    "table": read_csv_table,
    "zip": open_zip,
    "video": Video,
    "photo": camera_from_exif,
    "components": load_bases,
    "network": QuantisedNetwork.load,
}


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.mark.parametrize("kind", READERS)
def test_a_pipe_is_not_read(kind: str, pipe: Path) -> None:
    with pytest.raises(FramebankError, match="not a regular file"):
        READERS[kind](pipe)


def test_a_pipe_among_others_is_not_read(pipe: Path, tmp_path: Path) -> None:
    assert read_start(pipe) is None
    (tmp_path / "run").mkdir()
    pipe.rename(tmp_path / "run" / "pruned.json")
    with pytest.raises(DataError, match="not a regular file"):
        read_pruned(tmp_path / "run")


def test_a_link_to_a_device_that_never_ends_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "001.jpg").symlink_to("/dev/zero")
    assert read_start(tmp_path / "001.jpg") is None
    with pytest.raises(DataError, match="not a regular file"):
        read_bounded(tmp_path / "001.jpg", 1 << 30)


def test_an_output_that_is_no_file_is_not_replaced(pipe: Path) -> None:
    with pytest.raises(DataError, match="not a file, so it is not replaced"), atomic_write(pipe) as temporary:
        temporary.write_text("new")
    assert pipe.is_fifo() and [path.name for path in pipe.parent.iterdir()] == ["pipe"]


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_store_needs_a_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--store", name]) == 2
    assert "not a file's name" in capsys.readouterr().err


def test_the_holder_of_a_lock_is_written_into_no_other_file(pipe: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    holder = tmp_path / "s.h5.lock.holder"
    for make in (lambda: holder.symlink_to("victim"), lambda: pipe.rename(holder)):
        make()
        with exclusive_write_lock(tmp_path / "s.h5"):
            assert holder.is_file() and not holder.is_symlink()
        assert not holder.exists()
    assert (tmp_path / "victim").read_text() == "precious"


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """An index whose folder of shards is a link to one with a file of another kind."""
    maps = np.zeros((2, 2, 3, 4), np.float32)
    store = write_store(
        tmp_path / "s.h5",
        [FrameSequence("a", "train", 2, 10.0, (64, 36), "digest")],
        {"appearance": maps},
        packed=False,
    )
    shard_folder(store).rename(tmp_path / "other")
    shard_folder(store).symlink_to("other")
    (tmp_path / "other" / "precious.h5").write_text("x")
    return store


def test_files_beside_the_shards_stay(index: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    with Store(index) as store:
        recipe = store.recipe
    NewShards(other, recipe, used_shards(index)).delete_damaged()
    (other / OBSOLETE).write_text('[[0, 0], ["precious.h5", "..", "../s.h5", 5, null]]')
    sweep_store(index)
    pack_store(index)
    assert [path.name for path in other.iterdir()] == ["precious.h5"]


@pytest.mark.parametrize("content", [b"", b"[" * 9999, b"{}", b"[1]", b"\xff", b"[[1, 2], 5]"])
def test_a_wrong_list_of_shards_to_delete_is_ignored(content: bytes, index: Path, tmp_path: Path) -> None:
    names = {path.name for path in (tmp_path / "other").iterdir()}
    (tmp_path / "other" / OBSOLETE).write_bytes(content)
    sweep_store(index)
    assert {path.name for path in (tmp_path / "other").iterdir()} == names
