"""Training on small real stores: it learns, repeats itself, stops when told, and says what went wrong."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from features.config import Config
from features.errors import FramebankError
from features.store import Store
from stage2_temporal.data.task import read_task, store_origin
from stage2_temporal.runs import folder as folders
from stage2_temporal.train import evaluate, train
from tests.helpers import write_store
from tests.stage2_helpers import CLIP_LENGTH, MAP_SHAPE, conv_top, drifting_clips, train_config

FLATTEN_LSTM = {"name": "flatten_lstm", "units": 16, "dense": 8, "dropout": 0.5, "activation": "relu"}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    maps, sequences = drifting_clips({"train": 40, "validation": 12, "test": 12})
    return write_store(
        tmp_path_factory.mktemp("s") / "s.h5",
        sequences,
        {"appearance": maps},
        top=conv_top(),
        trunk={"parameters": 1000},
    )


def run(path: Path, to: Path, chosen: Config) -> dict[str, Any]:
    with Store(path) as store:
        train(chosen, store, read_task(chosen, store), to)
    return json.loads((to / "metrics.json").read_text())


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def test_it_learns_and_writes_everything(path: Path, tmp_path: Path) -> None:
    metrics = run(path, tmp_path / "r", train_config(epochs=40))
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == sorted(folders.FILES)
    assert [p.name for p in tmp_path.iterdir()] == ["r"]  # nothing unfinished is left
    assert metrics["splits"]["test"]["model"]["skill"] > 0.8
    assert metrics["splits"]["test"]["constant"]["spread_ratio"] == 0
    assert metrics["no_better_than_constant"] is False
    assert "Better than a constant on the test split" in metrics["verdict"]
    assert {k: v["examples"] for k, v in metrics["splits"].items()} == {"train": 40, "validation": 12, "test": 12}
    assert (metrics["unit"], metrics["trained_backbone"]) == ("m/s", False)
    history = rows(tmp_path / "r" / "history.csv")
    assert len(history) == metrics["epochs"] == 40
    assert min(history, key=lambda r: float(r["val_loss"]))["epoch"] == str(metrics["best_epoch"])
    rmse = metrics["splits"]["validation"]["model"]["rmse"]
    assert rmse == pytest.approx(float(history[metrics["best_epoch"] - 1]["val_rmse"]), rel=1e-4)
    predictions = rows(tmp_path / "r" / "predictions.csv")
    errors = [float(r["ego_speed_pred"]) - float(r["ego_speed_true"]) for r in predictions if r["split"] == "test"]
    assert math.sqrt(np.mean(np.square(errors))) == pytest.approx(metrics["splits"]["test"]["model"]["rmse"])
    assert (predictions[0]["sequence"], predictions[0]["first"], predictions[0]["frame"]) == ("Train/1", "0", "5")


def test_parameters_count_the_trunk(path: Path, tmp_path: Path) -> None:
    parameters = run(path, tmp_path / "r", train_config(epochs=1))["parameters"]
    lstm, dense, output, top = 4 * 16 * (16 + 16 + 1), 17 * 8, 9, 16 * 8 + 4 * 8
    assert parameters["total"] == 1000 + lstm + dense + output + top
    assert parameters["frozen"] == 1000 + 2 * 8  # the batch norm's moving mean and variance


def test_an_unlearnable_target_is_called_no_better_than_a_constant(path: Path, tmp_path: Path) -> None:
    metrics = run(path, tmp_path / "r", train_config(target="velocity", learning_rate=1e-6))
    assert metrics["no_better_than_constant"] is True
    assert metrics["verdict"].startswith("No better than a constant on the test split: the predictions hardly vary")
    assert metrics["target"] == ["vx", "vy"]
    assert set(metrics["splits"]["test"]["model"]["ev"]) == {"near", "medium", "far", "mean"}


def test_velocity_and_position_together(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = run(path, tmp_path / "r", train_config(target="velocity+position", epochs=1))
    assert (metrics["target"], metrics["unit"]) == (["vx", "vy", "x", "y"], None)
    assert metrics["units"] == ["m/s", "m/s", "m", "m"]
    test = metrics["splits"]["test"]
    lines = capsys.readouterr().out.splitlines()
    model = next(line for line in lines if line.startswith("test "))
    ev, ep = ([f"{test['model'][k][d]:.3f}" for d in ("mean", "near", "medium", "far")] for k in ("ev", "ep"))
    assert model.split()[3:5] == ["–", "–"]
    assert model.endswith(f"{ev[0]}: {' '.join(ev[1:])}  {ep[0]}: {' '.join(ep[1:])}")
    x = lines[lines.index(model) + 6]
    assert x.split()[:3] == ["x", "[m]", "model"]
    assert f"{test['model']['components']['x']['rmse']:.3f}" in x
    assert "EP [m²]" in (tmp_path / "r" / "report.html").read_text()


@pytest.mark.parametrize("head", [{}, FLATTEN_LSTM])
def test_same_numbers_twice_and_in_both_modes(path: Path, tmp_path: Path, head: dict[str, Any]) -> None:
    for name, memory in (("a", 4.0), ("b", 4.0), ("streamed", 1e-9)):
        run(path, tmp_path / name, train_config(head, memory_gb=memory))
    contents = [(tmp_path / name / "predictions.csv").read_bytes() for name in ("a", "b", "streamed")]
    assert contents[0] == contents[1] == contents[2]
    losses = [[r["val_loss"] for r in rows(tmp_path / name / "history.csv")] for name in ("a", "streamed")]
    assert losses[0] == losses[1]
    run(path, tmp_path / "other", train_config(head, seed=1))
    assert (tmp_path / "other" / "predictions.csv").read_bytes() != contents[0]


def test_saved_model_answers_in_metres_a_second_without_framebank(path: Path, tmp_path: Path) -> None:
    """Loaded by a fresh process that cannot import framebank, from the run's folder alone."""
    run(path, tmp_path / "r", train_config())
    with Store(path) as store:
        np.save(
            tmp_path / "maps.npy",
            store.read("appearance", np.arange(store.frames)).reshape(-1, CLIP_LENGTH, *MAP_SHAPE),
        )
    script = textwrap.dedent("""
        import importlib.util, keras, numpy as np
        assert importlib.util.find_spec("features") is None and importlib.util.find_spec("stage2_temporal") is None
        model = keras.models.load_model("r/model.keras", safe_mode=True)
        np.save("out.npy", model.predict(np.load("maps.npy"), verbose=0))
    """)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)
    written = [float(r["ego_speed_pred"]) for r in rows(tmp_path / "r" / "predictions.csv")]
    np.testing.assert_allclose(np.load(tmp_path / "out.npy")[:, 0], written, rtol=1e-5)
    assert 10 < np.mean(written) < 25


@pytest.mark.parametrize("standardise", [True, False])
def test_standardise_decides_the_loss_and_the_model(path: Path, tmp_path: Path, standardise: bool) -> None:
    run(path, tmp_path / "r", train_config(standardise=standardise, standardise_inputs=standardise, epochs=1))
    history = rows(tmp_path / "r" / "history.csv")[0]
    with Store(path) as store:
        task = read_task(train_config(), store)
    deviation = float(task.examples.targets[task.splits == "train"].std()) if standardise else 1.0
    assert float(history["val_loss"]) == pytest.approx((float(history["val_rmse"]) / deviation) ** 2, rel=1e-4)
    names = [layer.name for layer in keras.models.load_model(tmp_path / "r" / "model.keras").layers]
    assert ("unit" in names) is standardise
    assert ("standardise" in names) is standardise


def test_last_epoch_is_kept_when_asked(path: Path, tmp_path: Path) -> None:
    metrics = run(path, tmp_path / "r", train_config(restore_best=False, learning_rate=0.3, epochs=6))
    history = rows(tmp_path / "r" / "history.csv")
    assert metrics["best_epoch"] == 6
    rmse = metrics["splits"]["validation"]["model"]["rmse"]
    assert rmse == pytest.approx(float(history[-1]["val_rmse"]), rel=1e-4)


def test_patience(path: Path, tmp_path: Path) -> None:
    metrics = run(path, tmp_path / "r", train_config(patience=1, learning_rate=0.5, epochs=200))
    assert metrics["epochs"] < 200
    assert metrics["epochs"] == metrics["best_epoch"] + 1


def test_weight_decay_changes_the_training(path: Path, tmp_path: Path) -> None:
    for decay in (0.0, 0.1):
        run(path, tmp_path / str(decay), train_config(weight_decay=decay))
    one, other = (rows(tmp_path / d / "history.csv")[-1]["loss"] for d in ("0.0", "0.1"))
    assert one != other


@pytest.mark.skipif(find_spec("tensorboard") is not None, reason="tensorboard is installed")
def test_tensorboard_is_asked_for_by_name(path: Path, tmp_path: Path) -> None:
    with pytest.raises(FramebankError, match="needs the package tensorboard"):
        run(path, tmp_path / "r", train_config(tensorboard=True))


def test_validation_split_holds_out_the_last_part(path: Path, tmp_path: Path) -> None:
    metrics = run(path, tmp_path / "r", train_config(validation_split=0.2))
    assert {k: v["examples"] for k, v in metrics["splits"].items()} == {
        "train": 32,
        "validation": 8,
        "validation-store": 12,
        "test": 12,
    }
    held_out = [r["sequence"] for r in rows(tmp_path / "r" / "predictions.csv") if r["split"] == "validation"]
    assert held_out == [f"Train/{i}" for i in range(33, 41)]


def test_without_validation_the_last_epoch_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    maps, sequences = drifting_clips({"train": 16})
    store = write_store(tmp_path / "s.h5", sequences, {"appearance": maps})
    metrics = run(store, tmp_path / "r", train_config())
    assert metrics["best_epoch"] == 3
    assert "no validation examples" in capsys.readouterr().err
    assert {r["val_loss"] for r in rows(tmp_path / "r" / "history.csv")} == {""}
    assert "on the train split" in metrics["verdict"]


def test_ctrl_c_keeps_the_best_so_far(
    path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real SIGINT, sent from another thread once the third epoch's line is out."""
    said: list[str] = []
    write = sys.stderr.write

    def listen(text: str) -> int:
        said.append(text)
        return write(text)

    monkeypatch.setattr(sys.stderr, "write", listen)

    def interrupt() -> None:
        while "epoch 3/" not in "".join(said):
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    metrics = run(path, tmp_path / "r", train_config(epochs=5000))
    thread.join()
    assert 3 <= metrics["epochs"] < 5000
    assert metrics["interrupted"] is True
    assert f"stopped by Ctrl-C after epoch {metrics['epochs']} of 5000" in "".join(said)
    history = rows(tmp_path / "r" / "history.csv")
    best = min(history, key=lambda r: float(r["val_loss"]))
    assert best["epoch"] == str(metrics["best_epoch"])
    assert metrics["splits"]["validation"]["model"]["rmse"] == pytest.approx(float(best["val_rmse"]), rel=1e-4)
    assert all((tmp_path / "r" / name).is_file() for name in folders.FILES)


def test_a_loss_that_is_no_number_is_named_and_leaves_nothing(path: Path, tmp_path: Path) -> None:
    chosen = train_config(FLATTEN_LSTM, learning_rate=1e25, standardise=False)
    with pytest.raises(FramebankError, match=r"no number any more in epoch \d+.*--train.learning_rate 1e\+24, or"):
        run(path, tmp_path / "r", chosen)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("memory", [4.0, 1e-9])
def test_a_damaged_frame_is_named(path: Path, tmp_path: Path, memory: float) -> None:
    """Streaming reads inside TensorFlow's thread, whose own error would hide it."""
    damaged = tmp_path / "s.h5"
    content = bytearray(path.read_bytes())
    with Store(path) as store:
        needle = store.read("appearance", np.array([7]))[0].tobytes()
    at = content.find(needle[:64])
    assert at > 0
    content[at] ^= 0xFF
    damaged.write_bytes(content)
    with pytest.raises(FramebankError, match=r"s\.h5: damaged.*verify"):
        run(damaged, tmp_path / "r", train_config(memory_gb=memory))
    assert not (tmp_path / "r").exists()


def test_evaluate_gives_the_same_numbers_again(path: Path, tmp_path: Path) -> None:
    first = run(path, tmp_path / "r", train_config())
    before = (tmp_path / "r" / "predictions.csv").read_bytes()
    (tmp_path / "r" / "predictions.csv").write_text("lost")
    with Store(path) as store:
        evaluate(tmp_path / "r", store)
    assert (tmp_path / "r" / "predictions.csv").read_bytes() == before
    assert json.loads((tmp_path / "r" / "metrics.json").read_text()) == first


def test_what_is_trained_already_is_known(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    chosen, other = train_config(epochs=1), train_config(epochs=2)
    with Store(path) as store:
        task = read_task(chosen, store)
        seen = store_origin(store, task, chosen)
        assert folders.choose_run_folder(None, "sample", chosen, seen) == (
            Path("runs/sample-ego_speed-pooled_lstm"),
            False,
        )
        train(chosen, store, task, Path("runs/sample-ego_speed-pooled_lstm"))
    assert folders.choose_run_folder(None, "sample", chosen, seen) == (Path("runs/sample-ego_speed-pooled_lstm"), True)
    assert folders.choose_run_folder(None, "sample", train_config(epochs=1, memory_gb=9), seen)[1] is True
    assert folders.choose_run_folder(None, "sample", other, seen) == (
        Path("runs/sample-ego_speed-pooled_lstm-2"),
        False,
    )
    assert folders.choose_run_folder(None, "sample", chosen, seen | {"examples": "others"})[1] is False
    assert folders.choose_run_folder("mine", "sample", chosen, seen) == (Path("runs/mine"), False)
    metrics = Path("runs/sample-ego_speed-pooled_lstm/metrics.json")
    metrics.write_text(json.dumps(json.loads(metrics.read_text()) | {"interrupted": True}))
    assert folders.choose_run_folder(None, "sample", chosen, seen) == (Path("runs/sample-ego_speed-pooled_lstm"), False)
    Path("runs/precious").mkdir()
    Path("runs/precious/thesis.txt").write_text("mine")
    with pytest.raises(FramebankError, match="not replaced"):
        folders.choose_run_folder("precious", "sample", chosen, seen)


def test_a_failing_run_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "old").write_text("old")
    with pytest.raises(RuntimeError), folders.atomic_folder(tmp_path / "r") as inner:
        (inner / "new").write_text("new")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["r"]
    assert (tmp_path / "r" / "old").exists()
    with folders.atomic_folder(tmp_path / "r") as inner:
        assert inner.name == "r"
        (inner / "new").write_text("new")
    assert [p.name for p in (tmp_path / "r").iterdir()] == ["new"]


def test_a_run_that_finished_meanwhile_keeps_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r"
    with folders.atomic_folder(path) as slow:
        (slow / "who").write_text("slow")
        with folders.atomic_folder(path) as quick:
            (quick / "who").write_text("quick")
    assert [(tmp_path / name / "who").read_text() for name in ("r", "r-2")] == ["quick", "slow"]
    assert "this one is" in capsys.readouterr().err
