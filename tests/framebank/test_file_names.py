"""File names that are not UTF-8, which Linux admits, and outputs under the names of inputs."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from features.config import DataConfig
from framebank.cli import main
from stage1_extract.datasets import scan
from tests.helpers import ROOT, jpeg, picture, write_clips
from tests.image_runs import write_video

BAD = os.fsdecode(b"\xff\xfe")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")


@pytest.mark.parametrize("form", ["index", "packed"])
def test_store_works_under_such_a_name(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / f"{BAD}.h5"
    shutil.copy(ROOT / "tests" / "data" / f"format2-{form}.h5", store)
    if form == "index":
        shutil.copytree(ROOT / "tests" / "data" / "format2-index.h5.shards", f"{store}.shards")
    for command in ("verify", "pack", "unpack", "pack", "info"):
        assert main([command, "--store", str(store)]) == 0
    printed = capsys.readouterr()
    (printed.out + printed.err).encode()  # no half character is left
    assert r"\udcff\udcfe.h5" in printed.out
    assert main(["info", "--store", str(tmp_path / f"{BAD}2.h5")]) == 2
    assert r"\udcff\udcfe2.h5: no such store" in capsys.readouterr().err


def test_data_set_is_read_from_such_a_folder(tmp_path: Path) -> None:
    write_clips(tmp_path / "clips", {"Train": 2}, frames=3).rename(tmp_path / BAD)  # OpenCV does not write it
    catalogue = scan(DataConfig(layout="competition", path=str(tmp_path / BAD)), threads=1)
    assert not catalogue.faults
    assert [len(list(clip.source.read(0, 3))) for clip in catalogue.clips] == [3, 3]


def test_sequence_cannot_have_such_a_name(tmp_path: Path) -> None:
    """Its name stands in tables and pages, which are UTF-8."""
    (tmp_path / "v").mkdir()
    video = write_video(tmp_path / "v" / "good.avi", [picture(i) for i in range(4)])
    shutil.copy(video, tmp_path / "v" / f"{BAD}.avi")
    for name in ("good", BAD):
        (tmp_path / "v" / f"{name}.txt").write_text("12.5\n" * 4)
    catalogue = scan(DataConfig(layout="video", path=str(tmp_path / "v")), threads=1)
    [fault] = catalogue.faults
    assert fault.startswith(r"'\udcff\udcfe': not a name for a sequence")


def test_no_output_replaces_an_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = write_video(tmp_path / "v.avi", [picture(i) for i in range(4)])
    (tmp_path / "p.jpg").write_bytes(jpeg(1))
    (tmp_path / "cam.toml").write_text("fx = 50\nfy = 50\ncx = 32\ncy = 24\nsize = [64, 48]\nheight = 1.5\n")
    (tmp_path / "link.csv").symlink_to(video)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    camera = ["--camera", str(tmp_path / "cam.toml")]
    for arguments, name in (
        (["speed", str(video), *camera], "v.avi"),
        (["speed", str(video), *camera], "cam.toml"),
        (["speed", str(video), *camera], "link.csv"),
        (["speed", str(tmp_path), *camera], "p.jpg"),
        (["camera", str(video)], "v.avi"),
        (["camera", "--exif", str(tmp_path / "p.jpg")], "p.jpg"),
    ):
        assert main([*arguments, "--output", str(tmp_path / name)]) == 2
        assert f"{tmp_path / name}: is the input, not an output file" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
