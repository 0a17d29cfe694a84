"""Fine-tuning by several processes of this machine: the same weights as by one."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from features.config import FinetuneConfig, read_run_config
from features.errors import ConfigError
from stage2_temporal.data.batches import Batches
from stage2_temporal.finetune.finetune import FinetuneResult
from stage2_temporal.finetune.workers import join_workers, parse_config
from tests.helpers import ROOT
from tests.image_runs import train_on_images

CLIPS = {"Train": 6, "Validation": 3, "Test": 2}  # a batch of 5, and one of a single window, of which one has none

STEP = """
import sys
import keras, numpy as np
from stage2_temporal.data.batches import Batches
from stage2_temporal.finetune.loop import DiscriminativeAdam, squared_error
from stage2_temporal.finetune.workers import join_workers, train_together
workers = join_workers()
keras.utils.set_random_seed(workers.index if workers else 0)
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(2)])
rng = np.random.default_rng(0)
model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
x, y = rng.normal(size=(13, 3)).astype("float32"), rng.normal(size=(13, 2))
batches = Batches(lambda rows: x[rows], np.arange(13), y, 6)
error = squared_error(1)
model.compile(DiscriminativeAdam(0.1, [1.0, 1.0, 0.1, 0.1]), error, auto_scale_loss=False)
model.optimizer.build(model.trainable_variables)
if workers is None:
    loss = model.fit(batches, shuffle=False, verbose=0).history["loss"][0]
else:
    loss, _ = train_together(workers, model, batches, error, error, lambda: None)
np.savez(sys.argv[1], *model.get_weights(), loss=loss)
"""


def start(arguments: list[str], workers: int, log: Path) -> None:
    """Run the same command in each of some processes, and wait for them."""
    ports = []
    for _ in range(workers):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            ports.append(s.getsockname()[1])
    processes = []
    for index in range(workers):
        task = {"cluster": {"worker": [f"127.0.0.1:{p}" for p in ports]}, "task": {"type": "worker", "index": index}}
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
        environment |= {"TF_CONFIG": json.dumps(task)} if workers > 1 else {}
        command = [sys.executable, *(text.format(index=index) for text in arguments)]
        with log.with_suffix(f".{index}").open("wb") as output:
            processes.append(subprocess.Popen(command, env=environment, cwd=ROOT, stdout=output, stderr=output))
    try:
        for index, process in enumerate(processes):
            assert process.wait(240) == 0, log.with_suffix(f".{index}").read_text()
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    (tmp_path / "step.py").write_text(STEP)
    for count in (1, 2):
        start([str(tmp_path / "step.py"), str(tmp_path / f"{count}-{{index}}.npz")], count, tmp_path / f"{count}.log")
    one, first, second = (dict(np.load(tmp_path / f"{name}.npz")) for name in ("1-0", "2-0", "2-1"))
    for name, values in one.items():
        np.testing.assert_allclose(first[name], values, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(second[name], first[name])


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("views", [0, 2])
def test_two_processes_fine_tune_a_run_as_one_does(views: int, tmp_path: Path) -> None:
    train_on_images(tmp_path / "1", CLIPS, head={"dropout": 0.0})
    shutil.copytree(tmp_path / "1", tmp_path / "2")
    results, weights = [], []
    for count in (1, 2):
        run = tmp_path / f"{count}/runs/r"
        config = read_run_config(run)
        data = config.data.model_copy(update={"path": str(tmp_path / "1/clips")})
        settings = FinetuneConfig(unfreeze=3, epochs=2, batch=5, learning_rate=0.01, views=views)
        (tmp_path / "c.toml").write_text(config.model_copy(update={"data": data, "finetune": settings}).to_toml())
        options = ["--config", str(tmp_path / "c.toml"), "--run", str(run), "--store", str(tmp_path / "1/s.h5")]
        start(["-m", "framebank", "finetune", *options], count, tmp_path / f"{count}.log")
        results.append(FinetuneResult.model_validate_json((run / "finetune.json").read_bytes()))
        weights.append(keras.models.load_model(run / "finetuned.keras").get_weights())
    assert results[1].replicas == 2
    assert results[0].best_epoch == results[1].best_epoch > 0
    for one, two in zip(*weights, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)


def test_each_process_takes_its_part_of_a_batch() -> None:
    batches = Batches(lambda rows: rows, np.arange(7), np.zeros((7, 1)), 4)
    parts = []
    for index in range(3):
        batches.part = (index, 3)
        parts.append([batches[i][0].tolist() for i in range(2)])
    assert parts == [[[0, 1], [4]], [[2], [5]], [[3], [6]]]
    assert [batches.size(i) for i in range(2)] == [4, 3]


def test_without_other_workers_nothing_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    assert join_workers() is None
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}')
    assert join_workers() is None


@pytest.mark.parametrize(
    "text",
    [
        "nothing",
        "[]",
        '{"cluster": {"worker": ["a:1", "b:1"]}}',
        '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}}',
        '{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "worker", "index": 0}}',
    ],
)
def test_wrong_configuration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r'TF_CONFIG.*Try: TF_CONFIG=.\{"cluster"'):
        parse_config(text)
