"""`framebank extract --dry-run`: the plan and its cost before the work, without writing anything."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from features.store import Store
from framebank.cli import main
from tests.extraction_helpers import CONFIG
from tests.helpers import write_clips


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything below a folder, with inodes and times of modification."""
    paths = [Path(root, name) for root, folders, names in os.walk(folder) for name in [*folders, *names]]
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in [folder, *paths]}


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    write_clips(tmp_path / "data", {"Train": 6})
    (tmp_path / "c.toml").write_text(CONFIG.format(data=tmp_path / "data"))
    return ["extract", "--config", str(tmp_path / "c.toml"), "--store", str(tmp_path / "stores/s.h5")]


def test_nothing_is_written(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(tmp_path)
    assert main([*command, "--dry-run"]) == 0
    assert files(tmp_path) == before
    out = capsys.readouterr().out
    assert "frames    48 of 48 to extract\n" in out
    assert "written in 6 shards; packed into a single file\n" in out  # 3 groups of 16 frames, two streams
    assert re.search(r"time      \S+ min at [0-9,.]+ frames/s on this machine\n", out)


def test_space_and_shards_are_those_of_the_extraction(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = [*command, "--extract.packed_gb", "0"]
    assert main([*index, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert main(index) == 0
    with Store(tmp_path / "stores/s.h5") as store:
        size = store.frames * sum(info.frame_bytes for info in store.streams.values())
    assert f"store     {size / 1e6:,.1f} MB to be written in 6 shards; an index and shards\n" in out
    assert f"space     {size / 1e6:,.1f} MB needed, " in out
    assert len(list((tmp_path / "stores/s.h5.shards").glob("[!.]*.h5"))) == 6


def test_what_is_stored_is_left_out(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command) == 0
    before = files(tmp_path)
    capsys.readouterr()
    assert main([*command, "--dry-run"]) == 0
    assert "frames    0 of 48 to extract\n" in (out := capsys.readouterr().out) and "nothing to extract" in out
    write_clips(tmp_path / "more", {"Train": 7})
    (tmp_path / "more/Train/Train/7").rename(tmp_path / "data/Train/Train/7")
    before = files(tmp_path)
    cluster = ["--compute.backend", "dask", "--compute.workers", "4"]
    assert main([*command, "--dry-run", *cluster]) == 0
    out = capsys.readouterr().out
    assert "frames    8 of 56 to extract\n" in out and "; 4 workers of this rate\n" in out
    assert files(tmp_path) == before
