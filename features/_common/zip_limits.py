"""What a zip archive may hold, checked before anything in it is decompressed."""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from pathlib import Path

from features._common.bounded_file import open_regular
from features._common.plain_text import one_line
from features.errors import DataError, raise_refusal
from features.limits import FILE_BYTES, ZIP_ENTRIES, ZIP_RATIO

# what `zipfile` and the libraries that it calls raise for damaged archives and entries
ZIP_ERRORS = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, ValueError, NotImplementedError,
    RuntimeError, OverflowError, OSError,
)  # fmt: skip
TAR_MARK = slice(257, 262)
OTHER_ARCHIVES = {
    b"\x1f\x8b": "a file compressed by gzip, such as .tar.gz",
    b"BZh": "a file compressed by bzip2, such as .tar.bz2",
    b"\xfd7zXZ\0": "a file compressed by xz, such as .tar.xz",
    b"\x28\xb5\x2f\xfd": "a file compressed by zstd",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
}
HINT = "do not unpack it; download it again from its source, or zip the folder again"


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open an archive.

    Raises:
        DataError: it is no zip, has more than `ZIP_ENTRIES` entries, unpacks to more than `ZIP_RATIO` times its size,
            or has entries that share their bytes.
        OSError: the system refuses to read it.
    """
    try:
        size = path.stat().st_size
        if (entries := _entry_count(path)) <= ZIP_ENTRIES:
            archive = zipfile.ZipFile(path)
    except ZIP_ERRORS as e:
        raise_refusal(e, path)
        refuse_other_archive(path)
        what, got = f"{path}: not a zip archive, or truncated", one_line(str(e))
        raise DataError(what, expected="a complete .zip", got=got, hint="download it again") from None
    if entries > ZIP_ENTRIES:
        raise DataError(f"{path}: too many entries", expected=f"at most {ZIP_ENTRIES:,}", got=f"{entries:,}", hint=HINT)
    infos = archive.infolist()
    total, stored = sum(info.file_size for info in infos), sum(info.compress_size for info in infos)
    for fault, limit, count in (
        ("unpacks to far more than its size", FILE_BYTES + ZIP_RATIO * size, total),
        ("has entries that share their bytes", size, stored),
    ):
        if count > limit:
            archive.close()
            raise DataError(f"{path}: {fault}", expected=f"at most {limit:,} bytes", got=f"{count:,}", hint=HINT)
    return archive


def refuse_other_archive(path: Path) -> None:
    """Raise a DataError if a file begins as an archive that is no zip."""
    with open_regular(path) as file:
        start = file.read(TAR_MARK.stop)
    kinds = [kind for mark, kind in OTHER_ARCHIVES.items() if start.startswith(mark)]
    if start[TAR_MARK] == b"ustar":
        kinds = ["a tar archive"]
    if kinds:
        raise DataError(f"{path}: {kinds[0]}", expected="a folder, or a .zip", hint="unpack it and name the folder")


def check_archive(path: Path) -> None:
    """Raise what `open_zip` raises."""
    open_zip(path).close()


def _entry_count(path: Path) -> int:
    """At most how many entries an archive has, by the size of its directory, before `zipfile` reads that."""
    with open_regular(path) as file:
        end = zipfile._EndRecData(file)  # type: ignore[attr-defined]  # it also finds the end records of large archives
    return 0 if end is None else int(end[5]) // zipfile.sizeCentralDir  # type: ignore[attr-defined]
