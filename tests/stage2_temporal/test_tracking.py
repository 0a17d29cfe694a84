"""Runs in MLflow and TensorBoard, read back by their own readers; nothing leaves this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from features.config import Config
from features.errors import ConfigError
from features.store import Store
from stage2_temporal.data.task import read_task
from stage2_temporal.runs.results import read_metrics
from stage2_temporal.train import train
from tests.helpers import ROOT, write_store
from tests.stage2_helpers import RECIPE_SECTIONS, drifting_clips, train_config

# ends the process if a socket other than a loopback one is opened or a name is looked up
NO_NETWORK = """
import sys
def audit(event, arguments):
    if event in ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        address = arguments[1] if event in ("socket.connect", "socket.bind", "socket.sendto") else arguments[0]
        host = address[0] if isinstance(address, tuple) else address
        if isinstance(address, tuple | str) and str(host) not in ("127.0.0.1", "::1", "localhost"):
            print("network", event, address, file=sys.stderr)
            import os; os._exit(3)
sys.addaudithook(audit)
from framebank.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    maps, sequences = drifting_clips({"train": 14, "validation": 6, "test": 6})
    return write_store(tmp_path_factory.mktemp("store") / "s.h5", sequences, {"appearance": maps})


def tracked(**track: object) -> Config:
    return train_config().with_settings({f"track.{name}": value for name, value in track.items()})


def train_run(store: Path, path: Path, config: Config) -> None:
    with Store(store) as opened:
        train(config, opened, read_task(config, opened), path)


@pytest.mark.soak
def test_mlflow_finds_settings_epochs_and_artifacts_and_nothing_is_sent(store: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    config = tracked(mlflow=True, experiment="sample")
    (tmp_path / "task.toml").write_text(RECIPE_SECTIONS + _sections(config))
    command = ["train", "--config", "task.toml", "--store", str(store), "--run", "a"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")} | {"PYTHONPATH": str(ROOT)}
    # MLflow sends nothing of its own accord where it believes to be in a test
    for name in ("CI", "GITHUB_ACTIONS", "PYTEST_CURRENT_TEST"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", NO_NETWORK, *command], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "not recorded" not in done.stderr
    script = f"""
import json, os
os.environ["MLFLOW_ALLOW_FILE_STORE"] = os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
from mlflow import MlflowClient
client = MlflowClient(tracking_uri={(tmp_path / "mlruns").as_uri()!r})
experiment = client.get_experiment_by_name("sample")
(run,) = client.search_runs([experiment.experiment_id])
curve = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "val_rmse")]
files = [f.path for f in client.list_artifacts(run.info.run_id)]
print(json.dumps([run.info.run_name, run.info.status, run.data.params, run.data.metrics, curve, files]))
"""
    read = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    name, status, parameters, values, curve, files = json.loads(read.stdout.splitlines()[-1])
    metrics = read_metrics(tmp_path / "runs" / "a")
    assert (name, status) == ("a", "FINISHED")
    assert parameters["head.units"] == "16" and parameters["train.learning_rate"] == "0.01"
    assert values["test/skill"] == pytest.approx(metrics.splits["test"].model.skill)
    assert values["test/constant/rmse"] == pytest.approx(metrics.splits["test"].constant.rmse)
    history = (tmp_path / "runs" / "a" / "history.csv").read_text().splitlines()
    column = history[0].split(",").index("val_rmse")
    assert curve == [[i, pytest.approx(float(row.split(",")[column]))] for i, row in enumerate(history[1:], 1)]
    assert {"report.html", "model.keras", "metrics.json", "results.txt", "config.toml"} <= set(files)


def _sections(config: Config) -> str:
    """The sections of a config from [window] to [track], as TOML."""
    import tomlkit

    values = config.model_dump(mode="json", exclude_none=True, include={"data", "window", "head", "train", "track"})
    return tomlkit.dumps(values)


def test_unreachable_server_does_not_cost_the_run(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    train_run(store, tmp_path / "a", tracked(mlflow=True, address="http://127.0.0.1:9"))
    assert (tmp_path / "a" / "report.html").is_file()
    assert "a: not recorded in MLflow" in capsys.readouterr().err


def test_tensorboard_finds_settings_epochs_and_the_table(store: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    train_run(store, tmp_path / "a", tracked(tensorboard=True))
    logs = tmp_path / "a" / "tensorboard"
    events = EventAccumulator(str(logs / "run")).Reload()
    text = {tag: str(tensor_util.make_ndarray(events.Tensors(tag)[0].tensor_proto)) for tag in ("settings", "results")}
    assert "head.units | 16" in text["settings"]
    assert "constant" in text["results"] and "skill" in text["results"]
    assert len(events.Tensors("history/val_rmse")) == 3
    epochs = EventAccumulator(str(logs / "validation")).Reload()  # what is written while it trains
    assert len(epochs.Tensors("epoch_loss")) == 3


def test_missing_packages_name_the_extra(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("features._common.extras.find_spec", lambda name: None)
    for config in (tracked(mlflow=True), tracked(tensorboard=True)):
        with pytest.raises(ConfigError, match=r"framebank\[track\]"):
            train_run(store, tmp_path / "a", config)
    assert not (tmp_path / "a").exists()
