"""`import framebank`: what it loads, and the steps from clips to predictions."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import GroupKFold, cross_val_score

import framebank as fb
from features.sequences import FrameSequence, Label
from stage1_extract.sample import render_sample_set
from tests.helpers import ROOT, write_store

CONFIG = """
[data]
layout = "sample"
path = "{data}"
target = "ego_speed"
also = ["velocity"]
fps = 10.0
[frames]
width = 64
height = 36
[backbone]
name = "MobileNet"
weights = "random"
cut = "conv_pw_3_relu"
top = false
arguments = {{alpha = 0.25}}
[extract]
motion = true
[head]
name = "ridge"
difference = true
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config that reads a sample data set of a few clips, not rendered yet."""
    small = partial(render_sample_set, train=8, validation=2, test=2)
    monkeypatch.setattr("stage1_extract.sample.render_sample_set", small)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "task.toml"
    path.write_text(CONFIG.format(data=tmp_path / "sample"))
    return path


def test_clips_to_predictions(config: Path) -> None:
    cfg = fb.read_config(config)
    store = fb.extract(cfg, "stores/sample.h5")
    assert store == Path("stores/sample.h5")
    assert (config.parent / "sample" / "Train" / "Train" / "8" / "imgs" / "008.jpg").exists()
    X, y, groups = fb.load_examples("stores/sample.h5", cfg)
    assert len(fb.load_examples(store, cfg, splits=("validation", "test"))[0]) == 4
    with pytest.raises(fb.FramebankError, match=r"mean validation\?.*got valid; expected one of train, v"):
        fb.load_examples(store, cfg, splits=("train", "valid"))
    head = fb.heads.Ridge(difference=True).fit(X, y)
    assert head.predict(X).shape == y.shape == (8, 1)
    scores = cross_val_score(fb.heads.Ridge(difference=True), X, y, groups=groups, cv=GroupKFold(2))
    assert np.isfinite(scores).all()
    with fb.Store(store) as opened:
        assert len(opened.sequences) == 12

    runs = fb.train(cfg, store)
    assert [run.name for run in runs] == ["sample-ego_speed-ridge", "sample-velocity-ridge"]
    assert all((run / "report.html").exists() for run in runs)
    assert fb.train(cfg, store) == runs
    assert fb.train(cfg, store, run="mine") == [Path("runs/mine")]

    result = fb.predict("mine", config.parent / "sample" / "Test" / "Test" / "1" / "imgs", "out.csv", fps=10)
    assert result.files == (Path("out.csv"),) and result.windows == 1
    with pytest.raises(fb.FramebankError, match="not a run"):
        fb.predict("nothing", "sample")


def test_import_loads_no_heavy_library() -> None:
    script = "import sys; before = set(sys.modules); import framebank; print(*sorted(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"tensorflow", "keras", "cv2", "sklearn", "pydantic", "numpy"} & set(loaded.split())


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def test_import_takes_less_than_half_a_second() -> None:
    start = partial(subprocess.run, cwd=ROOT, check=True)
    fastest = min(seconds(lambda: start([sys.executable, "-c", "import framebank"])) for _ in range(3))
    assert fastest < 0.5


def test_public_names_exist_and_others_do_not() -> None:
    for name in fb.__all__:
        assert getattr(fb, name) is not None
    assert set(dir(fb)) == set(fb.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = fb.trian


def test_examples_are_those_of_the_store_they_were_loaded_from(tmp_path: Path) -> None:
    """Whatever replaces it meanwhile; another process, which has only the path, refuses the new one."""
    config = fb.Config.model_validate({"data": {"target": "vx"}, "window": {"length": 2}, "head": {"name": "ridge"}})
    clips = [
        FrameSequence(f"Train/{i}", "train", 4, 10.0, (64, 36), f"{i}", (Label(3, {"vx": float(i)}),)) for i in range(4)
    ]
    maps = np.arange(16 * 6, dtype=np.float32).reshape(16, 1, 2, 3)
    path = write_store(tmp_path / "s.h5", clips, {"appearance": maps})
    X, _, _ = fb.load_examples(path, config)
    others = X.source.reopened(), pickle.loads(pickle.dumps(X.source))
    write_store(path, clips[::-1], {"appearance": maps + 1000})
    rows = np.array([[2, 3], [14, 15]])
    np.testing.assert_array_equal(X.source.windows("appearance", rows), maps[rows])
    for other in others:
        with pytest.raises(fb.FramebankError, match=r"another store, with other frames, has replaced it meanwhile"):
            other.windows("appearance", rows)
