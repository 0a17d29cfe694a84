"""Unfinished files: named after their writer, and deleted only once nobody writes them any more."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from features._common.atomic import atomic_write
from features._common.leftovers import abandoned_files, writer_name

WRITE = """
import sys
from pathlib import Path
from features._common.atomic import atomic_write
with atomic_write(Path(sys.argv[1])) as temporary:
    temporary.write_text("x")
    print(flush=True)
    input()
"""


def unfinished(folder: Path) -> list[Path]:
    return list(folder.glob(".*.tmp"))


def test_a_file_is_abandoned_once_its_process_was_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITE, str(tmp_path / "a")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        assert len(unfinished(tmp_path)) == 1
        assert not list(abandoned_files(unfinished(tmp_path)))
        writer.kill()
    assert list(abandoned_files(unfinished(tmp_path))) == unfinished(tmp_path)


def test_two_writers_of_a_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a") as first, atomic_write(tmp_path / "a") as second:
        first.write_text("1")
        second.write_text("2")
        assert len(unfinished(tmp_path)) == 2
    assert (tmp_path / "a").read_text() == "1"  # the last one that ended
    assert not unfinished(tmp_path)


def test_a_file_of_another_host_is_abandoned_after_a_day(tmp_path: Path) -> None:
    path = tmp_path / f".a.other{writer_name()}.tmp"
    path.touch()
    assert not list(abandoned_files([path]))
    os.utime(path, (time.time() - 90_000,) * 2)
    assert list(abandoned_files([path])) == [path]


def test_a_file_of_an_earlier_version_is_abandoned(tmp_path: Path) -> None:
    (tmp_path / ".a.123.tmp").touch()
    assert list(abandoned_files(unfinished(tmp_path))) == unfinished(tmp_path)
