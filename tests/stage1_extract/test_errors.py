"""Errors in data, configs and stores: one line with the file and a hint, exit status 2, no traceback, no work lost."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import h5py
import pytest

from features.store import Store
from stage1_extract.__main__ import main
from tests.extraction_helpers import CONFIG
from tests.helpers import picture, write_clips

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three intact clips and their config, which requires 8 frames each."""
    write_clips(tmp_path / "data", {"Train": 3})
    text = CONFIG.format(data=tmp_path / "data").replace('target = "velocity"', 'target = "velocity"\nframes = 8')
    (tmp_path / "c.toml").write_text(text)
    return tmp_path


@pytest.fixture
def run(root: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command of stage one: its exit status and stderr, without the progress."""

    def command(*arguments: str, config: str = "c.toml") -> tuple[int, str]:
        capfd.readouterr()
        status = main([*arguments, "--config", str(root / config), "--store", str(root / "s.h5")])
        lines = [line for line in capfd.readouterr().err.splitlines() if "frames [" not in line and line]
        return status, "\n".join(lines)

    return command


def annotation(root: Path, text: str) -> None:
    (root / "data/Train/Train/2/annotation.json").write_text(text)


def frame(root: Path, number: int = 5) -> Path:
    return root / f"data/Train/Train/2/imgs/{number:03d}.jpg"


DAMAGE = {
    "a missing frame": (lambda root: frame(root).unlink(), "imgs: no frame 5"),
    "a truncated JPEG": (lambda root: os.truncate(frame(root), 600), "imgs/005.jpg"),
    "an empty file": (lambda root: frame(root).write_bytes(b""), "imgs/005.jpg"),
    "not an image": (lambda root: frame(root).write_text("hello"), "imgs/005.jpg"),
    "another size": (lambda root: cv2.imwrite(str(frame(root)), picture(1, (60, 48))), "imgs/005.jpg"),
    "7 frames": (lambda root: frame(root, 8).unlink(), "Train/2"),
    "not JSON": (lambda root: annotation(root, "{"), "2/annotation.json"),
    "an empty list": (lambda root: annotation(root, "[]"), "2/annotation.json"),
    "no velocity": (lambda root: annotation(root, '[{"position": [1, 2]}]'), "2/annotation.json"),
    "NaN": (lambda root: annotation(root, '[{"velocity": [NaN, 1]}]'), "2/annotation.json"),
    "a text for a number": (lambda root: annotation(root, '[{"velocity": ["1", 1]}]'), "2/annotation.json"),
    "no annotation": (lambda root: (root / "data/Train/Train/2/annotation.json").unlink(), "2/annotation.json"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_clip_is_named_before_any_work(kind: str, root: Path, run: Run) -> None:
    damage, path = DAMAGE[kind]
    damage(root)
    status, err = run("extract")
    assert status == 2
    assert path in err
    assert len(err.splitlines()) == 1, err
    assert "Try: " in err and "--extract.skip_damaged" in err
    assert not (root / "s.h5").exists()
    status, err = run("extract", "--extract.skip-damaged", "True")  # the rest goes on once the user says so
    assert status == 0, err
    with Store(root / "s.h5") as store:
        assert [s.id for s in store.sequences] == ["Train/1", "Train/3"]


def test_all_damaged_clips_are_named_at_once(root: Path, run: Run) -> None:
    annotation(root, "{")
    frame(root).unlink()
    (root / "data/Train/Train/3/annotation.json").write_text("[]")
    status, err = run("extract")
    assert status == 2
    for path in ("2/annotation.json", "2/imgs: no frame 5", "3/annotation.json"):
        assert path in err
    assert err.count("Try: ") == 1


@pytest.mark.parametrize("kind", ["another recipe", "truncated", "later format", "not a store"])
def test_unusable_store_is_refused_and_left_as_it_is(kind: str, root: Path, run: Run) -> None:
    store = root / "s.h5"
    assert run("extract")[0] == 0
    flags = ["--frames.colour", "bgr", "--backbone.preprocess", "False"] if kind == "another recipe" else []
    if kind == "truncated":
        os.truncate(store, store.stat().st_size // 2)
    elif kind == "later format":
        with h5py.File(store, "r+") as f:
            f.attrs["version"] = 9
    elif kind == "not a store":
        store.write_text("not HDF5")
    before = store.read_bytes()
    status, err = run("extract", *flags)
    assert status == 2
    assert str(store) in err and "Try: " in err and len(err.splitlines()) == 1, err
    assert store.read_bytes() == before


def test_unknown_key_in_a_config_is_named(root: Path, run: Run) -> None:
    (root / "bad.toml").write_text("[backbone]\nunfreze = 4\n")
    status, err = run("extract", config="bad.toml")
    assert status == 2
    assert "bad.toml" in err and "backbone.unfreze" in err and "Try: " in err and len(err.splitlines()) == 1


def test_zip_entry_that_points_outside_is_refused(root: Path, run: Run) -> None:
    with zipfile.ZipFile(root / "data.zip", "w") as z:
        for path in sorted((root / "data").rglob("*.*")):
            z.write(path, path.relative_to(root / "data"))
        z.writestr("Train/Train/1/../../../../evil.jpg", b"x")
    status, err = run("extract", "--data.path", str(root / "data.zip"))
    assert status == 2
    assert "data.zip" in err and "evil.jpg" in err and "Try: " in err and len(err.splitlines()) == 1


def test_zip_and_folder_give_the_same_store(root: Path, run: Run) -> None:
    assert run("extract")[0] == 0
    with zipfile.ZipFile(root / "data.zip", "w") as z:
        for path in sorted((root / "data").rglob("*.*")):
            z.write(path, path.relative_to(root / "data"))
    status, _ = run("extract", "--data.path", str(root / "data.zip"))
    assert status == 0
    before = (root / "s.h5").stat()
    run("extract", "--data.path", str(root / "data.zip"))
    assert (root / "s.h5").stat() == before


@pytest.mark.parametrize("path", ["nowhere", "data.zip"])
def test_missing_or_broken_data_set_is_named(path: str, root: Path, run: Run) -> None:
    if path.endswith(".zip"):
        (root / path).write_bytes(b"PK\x03\x04 and nothing else")
    status, err = run("extract", "--data.path", str(root / path))
    assert status == 2
    assert path in err and "Try: " in err and len(err.splitlines()) == 1, err


def test_internal_error_keeps_its_traceback(root: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("stage1_extract.datasets.scan", broken)
    with pytest.raises(ZeroDivisionError):
        run("extract")


def test_labels_are_read_exactly(root: Path, run: Run) -> None:
    annotation(root, json.dumps([{"velocity": [-1.2287469463, -0.0101401592]}]))
    assert run("extract")[0] == 0
    with Store(root / "s.h5") as store:
        assert dict(store.sequences[1].labels[0].targets) == {"vx": -1.2287469463, "vy": -0.0101401592}
