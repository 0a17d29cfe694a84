"""Extraction in int8: the network is quantised once, kept beside the store, and used for all of its frames."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from features.config import Config
from features.errors import ConfigError, StoreError
from features.store import Store
from stage1_extract.__main__ import main
from stage1_extract.backbone.trunk import build_trunk
from stage1_extract.datasets import scan
from stage1_extract.engines import quantisation
from stage1_extract.engines.engine import Engine
from stage1_extract.engines.openvino import read_graph
from stage1_extract.engines.quantised_network import QuantisedNetwork
from stage1_extract.extract import extract
from tests.extraction_helpers import CONFIG, extraction_config, store_content
from tests.helpers import ROOT, write_clips

pytest.importorskip("openvino")
with_nncf = pytest.mark.skipif(find_spec("nncf") is None, reason="NNCF is not installed: the extra int8")


def run(config: Config, store: Path) -> int:
    return extract(config, store, scan(config.data)).extracted


def network_of(store: Path) -> Path:
    return next(store.parent.glob(f"{store.name}.int8-*"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets: the first two clips of `all` are those of `half`."""
    folder = tmp_path_factory.mktemp("int8")
    write_clips(folder / "all", {"Train": 4})
    for clip in ("1", "2"):
        shutil.copytree(folder / "all/Train/Train" / clip, folder / "half/Train/Train" / clip)
    return folder


@pytest.fixture(scope="module")
def store(data: Path) -> Path:
    """A store of `half` in int8, and its network beside it."""
    path = data / "s.h5"
    assert run(extraction_config(data / "half", precision="int8"), path) == 16
    return path


def test_without_nncf_the_error_says_what_to_install(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantisation, "find_spec", lambda name: None if name == "nncf" else find_spec(name))
    with pytest.raises(ConfigError, match=r"needs nncf .*Try: pip install \"framebank\[cpu,int8\]\"") as error:
        run(extraction_config(data / "half", precision="int8"), tmp_path / "s.h5")
    assert "\n" not in str(error.value)


def test_network_with_wrong_maps_is_refused(tmp_path: Path) -> None:
    """The first frames' maps are compared with float32, so that neither the file nor its compilation can be wrong."""
    import openvino

    trunk = build_trunk(extraction_config(precision="int8"))
    frames = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    graph, outputs = read_graph(trunk.model, (2, 32, 32, 3))

    def engine() -> Engine:
        openvino.save_model(graph, tmp_path / "n.xml", compress_to_fp16=False)
        content = [(tmp_path / f"n.{suffix}").read_bytes() for suffix in ("xml", "bin")]
        return Engine(trunk, 2, "openvino", QuantisedNetwork(content[0], content[1], outputs, {}, {}))

    engine()(frames)
    kernels = [n.input_value(1).get_node() for n in graph.get_ordered_ops() if n.get_type_name() == "Convolution"]
    constant = openvino.opset13.constant(-kernels[-1].data)
    kernels[-1].output(0).replace(constant.output(0))
    with pytest.raises(ConfigError, match=r"openvino in int8: maps differ too much .*at most 0\.2; got "):
        engine()(frames)


@with_nncf
def test_recipe_names_the_network_and_the_store_its_error(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store(store) as s:
        assert s.recipe.precision == "int8" and len(s.recipe.quantised) == 64
        assert 1e-3 < s.header.trunk["relative_error"]["openvino"] < 0.1
        assert 1e-3 < s.header.trunk["quantisation_error"]["appearance"] < 0.1
    assert main(["info", "--store", str(store)]) == 0
    assert "int8, quantised network " in capsys.readouterr().out


@with_nncf
def test_clips_added_later_elsewhere_have_the_same_maps_as_in_one_go(
    data: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved, one_go = data / "moved/s.h5", data / "one/s.h5"
    for path, names in ((moved, (store.name, network_of(store).name)), (one_go, (network_of(store).name,))):
        path.parent.mkdir()
        for name in names:
            shutil.copy(store.with_name(name), path.parent)
    assert run(extraction_config(data / "all", precision="int8", threads=1), moved) == 16
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")  # another number of threads, and so of inference streams
    assert run(extraction_config(data / "all", precision="int8", batch=3), one_go) == 32
    a, b = store_content(moved), store_content(one_go)
    for name in ("frames/appearance", "sequences/id"):
        assert a[name] == b[name]


@with_nncf
def test_missing_or_damaged_network_is_refused(data: Path, store: Path, tmp_path: Path) -> None:
    copy, config = tmp_path / "s.h5", extraction_config(data / "all", precision="int8")
    shutil.copy(store, copy)
    with pytest.raises(StoreError, match=r"network is missing.*copy it from where the store was made"):
        run(config, copy)
    kept = network_of(store)
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / kept.name).write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        run(config, copy)


@pytest.mark.soak
@with_nncf
def test_store_in_float32_is_not_continued_in_int8(data: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.h5"
    run(extraction_config(data / "half"), store)
    with pytest.raises(StoreError, match=r"precision: float32, not int8"):
        run(extraction_config(data / "all", precision="int8"), store)
    assert not list(tmp_path.glob("*.int8-*"))  # nothing was quantised in vain


@pytest.mark.soak
@with_nncf
def test_another_process_continues_with_the_same_maps(data: Path, store: Path, tmp_path: Path) -> None:
    for name in (store.name, network_of(store).name):
        shutil.copy(store.with_name(name), tmp_path)
    (tmp_path / "c.toml").write_text(CONFIG.format(data=data / "all") + 'precision = "int8"\n')
    command = ["extract", "--config", str(tmp_path / "c.toml"), "--store", str(tmp_path / "s.h5")]
    environment = os.environ | {"LOKY_MAX_CPU_COUNT": "1"}
    subprocess.run([sys.executable, "-m", "framebank", *command], cwd=ROOT, env=environment, check=True)
    one_go = data / "again/s.h5"
    one_go.parent.mkdir()
    shutil.copy(network_of(store), one_go.parent)
    run(extraction_config(data / "all", precision="int8"), one_go)
    assert store_content(tmp_path / "s.h5")["frames/appearance"] == store_content(one_go)["frames/appearance"]


@pytest.mark.soak
def test_fastest_precision_is_measured_once(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "s.h5"
    options = ["--store", str(store), "--extract.precision", "fastest"]
    for name, measured in (("half", True), ("all", False)):
        (tmp_path / "c.toml").write_text(CONFIG.format(data=data / name))
        assert main(["extract", "--config", str(tmp_path / "c.toml"), *options]) == 0
        with Store(store) as s:
            precision = s.recipe.precision
        line = f"s.h5: the fastest precision is {precision} (frames per second: float32 "
        assert (line in capsys.readouterr().err) == measured
    assert precision in ("float32", "bfloat16", "int8")
    assert len(list(tmp_path.glob("*.int8-*"))) == (precision == "int8")
