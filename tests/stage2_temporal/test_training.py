"""Training runs on small stores: they learn, repeat exactly, can be interrupted, and report what went wrong."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
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
from stage2_temporal.data.task import read_task
from stage2_temporal.evaluation.uncertainty import INTERVALS_FILE, NOVELTY_FILE
from stage2_temporal.runs.card import CARD
from stage2_temporal.runs.folder import FILES
from stage2_temporal.runs.results import read_metrics
from stage2_temporal.runs.tables import metrics_table
from stage2_temporal.train import evaluate, train
from tests.helpers import write_store
from tests.stage2_helpers import CLIP_LENGTH, MAP_SHAPE, conv_top, drifting_clips, train_config

DISTANCES = ("mean", "near", "medium", "far")
FLATTEN_LSTM = {"name": "flatten_lstm", "units": 16, "dense": 8, "dropout": 0.5, "activation": "relu"}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    maps, sequences = drifting_clips({"train": 40, "validation": 12, "test": 12})
    folder = tmp_path_factory.mktemp("s")
    return write_store(folder / "s.h5", sequences, {"appearance": maps}, top=conv_top(), trunk={"parameters": 1000})


def run(path: Path, folder: Path, config: Config, *, report: bool = False) -> dict[str, Any]:
    """Train on a store and return the run's metrics."""
    with Store(path) as store:
        train(config, store, read_task(config, store), folder, report=report)
    return metrics_of(folder)


def metrics_of(folder: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return metrics


@pytest.fixture(scope="module")
def trained(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a small pooled LSTM that has learned ego speed."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    run(path, folder, train_config(epochs=40), report=True)
    return folder


@pytest.fixture(scope="module")
def three_epochs(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs with the default settings of `train_config`."""
    folder = tmp_path_factory.mktemp("runs") / "three_epochs"
    run(path, folder, train_config())
    return folder


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def losses(folder: Path) -> list[tuple[str, str]]:
    return [(row["loss"], row["val_loss"]) for row in rows(folder / "history.csv")]


def test_run_learns_and_writes_all_files(trained: Path) -> None:
    metrics = metrics_of(trained)
    assert sorted(p.name for p in trained.iterdir()) == sorted([*FILES, CARD, INTERVALS_FILE, NOVELTY_FILE])
    assert [p.name for p in trained.parent.iterdir()] == ["trained"]  # no temporary folder is left
    assert metrics["splits"]["test"]["model"]["skill"] > 0.8
    assert metrics["splits"]["test"]["constant"]["spread_ratio"] == 0
    assert metrics["no_better_than_constant"] is False
    assert "Better than a constant on the test split" in metrics["verdict"]
    assert {k: v["examples"] for k, v in metrics["splits"].items()} == {"train": 40, "validation": 12, "test": 12}
    assert (metrics["unit"], metrics["trained_backbone"]) == ("m/s", False)
    history = rows(trained / "history.csv")
    assert len(history) == metrics["epochs"] == 40
    assert min(history, key=lambda r: float(r["val_loss"]))["epoch"] == str(metrics["best_epoch"])
    rmse = metrics["splits"]["validation"]["model"]["rmse"]
    assert rmse == pytest.approx(float(history[metrics["best_epoch"] - 1]["val_rmse"]), rel=1e-4)
    predictions = rows(trained / "predictions.csv")
    errors = [float(r["ego_speed_pred"]) - float(r["ego_speed_true"]) for r in predictions if r["split"] == "test"]
    assert math.sqrt(np.mean(np.square(errors))) == pytest.approx(metrics["splits"]["test"]["model"]["rmse"])
    assert (predictions[0]["sequence"], predictions[0]["first"], predictions[0]["frame"]) == ("Train/1", "0", "5")


def test_parameters_include_the_trunk(trained: Path) -> None:
    parameters = metrics_of(trained)["parameters"]
    lstm, dense, output, top = 4 * 16 * (16 + 16 + 1), 17 * 8, 9, 16 * 8 + 4 * 8
    assert parameters["total"] == 1000 + lstm + dense + output + top
    assert parameters["frozen"] == 1000 + 2 * 8  # the batch norm's moving mean and variance


def test_saved_model_predicts_in_metres_per_second_without_framebank(path: Path, trained: Path, tmp_path: Path) -> None:
    """A fresh process that cannot import framebank loads it from the run's folder."""
    with Store(path) as store:
        maps = store.read("appearance", np.arange(store.frames))
    np.save(tmp_path / "maps.npy", maps.reshape(-1, CLIP_LENGTH, *MAP_SHAPE))
    script = textwrap.dedent(f"""
        import sys
        sys.modules.update(dict.fromkeys(("features", "framebank", "stage1_extract", "stage2_temporal")))
        import keras, numpy as np
        model = keras.models.load_model({str(trained / "model.keras")!r}, safe_mode=True)
        np.save("predictions.npy", model.predict(np.load("maps.npy"), verbose=0))
    """)
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    written = [float(r["ego_speed_pred"]) for r in rows(trained / "predictions.csv")]
    np.testing.assert_allclose(np.load(tmp_path / "predictions.npy")[:, 0], written, rtol=1e-5)
    assert 10 < np.mean(written) < 25


def test_evaluate_writes_the_same_numbers_again(path: Path, trained: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(trained, tmp_path / "r")
    (copy / "predictions.csv").write_text("lost")
    with Store(path) as store:
        evaluate(copy, store)
    assert (copy / "predictions.csv").read_bytes() == (trained / "predictions.csv").read_bytes()
    assert metrics_of(copy) == metrics_of(trained)


def test_same_config_gives_the_same_numbers_in_memory_and_streamed(
    path: Path, three_epochs: Path, tmp_path: Path
) -> None:
    run(path, tmp_path / "flat", train_config(FLATTEN_LSTM))
    for first, head in ((three_epochs, {}), (tmp_path / "flat", FLATTEN_LSTM)):
        streamed = tmp_path / f"streamed_{first.name}"
        run(path, streamed, train_config(head, memory_gb=1e-9))
        assert losses(streamed) == losses(first)
        assert (streamed / "predictions.csv").read_bytes() == (first / "predictions.csv").read_bytes()


def test_seed_and_weight_decay_change_the_training(path: Path, three_epochs: Path, tmp_path: Path) -> None:
    for setting in ({"seed": 1}, {"weight_decay": 0.1}):
        run(path, tmp_path / str(setting), train_config(**setting))
        assert losses(tmp_path / str(setting)) != losses(three_epochs)


def test_standardise_sets_the_unit_of_the_loss_and_the_models_output(
    path: Path, three_epochs: Path, tmp_path: Path
) -> None:
    run(path, tmp_path / "plain", train_config(standardise=False, epochs=1))
    with Store(path) as store:
        task = read_task(train_config(), store)
    deviation = float(task.examples.targets[task.splits == "train"].std())
    for folder, unit, standardised in ((three_epochs, deviation, True), (tmp_path / "plain", 1.0, False)):
        history = rows(folder / "history.csv")[0]
        assert float(history["val_loss"]) == pytest.approx((float(history["val_rmse"]) / unit) ** 2, rel=1e-4)
        layers = [layer.name for layer in keras.models.load_model(folder / "model.keras").layers]
        assert ("unit" in layers) is standardised


def test_unlearnable_target_is_no_better_than_a_constant(path: Path, tmp_path: Path) -> None:
    metrics = run(path, tmp_path / "r", train_config(target="velocity", learning_rate=1e-6, epochs=1))
    assert metrics["no_better_than_constant"] is True
    assert metrics["verdict"].startswith("No better than a constant on the test split: the predictions barely vary")
    assert metrics["target"] == ["vx", "vy"]
    assert set(metrics["splits"]["test"]["model"]["ev"]) == {"near", "medium", "far", "mean"}


def test_velocity_and_position_are_predicted_together(path: Path, tmp_path: Path) -> None:
    metrics = run(path, tmp_path / "r", train_config(target="velocity+position", epochs=1), report=True)
    assert (metrics["target"], metrics["unit"]) == (["vx", "vy", "x", "y"], None)
    assert metrics["units"] == ["m/s", "m/s", "m", "m"]
    scores = metrics["splits"]["test"]["model"]
    table = [line.split() for line in metrics_table(read_metrics(tmp_path / "r")).splitlines()]
    first = next(i for i, words in enumerate(table) if words[:1] == ["test"])
    errors = [
        f"{scores[error][distance]:.3f}" for error in ("ev", "ep") for distance in ("mean", "near", "medium", "far")
    ]
    assert [word.rstrip(":") for word in table[first][-11:-3]] == errors
    assert table[first][3:5] == ["–", "–"]  # no RMSE and MAE over different units
    x = table[first + 6]
    assert x[:3] == ["x", "[m]", "model"]
    assert f"{scores['components']['x']['rmse']:.3f}" in x
    assert "EP [m²]" in (tmp_path / "r" / "report.html").read_text()


def test_last_epoch_is_kept_without_restore_best(path: Path, tmp_path: Path) -> None:
    metrics = run(path, tmp_path / "r", train_config(restore_best=False, learning_rate=0.3, epochs=6))
    history = rows(tmp_path / "r" / "history.csv")
    assert metrics["best_epoch"] == 6
    rmse = metrics["splits"]["validation"]["model"]["rmse"]
    assert rmse == pytest.approx(float(history[-1]["val_rmse"]), rel=1e-4)


def test_patience_stops_training(path: Path, tmp_path: Path) -> None:
    metrics = run(path, tmp_path / "r", train_config(patience=1, learning_rate=0.5, epochs=200))
    assert metrics["epochs"] < 200
    assert metrics["epochs"] == metrics["best_epoch"] + 1


@pytest.mark.skipif(find_spec("tensorboard") is not None, reason="tensorboard is installed")
def test_missing_tensorboard_is_named(path: Path, tmp_path: Path) -> None:
    config = train_config().with_settings({"track.tensorboard": True})
    with pytest.raises(FramebankError, match="needs the package tensorboard"):
        run(path, tmp_path / "r", config)


def test_validation_split_holds_out_the_last_training_examples(path: Path, tmp_path: Path) -> None:
    metrics = run(path, tmp_path / "r", train_config(validation_split=0.2, epochs=1))
    counts = {name: split["examples"] for name, split in metrics["splits"].items()}
    assert counts == {"train": 32, "validation": 8, "validation-store": 12, "test": 12}
    held_out = [r["sequence"] for r in rows(tmp_path / "r" / "predictions.csv") if r["split"] == "validation"]
    assert held_out == [f"Train/{i}" for i in range(33, 41)]


def test_without_validation_examples_the_last_epoch_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    maps, sequences = drifting_clips({"train": 16})
    store = write_store(tmp_path / "s.h5", sequences, {"appearance": maps})
    metrics = run(store, tmp_path / "r", train_config())
    assert metrics["best_epoch"] == 3
    assert "no validation examples" in capsys.readouterr().err
    assert {r["val_loss"] for r in rows(tmp_path / "r" / "history.csv")} == {""}
    assert "on the train split" in metrics["verdict"]


def test_ctrl_c_keeps_the_best_epoch_so_far(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real SIGINT, sent from another thread once the third epoch is logged."""
    logged: list[str] = []
    write = sys.stderr.write

    def record(text: str) -> int:
        logged.append(text)
        return write(text)

    monkeypatch.setattr(sys.stderr, "write", record)

    def interrupt() -> None:
        while "epoch 3/" not in "".join(logged):
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    metrics = run(path, tmp_path / "r", train_config(epochs=5000), report=True)
    thread.join()
    assert 3 <= metrics["epochs"] < 5000
    assert metrics["interrupted"] is True
    assert f"after epoch {metrics['epochs']} of 5000" in "".join(logged)
    history = rows(tmp_path / "r" / "history.csv")
    best = min(history, key=lambda r: float(r["val_loss"]))
    assert best["epoch"] == str(metrics["best_epoch"])
    assert metrics["splits"]["validation"]["model"]["rmse"] == pytest.approx(float(best["val_rmse"]), rel=1e-4)
    assert all((tmp_path / "r" / name).is_file() for name in FILES)


def test_infinite_loss_is_reported_and_leaves_no_run(path: Path, tmp_path: Path) -> None:
    config = train_config(FLATTEN_LSTM, learning_rate=1e25, standardise=False)
    with pytest.raises(FramebankError, match=r"NaN or infinite in epoch \d+.*--train.learning_rate 1e\+24, or"):
        run(path, tmp_path / "r", config)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("memory", [4.0, 1e-9])
def test_damaged_frame_is_named(path: Path, tmp_path: Path, memory: float) -> None:
    """A streamed frame is read inside TensorFlow's thread, whose own error would hide the fault."""
    damaged = tmp_path / "s.h5"
    content = bytearray(path.read_bytes())
    with Store(path) as store:
        needle = store.read("appearance", np.array([7]))[0].tobytes()
    offset = content.find(needle[:64])
    assert offset > 0
    content[offset] ^= 0xFF
    damaged.write_bytes(content)
    with pytest.raises(FramebankError, match=r"s\.h5: damaged.*verify"):
        run(damaged, tmp_path / "r", train_config(memory_gb=memory))
    assert not (tmp_path / "r").exists()
