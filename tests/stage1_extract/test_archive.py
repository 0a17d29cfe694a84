"""Folders and zip archives as data sets: what is read, and which archives are refused."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from features.errors import DataError
from stage1_extract.datasets import scan
from stage1_extract.datasets.archive import list_folder, natural_sort_key, open_folder_or_zip, read_file
from stage1_extract.datasets.clip import Catalogue
from tests.dataset_helpers import assert_only_fault, data_config, write_clip, zip_folder


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A zip with the clips Train/Train/1 and Train/Train/2."""
    for name in ("1", "2"):
        write_clip(tmp_path / f"data/Train/Train/{name}")
    return zip_folder(tmp_path / "data", tmp_path / "data.zip")


def scanned(path: Path) -> Catalogue:
    return scan(data_config("competition", path), threads=2)


def test_folder_and_zip_are_listed_and_read_alike(tmp_path: Path) -> None:
    (tmp_path / "a/imgs").mkdir(parents=True)
    for name in ("10.txt", "9.txt", ".hidden"):
        (tmp_path / "a/imgs" / name).write_text(name)
    for root in (
        open_folder_or_zip(tmp_path / "a", hint=""),
        open_folder_or_zip(zip_folder(tmp_path / "a", tmp_path / "a.zip"), hint=""),
    ):
        (imgs,) = list_folder(root)
        assert (imgs.name, imgs.is_dir(), imgs.is_file()) == ("imgs", True, False)
        assert [read_file(p) for p in list_folder(imgs)] == [b"9.txt", b"10.txt"]
        with pytest.raises(DataError, match="imgs/no: no such file"):
            read_file(imgs.joinpath("no"))
    assert sorted(["10", "9", "a2", "a10", "a"], key=natural_sort_key) == ["9", "10", "a", "a2", "a10"]


def test_incomplete_zip_is_refused(archive: Path) -> None:
    complete = archive.read_bytes()
    for data in (b"", b"not a zip", complete[: len(complete) // 2], complete[len(complete) // 2 :][:-30]):
        archive.write_bytes(data)
        with pytest.raises(DataError, match=r"data\.zip: not a zip archive, or truncated.*Try"):
            scanned(archive)


@pytest.mark.parametrize(
    "entry",
    [
        "../evil.jpg",
        "Train/../../evil.jpg",
        "./../a",
        "a/..",
        "..\\a",
        "a\\..\\b",
        ".\\/../a",
        "/etc/evil",
        "\\evil",
        "\\\\server\\share",
        "C:/evil",
        "c:evil",
        "./C:/evil",
    ],
)
def test_zip_entry_that_points_outside_is_refused(tmp_path: Path, entry: str) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as file:
        file.writestr(entry, "x")
    with pytest.raises(DataError) as caught:
        open_folder_or_zip(tmp_path / "evil.zip", hint="")
    assert str(caught.value).startswith(f"{tmp_path}/evil.zip: unsafe entry {entry!r}") and "Try" in str(caught.value)


@pytest.mark.parametrize("pattern", ["./{}", ".\\{}", "{}", "././/{}"])
@pytest.mark.parametrize("separator", ["/", "\\", "//", "/./"])
def test_zips_of_every_program_are_read(archive: Path, pattern: str, separator: str) -> None:
    other = archive.with_name("other.zip")
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(other, "w") as target:
        target.writestr(raw_entry("./"), b"")
        target.writestr(raw_entry(pattern.format(f"Train{separator}")), b"")  # a folder
        for name in source.namelist():
            if not name.endswith("/"):
                target.writestr(raw_entry(pattern.format(name.replace("/", separator))), source.read(name))
    expected, catalogue = scanned(archive), scanned(other)
    assert catalogue.faults == () and [c.sequence for c in catalogue.clips] == [c.sequence for c in expected.clips]
    for clip, other_clip in zip(expected.clips, catalogue.clips, strict=True):
        for a, b in zip(clip.source.read(0, 3), other_clip.source.read(0, 3), strict=True):
            assert (a == b).all()


def raw_entry(name: str) -> zipfile.ZipInfo:
    """An entry with exactly this name, which a constructor would change."""
    info = zipfile.ZipInfo("x")
    info.filename = name
    return info


@pytest.mark.parametrize(
    "names",
    [
        [f"{1506297181 + i * 0.05}.jpg" for i in range(40)],
        [f"frame_{i / 8}s.png" for i in range(200)],
        [f"{1506297181000000000 + i}.{i}5.jpg" for i in range(9)],  # more digits than a float has
        ["-1.5.jpg", "-1.jpg", "-0.25.jpg", "0.jpg", "0.5.jpg", "1.jpg", "1.25.jpg"],
        [f"drive{i // 20}.{i % 20}.jpg" for i in range(60)],  # counted: drive0.9, drive0.10
        ["2024.01.05", "2024.01.12", "2024.02.01", "2024.10.01"],
        ["9.95.jpg", "10.00.jpg", "10.05.jpg", "10.10.jpg"],
        ["frame9.jpg", "frame010.jpg", "frame10b.jpg", "frame11.jpg"],
        ["frame\uff11.jpg", "frame\uff12.jpg", "frame\uff11\uff10.jpg"],  # full-width digits of Asian keyboards
    ],
)
def test_numbers_in_names_are_ordered_by_value(tmp_path: Path, names: list[str]) -> None:
    for name in sorted(names):
        (tmp_path / name).touch()
    assert [path.name for path in list_folder(tmp_path)] == names


def test_damaged_zip_entry_is_a_fault(archive: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        info = file.getinfo("Train/Train/2/imgs/002.jpg")
    data = bytearray(archive.read_bytes())
    middle = info.header_offset + 30 + len(info.filename) + info.compress_size // 2
    data[middle : middle + 4] = bytes(b ^ 0xFF for b in data[middle : middle + 4])
    archive.write_bytes(data)
    assert_only_fault(scanned(archive), f"{archive}/Train/Train/2/imgs/002.jpg", "damaged or unreadable zip entry")


def test_encrypted_zip_entry_is_a_fault(archive: Path) -> None:
    data = bytearray(archive.read_bytes())
    name = b"Train/Train/2/imgs/002.jpg"
    data[data.find(name) - 30 + 6] |= 1  # the flag in the local header, and in the central directory
    data[data.rfind(name) - 46 + 8] |= 1
    archive.write_bytes(data)
    assert_only_fault(scanned(archive), f"{archive}/{name.decode()}", "encrypted")


@pytest.mark.parametrize(
    ("mode", "kind"), [("w", "a tar archive"), ("w:gz", "gzip"), ("w:xz", "xz"), ("w:bz2", "bzip2")]
)
def test_other_archives_are_named(tmp_path: Path, mode: Any, kind: str) -> None:
    (tmp_path / "a.txt").write_text("x")
    with tarfile.open(tmp_path / "data.tar", mode) as archive:
        archive.add(tmp_path / "a.txt", "a.txt")
    with pytest.raises(DataError, match=rf"data\.tar: .*{kind}.* expected a folder, or a \.zip\. Try: unpack it"):
        open_folder_or_zip(tmp_path / "data.tar", hint="")


@pytest.mark.parametrize("start", [b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07", b"\x28\xb5\x2f\xfd"])
def test_archives_of_other_programs_are_named(tmp_path: Path, start: bytes) -> None:
    (tmp_path / "data.zip").write_bytes(start + bytes(300))
    with pytest.raises(DataError, match=r"7z|RAR|zstd"):
        open_folder_or_zip(tmp_path / "data.zip", hint="")
