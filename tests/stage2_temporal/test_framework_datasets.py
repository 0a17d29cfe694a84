"""A store's examples as data sets of TensorFlow and PyTorch."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import framebank as fb
from features.config import Config
from features.errors import ConfigError
from tests.docs.worked_examples import code_blocks
from tests.helpers import ROOT, write_store
from tests.stage2_helpers import MAP_SHAPE, drifting_clips, train_config


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 clips with two streams; the second is twice the first."""
    maps, sequences = drifting_clips({"train": 40, "validation": 20})
    return write_store(tmp_path_factory.mktemp("store") / "s.h5", sequences, {"appearance": maps, "block": 2 * maps})


def expected(store: Path, config: Config) -> dict[float, tuple[np.ndarray, int]]:
    """Each example's window and group by its target, which is unique."""
    X, y, groups = fb.load_examples(store, config)
    return {float(np.float32(t[0])): (w, int(g)) for t, w, g in zip(y, X.stream("appearance"), groups, strict=True)}


def check(batches: list[dict[str, Any]], store: Path, config: Config) -> None:
    """The batches have every example once, as `load_examples` does."""
    known = expected(store, config)
    rows = [
        (float(t[0]), np.asarray(w), int(g))
        for b in batches
        for w, t, g in zip(b["windows"], b["targets"], b["groups"], strict=True)
    ]
    assert sorted(t for t, _, _ in rows) == sorted(known)
    for target, window, group in rows:
        assert window.dtype == np.float16 and group == known[target][1]
        np.testing.assert_array_equal(window, known[target][0])


@pytest.mark.parametrize("memory_gb", [4.0, 1e-5], ids=["in memory", "read in parts"])
def test_tensorflow_batches_have_every_example_in_another_order_each_epoch(store: Path, memory_gb: float) -> None:
    config = train_config(memory_gb=memory_gb)
    dataset = fb.tf_dataset(store, config)
    assert int(dataset.cardinality()) == 5
    first, second = (list(dataset.as_numpy_iterator()) for _ in range(2))
    check(first, store, config)
    check(second, store, config)
    assert not np.array_equal(first[0]["groups"], second[0]["groups"])
    again = list(fb.tf_dataset(store, config).as_numpy_iterator())
    np.testing.assert_array_equal(first[0]["groups"], again[0]["groups"])  # the seed decides
    in_order = list(fb.tf_dataset(store, config, shuffle=False).as_numpy_iterator())
    assert np.concatenate([b["groups"] for b in in_order]).tolist() == list(range(40))


def test_several_streams_are_a_dictionary(store: Path) -> None:
    batch = next(fb.tf_dataset(store, train_config(), streams=["appearance", "block"]).as_numpy_iterator())
    assert batch["windows"]["block"].shape == (8, 6, *MAP_SHAPE)
    np.testing.assert_array_equal(batch["windows"]["block"], 2 * batch["windows"]["appearance"])


def test_unknown_streams_and_heads_without_one_are_refused(store: Path) -> None:
    with pytest.raises(ConfigError, match="no stream 'maps'"):
        fb.tf_dataset(store, train_config(), streams=["maps"])
    with pytest.raises(ConfigError, match="box_ridge reads no stream"):
        fb.tf_dataset(store, train_config(head={"name": "box_ridge"}))


@pytest.mark.parametrize("memory_gb", [4.0, 1e-5], ids=["in memory", "read in parts"])
def test_pytorch_reads_examples_batches_and_in_workers(store: Path, memory_gb: float) -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler

    config = train_config(memory_gb=memory_gb)
    dataset = fb.torch_dataset(store, config)
    assert isinstance(dataset, torch.utils.data.Dataset) and len(dataset) == 40
    one = dataset[3]
    assert one["windows"].shape == (6, *MAP_SHAPE) and one["windows"].dtype == torch.float16
    assert one["targets"].shape == (1,) and int(one["groups"]) == 3
    assert torch.equal(dataset[-1]["windows"], dataset[[39]]["windows"][0])
    with pytest.raises(IndexError):
        dataset[40]
    sampler = BatchSampler(RandomSampler(dataset), 8, drop_last=False)
    check(list(DataLoader(dataset, sampler=sampler, batch_size=None)), store, config)
    check(list(DataLoader(dataset, batch_size=8, num_workers=2)), store, config)  # forked
    check([pickle.loads(pickle.dumps(dataset))[:]], store, config)  # as a spawned worker gets it
    several = fb.torch_dataset(store, config, streams=["appearance", "block"])
    batch = next(iter(DataLoader(several, batch_size=4)))
    assert torch.equal(batch["windows"]["block"], 2 * batch["windows"]["appearance"])


def test_pytorch_loop_of_the_page_reaches_ridge(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    (block,) = (b for b in code_blocks(ROOT / "docs" / "tables.md") if b.heading == "PyTorch")
    config = train_config()
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "sample.toml").write_text(config.to_toml())
    (tmp_path / "stores").mkdir()
    (tmp_path / "stores" / "sample.h5").symlink_to(store)
    monkeypatch.chdir(tmp_path)
    text = block.text.replace("block3b_add", "appearance").replace("(8, 4)", "(3, 4)").replace("range(20)", "range(60)")
    text += "import sys\nprint(float(skill), 'tensorflow' in sys.modules)\n"
    # in a process of its own: PyTorch's optimisers and TensorFlow bring two versions of LLVM, which abort together
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", text], env=environment, capture_output=True, text=True, check=True)
    skill, tensorflow = done.stdout.split()
    assert tensorflow == "False"
    ridge = fb.heads.Ridge(difference=True, grid=(3, 4))
    X, y, _ = fb.load_examples(store, config)
    X_val, y_val, _ = fb.load_examples(store, config, ["validation"])
    error = ridge.fit(X, y).predict(X_val) - y_val
    assert float(skill) > 1 - np.mean(error**2) / np.mean((y_val - y.mean(axis=0)) ** 2) - 0.02
    assert len([line for line in block.text.splitlines() if line]) == 20


def test_missing_pytorch_names_the_extra(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("features._common.extras.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"framebank\[torch\]"):
        fb.torch_dataset(store, train_config())
