"""Fuzzed files of each kind are read or refused: no traceback, no hang over 20 s, at most 2 GB more memory.

`make test` takes some of each kind, in this process; `make soak` takes 10,000, in processes of their own, since a
library in C may crash.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tests.hostile_formats  # noqa: F401  # which adds kinds
from features.errors import DataError, StoreError
from tests.helpers import ROOT
from tests.hostile_input import KINDS, bounded_memory, check, keras_models, load_libraries

COUNTS = dict.fromkeys(KINDS, 300) | {
    "benchmark_json": 100,
    "archive": 60,
    "image": 150,
    "video": 25,
    "run_folder": 20,
    "toml": 100,
}
SOAK_COUNT = 10_000
MEMORY = 3 << 30  # bytes of a process that has TensorFlow in it, and an input's 2 GB
COUNTS |= {"pth": 300, "keras_file": 12, "weights_h5": 12, "onnx_file": 40, "feature_file": 150, "search_journal": 150}
PACKAGES = {"onnx_file": "onnx", "safetensors_file": "safetensors", "search_journal": "optuna"}  # which are extras


def test_every_kind_is_there() -> None:
    assert len(KINDS) >= 17


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_input_is_read_or_refused(kind: str, tmp_path: Path) -> None:
    pytest.importorskip(PACKAGES.get(kind, "numpy"))
    load_libraries(kind)
    check(kind, 0, tmp_path)  # what is loaded only now is not an input's memory
    with bounded_memory():
        found = {number: text for number in range(COUNTS[kind]) if (text := check(kind, number, tmp_path))}
    assert found == {}


def small_model(tmp_path: Path, **layer: Any) -> Path:
    """A folder with a sound `model.keras`, in whose architecture the last layer is replaced."""
    _, parts, _ = keras_models()
    config = json.loads(parts["config.json"])
    last = config["config"]["layers"][-1]
    if "class_name" in layer:
        layer["config"] = layer.get("config", {})
        if isinstance(layer["config"], dict):
            layer["config"] |= {"name": last["config"]["name"]}
        last |= layer
    else:
        last["config"] |= layer.get("config", {})
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as file:
        for name, data in (parts | {"config.json": json.dumps(config).encode()}).items():
            file.writestr(name, data)
    return tmp_path


def test_a_sound_model_is_loaded(tmp_path: Path) -> None:
    from stage2_temporal.training.keras_models import load_model

    assert load_model(small_model(tmp_path), targets=2).count_params() > 100
    with pytest.raises(DataError, match=r"it puts out \(None, 2\), and the run has 1 targets"):
        load_model(tmp_path, targets=1)


@pytest.mark.parametrize(
    "layer",
    [
        {"class_name": "Lambda", "config": {"function": {"class_name": "__lambda__", "config": {"code": "4wEAAAA="}}}},
        {"class_name": "system", "module": "os", "registered_name": "system"},
        {"class_name": "Popen", "module": "subprocess", "registered_name": "Popen",
        "config": {"args": "touch executed"}},
        {"class_name": "get_file", "module": "keras.utils", "config": {"fname": "executed",
        "origin": "file:///etc/passwd"}},
        {"class_name": "function", "module": "builtins", "config": "eval", "registered_name": "eval"},
        {"class_name": "NoSuchLayer"},
    ],
    ids=lambda layer: str(layer["class_name"]),
)  # fmt: skip
def test_a_model_with_a_gadget_is_refused_and_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: dict[str, Any]
) -> None:
    from stage2_temporal.training.keras_models import load_model

    monkeypatch.chdir(tmp_path)
    before = threading.active_count()
    with pytest.raises(DataError, match=r"model\.keras: cannot be loaded .*Try: train again") as caught:
        load_model(small_model(tmp_path, **layer))
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["model.keras"] and threading.active_count() == before


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        ({"config": {"units": 2**31 - 1}}, "parameters, of which"),
        ({"class_name": "RepeatVector", "config": {"n": 10**9}}, "puts out .None, 1000000000, 4., more than"),
        ({"config": {"units": -3}}, "units"),
    ],
)  # fmt: skip
def test_an_architecture_larger_than_its_weights_is_refused(tmp_path: Path, layer: dict[str, Any], reason: str) -> None:
    from stage2_temporal.training.keras_models import load_model

    folder = small_model(tmp_path, **layer)
    with bounded_memory(), pytest.raises(DataError, match=reason):
        load_model(folder)


@pytest.mark.parametrize(
    "architecture", ["{}", "[]", "null", '"x"', "{", '{"class_name": "Dense", "config": {"units": 3}}']
)
def test_a_top_that_is_no_model_is_refused(architecture: str) -> None:
    from features.store_tables import TopRecord
    from stage2_temporal.training.keras_models import rebuild_top

    with pytest.raises(StoreError, match=r"the store's top cannot be rebuilt \("):
        rebuild_top(TopRecord(architecture, [np.ones(3, np.float32)]))


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_hostile_inputs(kind: str, tmp_path: Path) -> None:
    pytest.importorskip(PACKAGES.get(kind, "numpy"))
    first, found = 0, []
    while first < SOAK_COUNT:
        command = [sys.executable, "-m", "tests.hostile_formats", kind, str(first), str(SOAK_COUNT)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        found += [line for line in lines if "found" in line]
        last = max((line["at"] for line in lines if "at" in line), default=first)
        if done.returncode == 0:
            assert lines[-1]["peak"] * 1024 < MEMORY
            break
        found.append({"number": last, "found": f"ended with {done.returncode}: {done.stderr[-2000:]}"})
        first = last + 10
    assert found == []
