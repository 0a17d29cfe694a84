"""A scan reads only files that have changed since the last one; real files, counted by what is read."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from framebank.workflows import extract_data_set
from stage1_extract.datasets import archive, scan, video
from stage1_extract.datasets.clip import Catalogue
from stage1_extract.datasets.scan_cache import ScanCache, scan_cache_of
from tests.dataset_helpers import OLD, data_config, make_old, noise_image, write_clip, zip_folder
from tests.extraction_helpers import extraction_config
from tests.image_runs import write_video

READ_COUNTER = Path("/proc/self/io")


def bytes_read() -> int:
    """Bytes that this process has read from files so far."""
    return int(READ_COUNTER.read_text().split()[1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two clips in the competition's layout, written long ago."""
    for name in ("1", "2"):
        write_clip(tmp_path / f"data/Train/Train/{name}")
    make_old(tmp_path / "data")
    return tmp_path / "data"


def scan_with(folder: Path, store: Path, *, rehash: bool = False) -> Catalogue:
    return scan(data_config("competition", folder), cache=scan_cache_of(store, rehash=rehash))


def digests(catalogue: Catalogue) -> list[str]:
    assert catalogue.faults == ()
    return [clip.sequence.digest for clip in catalogue.clips]


def test_second_scan_reads_no_image_and_finds_the_same(folder: Path, tmp_path: Path, read: list[str]) -> None:
    first = scan_with(folder, tmp_path / "s.h5")
    assert len(read) == len(set(read)) == sum(clip.sequence.length for clip in first.clips)
    read.clear()
    second = scan_with(folder, tmp_path / "s.h5")
    assert read == [] and second == first
    assert digests(second) == digests(scan(data_config("competition", folder)))
    images = [list(clip.source.read(0, clip.sequence.length)) for clip in second.clips]
    assert np.ptp(images[0][0]) > 0


@pytest.mark.skipif(not READ_COUNTER.exists(), reason="this system does not count what a process reads")
def test_extraction_with_nothing_to_do_reads_less_than_2_percent_of_the_images(tmp_path: Path) -> None:
    for name in ("1", "2", "3"):
        write_clip(tmp_path / f"data/Train/Train/{name}")
        for i in range(1, 9):
            (tmp_path / f"data/Train/Train/{name}/imgs/{i:03d}.jpg").write_bytes(noise_image(i, (800, 600)))
    make_old(tmp_path / "data")
    images = sum(file.stat().st_size for file in tmp_path.rglob("*.jpg"))
    config = extraction_config(tmp_path / "data", motion=False)
    counts = []
    for _ in range(3):  # the second one may still load modules
        before = bytes_read()
        result = extract_data_set(config, tmp_path / "s.h5")
        counts.append(bytes_read() - before)
    assert result.frames == 24 and result.extracted == 0
    assert counts[0] > images and counts[2] < 0.02 * images


def test_only_changed_files_are_read_again(folder: Path, tmp_path: Path, read: list[str]) -> None:
    before = digests(scan_with(folder, tmp_path / "s.h5"))
    image = next(folder.glob("Train/Train/2/imgs/*"))
    copy = image.with_suffix(".copy")
    shutil.copy(image, copy)
    image.write_bytes(noise_image(99, suffix=image.suffix))
    os.utime(image, (OLD + 1, OLD + 1))
    read.clear()
    changed = digests(scan_with(folder, tmp_path / "s.h5"))
    assert read == [str(image)] and changed[0] == before[0] and changed[1] != before[1]
    os.utime(copy, (OLD + 1, OLD + 1))
    copy.replace(image)  # another inode with the same times
    assert digests(scan_with(folder, tmp_path / "s.h5")) == before


def test_file_modified_just_now_is_not_trusted(folder: Path, tmp_path: Path, read: list[str]) -> None:
    image = next(folder.glob("Train/Train/1/imgs/*"))
    image.touch()
    scan_with(folder, tmp_path / "s.h5")
    read.clear()
    scan_with(folder, tmp_path / "s.h5")
    assert read == [str(image)]


def test_rehash_reads_everything(folder: Path, tmp_path: Path, read: list[str]) -> None:
    scan_with(folder, tmp_path / "s.h5")
    count = len(read)
    scan_with(folder, tmp_path / "s.h5", rehash=True)
    assert len(read) == 2 * count


def test_fault_is_remembered_until_the_file_changes(folder: Path, tmp_path: Path, read: list[str]) -> None:
    image = next(folder.glob("Train/Train/1/imgs/*"))
    whole = image.read_bytes()
    image.write_bytes(whole[:100])
    os.utime(image, (OLD, OLD))
    first = scan_with(folder, tmp_path / "s.h5")
    assert len(first.faults) == 1
    read.clear()
    assert scan_with(folder, tmp_path / "s.h5") == first and read == []
    image.write_bytes(whole)
    os.utime(image, (OLD + 5, OLD + 5))
    assert scan_with(folder, tmp_path / "s.h5").faults == ()


@pytest.mark.parametrize("content", [b"", b"not a database", b"SQLite format 3\0" + bytes(200)])
def test_unusable_cache_costs_only_time(
    folder: Path, tmp_path: Path, read: list[str], content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = scan_with(folder, tmp_path / "other.h5")
    read.clear()
    (tmp_path / "s.h5.scan").write_bytes(content)
    assert scan_with(folder, tmp_path / "s.h5") == expected
    assert len(read) == sum(clip.sequence.length for clip in expected.clips)
    assert content == b"" or "s.h5.scan: cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize("result", ["[]", "5", "[" * 9999, None, b"\xff", 7, "00000000 [[[64, 48], 3, 0], 0]"])
def test_a_wrong_entry_is_not_believed(folder: Path, tmp_path: Path, read: list[str], result: object) -> None:
    expected = scan_with(folder, tmp_path / "s.h5")
    read.clear()
    with closing(sqlite3.connect(tmp_path / "s.h5.scan")) as cache, cache:
        cache.execute("UPDATE files SET result = ?", (result,))
    assert scan_with(folder, tmp_path / "s.h5") == expected
    assert len(read) == sum(clip.sequence.length for clip in expected.clips)


ENDLESS = "WITH RECURSIVE n(i) AS (VALUES(0) UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "script",
    [
        f"ALTER TABLE files RENAME TO x; CREATE VIEW files AS SELECT x.* FROM x, ({ENDLESS})",  # noqa: S608
        f"CREATE TRIGGER t BEFORE INSERT ON files BEGIN DELETE FROM files WHERE size IN ({ENDLESS}); END",  # noqa: S608
        "DROP TABLE files; CREATE TABLE files (path TEXT)",
    ],
    ids=["view", "trigger", "table"],
)
def test_a_cache_with_other_things_in_it_is_not_used(
    folder: Path, tmp_path: Path, script: str, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = scan_with(folder, tmp_path / "s.h5")
    with closing(sqlite3.connect(tmp_path / "s.h5.scan")) as cache:
        cache.executescript(script)
    assert scan_with(folder, tmp_path / "s.h5") == expected
    assert "s.h5.scan: cannot be used (not a cache of scans)" in capsys.readouterr().err


def test_files_in_an_archive_are_read_again_if_the_archive_changes(
    folder: Path, tmp_path: Path, read: list[str]
) -> None:
    archive = zip_folder(folder, tmp_path / "data.zip")
    os.utime(archive, (OLD, OLD))
    first = digests(scan_with(archive, tmp_path / "s.h5"))
    read.clear()
    assert digests(scan_with(archive, tmp_path / "s.h5")) == first and read == []
    os.utime(archive, (OLD + 1, OLD + 1))
    assert digests(scan_with(archive, tmp_path / "s.h5")) == first and len(read) > 0


def test_video_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    frames = [np.full((48, 64, 3), 8 * i, np.uint8) for i in range(12)]
    write_video(tmp_path / "data/test.avi", frames)
    make_old(tmp_path / "data")
    decoded, find = [], video.Video._find_facts
    monkeypatch.setattr(video.Video, "_find_facts", lambda self, times: decoded.append(1) or find(self, times))
    config = data_config("video", tmp_path / "data")
    first, second = (scan(config, cache=ScanCache(tmp_path / "s.scan")) for _ in range(2))
    assert len(decoded) == 1
    assert first.clips[0].sequence == second.clips[0].sequence
    images = list(second.clips[0].source.read(0, 12))
    assert len(images) == 12 and int(images[11].mean()) > int(images[1].mean())


def test_what_the_system_refused_is_not_remembered(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that failed, or a permission, may be there again although the file has not changed."""

    def refuse(path: Path, _limit: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(archive, "read_bounded", refuse)
        faults = scan_with(folder, tmp_path / "s.h5").faults
    assert faults and all("Input/output error" in fault for fault in faults)
    assert scan_with(folder, tmp_path / "s.h5").faults == ()
