"""A first extraction reads each image once: its digest is that of the bytes that are decoded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from features.config import Config
from features.errors import BadInputs
from features.frame_files import shard_folder
from features.shards import ShardWriter
from features.store import Store
from framebank.workflows import extract_data_set
from stage1_extract.backends import reads_later
from stage1_extract.datasets import image_sequence, scan
from stage1_extract.datasets.archive import ReadablePath, read_file
from stage1_extract.datasets.image_file import read_info, read_start
from stage1_extract.datasets.scan_cache import scan_cache_of
from stage1_extract.engines.engine import Engine
from stage1_extract.extract import extract
from tests.dataset_helpers import make_old, noise_image, write_clip
from tests.extraction_helpers import extraction_config, store_content
from tests.helpers import write_clips

SIZE = (64, 48)  # of the clips' frames
READ_COUNTER = Path("/proc/self/io")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Clips with tracked vehicles, written long ago."""
    folder = write_clips(tmp_path / "data", {"Train": 5})
    make_old(folder)
    return folder


def images(folder: Path) -> list[str]:
    return sorted(map(str, folder.rglob("*.jpg")))


def unread_scan(config: Config, store: Path) -> image_sequence.Catalogue:
    return scan(config.data, cache=scan_cache_of(store), read_later=reads_later(config, store))


def run(config: Config, store: Path, engine: Engine) -> int:
    return extract(config, store, unread_scan(config, store), engine=engine).extracted


@pytest.mark.parametrize("settings", [{}, {"packed_gb": 0.0, "motion": False}])
def test_each_image_is_read_once_and_the_store_is_the_same(
    settings: dict[str, object], data: Path, tmp_path: Path, engine: Engine, read: list[str]
) -> None:
    config, store = extraction_config(data, **settings), tmp_path / "s.h5"
    assert run(config, store, engine) == 40
    assert sorted(read) == images(data)
    extract(config, tmp_path / "other.h5", scan(config.data), engine=engine)
    with Store(store) as first, Store(tmp_path / "other.h5") as second:
        assert first.sequences == second.sequences and first.track_keys == second.track_keys
    if not settings:
        assert store_content(store) == store_content(tmp_path / "other.h5")
    read.clear()
    assert run(config, store, engine) == 0 and read == []


@pytest.mark.skipif(not READ_COUNTER.exists(), reason="this system does not count what a process reads")
def test_first_extraction_reads_at_most_5_percent_more_than_the_images(tmp_path: Path) -> None:
    def bytes_read() -> int:
        return int(READ_COUNTER.read_text().split()[1])

    ratios = []
    for name in ("warm", "counted"):  # the first one loads modules
        data = tmp_path / name
        for clip in range(3):
            write_clip(data / f"Train/Train/{clip + 1}")
            for i in range(1, 9):
                image = noise_image(8 * clip + i, (1280, 720))
                (data / f"Train/Train/{clip + 1}/imgs/{i:03d}.jpg").write_bytes(image)
        make_old(data)
        before = bytes_read()
        extract_data_set(extraction_config(data, motion=False, packed_gb=0.0), tmp_path / f"{name}.h5")
        ratios.append((bytes_read() - before) / sum(file.stat().st_size for file in data.rglob("*.jpg")))
    assert ratios[1] <= 1.05


def test_image_that_changes_before_it_is_read_is_a_fault_and_later_is_kept_as_it_was(
    data: Path, tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, store = extraction_config(data, skip_damaged=True), tmp_path / "s.h5"
    expected = scan(config.data)
    catalogue = unread_scan(config, store)
    changed_before, changed_after = data / "Train/Train/2/imgs/003.jpg", data / "Train/Train/4/imgs/003.jpg"
    changed_before.write_bytes(noise_image(1, SIZE))

    def read(path: ReadablePath) -> bytes:
        content = read_file(path)
        if path == changed_after.with_name("008.jpg"):
            changed_after.write_bytes(noise_image(2, SIZE))
        return content

    monkeypatch.setattr(image_sequence, "read_file", read)
    result = extract(config, store, catalogue, engine=engine)
    assert list(result.missing) == ["Train/2"]
    assert f"{changed_before}: changed since it was scanned" in result.missing["Train/2"]
    with Store(store) as opened:
        assert opened.sequences == tuple(c.sequence for c in expected.clips if c.sequence.id != "Train/2")
    assert run(config, store, engine) == 16  # the two that are new now


def test_interrupted_extraction_goes_on_from_its_shards(
    data: Path, tmp_path: Path, engine: Engine, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, store = extraction_config(data), tmp_path / "s.h5"
    finish, calls = ShardWriter.finish, []

    def interrupted(self: ShardWriter, *arguments: object) -> None:
        calls.append(1)
        if len(calls) > 2:  # a group has two streams
            raise KeyboardInterrupt
        finish(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(ShardWriter, "finish", interrupted)
        run(config, store, engine)
    assert len(list(shard_folder(store).glob("[!.]*.h5"))) == 2
    read.clear()
    assert run(config, store, engine) == 24
    assert not {name for name in read if "/Train/1/" in name or "/Train/2/" in name}  # remembered with their shards
    extract(config, tmp_path / "other.h5", scan(config.data), engine=engine)
    assert store_content(store) == store_content(tmp_path / "other.h5")


def test_without_the_cache_shards_and_stored_clips_are_recognised_by_their_content(
    data: Path, tmp_path: Path, engine: Engine
) -> None:
    config, store = extraction_config(data), tmp_path / "s.h5"
    run(config, store, engine)
    (tmp_path / "s.h5.scan").unlink()
    assert run(config, store, engine) == 0


def test_truncated_image_is_found_by_the_scan_and_a_damaged_one_when_it_is_decoded(
    data: Path, tmp_path: Path, engine: Engine
) -> None:
    config, store = extraction_config(data), tmp_path / "s.h5"
    image = data / "Train/Train/2/imgs/003.jpg"
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    (fault,) = unread_scan(config, store).faults
    assert "003.jpg: damaged image" in fault
    png = bytearray(noise_image(7, SIZE, ".png"))
    png[len(png) // 2] ^= 1
    image.write_bytes(png)
    assert unread_scan(config, store).faults == ()
    with pytest.raises(BadInputs, match=r"2/imgs/003\.jpg: damaged image"):
        run(config, store, engine)


def test_start_of_an_image_says_what_the_whole_one_does(tmp_path: Path) -> None:
    for name, content in [("a.jpg", noise_image(1)), ("b.png", noise_image(2, suffix=".png"))]:
        (tmp_path / name).write_bytes(content)
        assert read_start(tmp_path / name) == read_info(content, name)
        (tmp_path / name).write_bytes(content[:-1])
        assert read_start(tmp_path / name) is None
    (tmp_path / "c.jpg").write_bytes(b"")
    assert read_start(tmp_path / "c.jpg") is None


def test_clips_that_are_stored_or_longer_than_a_group_are_read_by_the_scan(
    data: Path, tmp_path: Path, engine: Engine, read: list[str]
) -> None:
    store = tmp_path / "s.h5"
    short = extraction_config(data, shard=4)
    unread_scan(short, store)
    assert sorted(read) == images(data)
    run(extraction_config(data), store, engine)
    shutil.copytree(data / "Train/Train/1", data / "Train/Train/9")
    (tmp_path / "s.h5.scan").unlink()
    read.clear()
    unread_scan(extraction_config(data), store)
    assert sorted(read) == [name for name in images(data) if "/Train/9/" not in name]
