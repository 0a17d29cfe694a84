"""A run's folder: it appears when it is complete, never replaces another one, and a finished run is found again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from features._common.folders import atomic_folder
from features.config import Config
from features.errors import ConfigError, FramebankError
from features.store import Store
from stage2_temporal.data.task import read_task, store_origin
from stage2_temporal.runs.folder import choose_run_folder, run_path
from stage2_temporal.train import train
from tests.helpers import write_store
from tests.stage2_helpers import drifting_clips, train_config

FIRST = Path("runs/sample-ego_speed-ridge")


def test_finished_run_with_the_same_settings_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    maps, sequences = drifting_clips({"train": 10})
    path = write_store(tmp_path / "s.h5", sequences, {"appearance": maps})
    config, other = train_config({"name": "ridge"}), train_config({"name": "ridge", "alpha": 2.0})
    with Store(path) as store:
        task = read_task(config, store)
        origin = store_origin(store, task, config)
        assert choose_run_folder(None, "sample", config, origin) == (FIRST, False)
        train(config, store, task, FIRST, report=False)
    (FIRST / "report.html").touch()
    assert choose_run_folder(None, "sample", config, origin) == (FIRST, True)
    assert choose_run_folder(None, "sample", train_config({"name": "ridge"}, memory_gb=9), origin) == (FIRST, True)
    assert choose_run_folder(None, "sample", other, origin) == (FIRST.with_name(f"{FIRST.name}-2"), False)
    assert choose_run_folder(None, "sample", config, origin | {"examples": "others"})[1] is False
    assert choose_run_folder("mine", "sample", config, origin) == (Path("runs/mine"), False)
    metrics = FIRST / "metrics.json"
    metrics.write_text(json.dumps(json.loads(metrics.read_text()) | {"interrupted": True}))
    assert choose_run_folder(None, "sample", config, origin) == (FIRST, False)


def test_folder_that_is_not_a_run_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/precious").mkdir(parents=True)
    Path("runs/precious/thesis.txt").write_text("mine")
    with pytest.raises(FramebankError, match="not replaced"):
        choose_run_folder("precious", "sample", train_config(), {})


def test_failed_run_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "old").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "r") as temporary:
        (temporary / "new").write_text("new")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["r"]
    assert (tmp_path / "r" / "old").exists()
    with atomic_folder(tmp_path / "r") as temporary:
        assert temporary.name == "r"
        (temporary / "new").write_text("new")
    assert [p.name for p in (tmp_path / "r").iterdir()] == ["new"]


def test_run_finished_in_the_meantime_keeps_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r"
    with atomic_folder(path) as slow:
        (slow / "who").write_text("slow")
        with atomic_folder(path) as quick:
            (quick / "who").write_text("quick")
    assert [(tmp_path / name / "who").read_text() for name in ("r", "r-2")] == ["quick", "slow"]
    assert "r-2" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mine", "runs/heads/mine", "/elsewhere/mine", "./mine", "old/mine"])
def test_run_may_lie_elsewhere_on_purpose(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old/mine").mkdir(parents=True)
    assert run_path(name) == (Path("runs/mine") if name == "mine" else Path(name))


def test_path_that_may_be_meant_as_a_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"--run a/b: neither a name nor a run's folder\. Try: --run b, or \./a/b"):
        run_path("a/b")
    assert run_path(".") == Path()  # which exists, is not a run, and is not replaced


@pytest.mark.parametrize("name", ["..", "../../x", "runs/../x", "./../x", "/home/../x"])
def test_run_does_not_lead_out_of_its_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"\.\. leads out of runs/\. Try: --run /"):
        run_path(name)


@pytest.mark.parametrize("name", ["a\\b", "a\0b", "a\nb", "\x1b[2J", "a\u202eb"])
def test_run_with_a_control_character_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="not a name") as caught:
        run_path(name)
    assert str(caught.value).isprintable()


def test_column_that_looks_like_a_path_stays_in_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = Config().with_target(("../../x", "C:\\y", "z" * 300))
    path, _ = choose_run_folder(None, "sample", config, {})
    assert path.parent == Path("runs") and path.resolve().parent == tmp_path / "runs" and len(path.name) <= 100
