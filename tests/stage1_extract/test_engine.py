"""Engines: which one runs, that its maps are the network's, and how much work it does for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from features._common.types import Image
from features.errors import ConfigError
from features.shards import ShardWriter
from features.store import Store
from stage1_extract.__main__ import main
from stage1_extract.backbone.trunk import Trunk, build_trunk
from stage1_extract.datasets import image_sequence as files
from stage1_extract.datasets import scan
from stage1_extract.engines import openvino
from stage1_extract.engines.engine import Engine, choose_engine, relative_error
from stage1_extract.engines.tensorflow import TensorFlowRunner
from stage1_extract.extract import extract
from stage1_extract.frame_loader import resize_frame
from tests.extraction_helpers import CONFIG, extraction_config, store_content
from tests.helpers import ROOT, write_clips

BATCH = 4
COUNTER = Path("/proc/self/io")


def pixels(count: int) -> Image:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def trunk() -> Trunk:
    return build_trunk(extraction_config(dtype="float32"))


@pytest.fixture(params=["tensorflow", "openvino"])
def name(request: pytest.FixtureRequest) -> str:
    if request.param == "openvino":
        pytest.importorskip("openvino")
    return str(request.param)


@pytest.mark.parametrize(
    ("setting", "precision", "gpus", "openvino", "engine"),
    [
        ("auto", "float32", 0, True, "openvino"),
        ("auto", "bfloat16", 0, True, "openvino"),
        ("auto", "float16", 0, True, "tensorflow"),
        ("auto", "float32", 0, False, "tensorflow"),
        ("auto", "float32", 1, True, "tensorflow"),
        ("tensorflow", "float32", 0, True, "tensorflow"),
        ("openvino", "float32", 2, True, "openvino"),
        ("auto", "int8", 1, True, "openvino"),
        ("auto", "tf32", 1, True, "tensorflow"),
    ],
)
def test_engine_is_chosen_for_the_machine(setting: str, precision: str, gpus: int, openvino: bool, engine: str) -> None:
    assert choose_engine(setting, precision, gpus, openvino) == engine


def test_engines_and_precisions_this_machine_lacks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"not installed.*pip install"):
        choose_engine("openvino", "float32", 0, False)
    with pytest.raises(ConfigError, match=r"float16.*--extract.precision bfloat16"):
        choose_engine("openvino", "float16", 0, True)
    with pytest.raises(ConfigError, match=r"tf32.*--extract.engine tensorflow"):
        choose_engine("openvino", "tf32", 1, True)
    with pytest.raises(ConfigError, match=r"int8.*--extract.engine openvino"):
        choose_engine("tensorflow", "int8", 0, True)
    with pytest.raises(ConfigError, match=r"not installed.*pip install"):
        choose_engine("auto", "int8", 0, False)


def test_bfloat16_on_a_processor_without_it_is_refused(trunk: Trunk, monkeypatch: pytest.MonkeyPatch) -> None:
    class Core:
        def get_property(self, *_: str) -> list[str]:
            return ["INT8", "FP32"]

    monkeypatch.setattr(openvino, "openvino_core", Core)
    with pytest.raises(ConfigError, match=r"got FP32, INT8. Try: --extract.precision float32"):
        openvino.OpenVinoRunner(trunk.model, 4, "bfloat16")


@pytest.mark.skipif(not openvino.openvino_installed(), reason="no OpenVINO")
@pytest.mark.skipif(not COUNTER.exists(), reason="the system does not count the bytes written")
def test_loading_a_network_writes_no_file(trunk: Trunk) -> None:
    def bytes_written() -> int:
        return int(COUNTER.read_text().split()[3])

    before = bytes_written()
    openvino.OpenVinoRunner(trunk.model, BATCH, "float32")
    assert bytes_written() - before < 4096  # names of threads


def test_float32_maps_are_those_of_keras(trunk: Trunk, name: str) -> None:
    engine = Engine(trunk, BATCH, name)
    backbone = keras.applications.MobileNet(include_top=False, weights=None, input_shape=(32, 32, 3), alpha=0.25)
    backbone.set_weights(engine.trunk.backbone.model.get_weights())
    frames = pixels(11)
    x = keras.applications.mobilenet.preprocess_input(frames.astype(np.float32))
    expected = keras.Model(backbone.input, backbone.get_layer("conv_pw_3_relu").output).predict(x, verbose=0)
    np.testing.assert_allclose(engine(frames)["appearance"], expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_a_frames_map_does_not_depend_on_its_batch(trunk: Trunk, name: str) -> None:
    engine, again = (Engine(trunk, BATCH, name) for _ in range(2))
    frames = pixels(4 * BATCH + 3)
    maps = engine(frames)["appearance"]
    assert engine.passes == 5
    assert np.array_equal(maps, again(frames)["appearance"])  # another compilation, other lanes
    for at in (0, 5, 18):
        assert np.array_equal(engine(frames[at : at + 1])["appearance"][0], maps[at])


def test_the_relative_error_is_measured_on_the_first_frames(trunk: Trunk, name: str) -> None:
    engine = Engine(trunk, BATCH, name)
    assert engine.relative_error is None
    engine(pixels(2))
    assert engine.relative_error == 0.0 if name == "tensorflow" else 0 < (engine.relative_error or 0) < 1e-5


def test_bfloat16_has_another_fingerprint_and_a_larger_error(trunk: Trunk, name: str) -> None:
    lower = build_trunk(extraction_config(dtype="float32", precision="bfloat16"))
    assert lower.recipe.fingerprint != trunk.recipe.fingerprint
    engine, exact = Engine(lower, BATCH, name), Engine(trunk, BATCH, "tensorflow")
    try:
        maps = engine(pixels(BATCH))["appearance"]
    except ConfigError as e:
        pytest.skip(str(e))
    assert maps.dtype == np.float32
    assert engine.relative_error == pytest.approx(relative_error(maps, exact(pixels(BATCH))["appearance"]), rel=1e-3)
    assert 1e-4 < engine.relative_error < 0.05
    assert f"bfloat16 (relative error {engine.relative_error:.1e})" in str(engine)


def test_maps_with_a_large_error_are_refused(trunk: Trunk) -> None:
    engine = Engine(trunk, BATCH, "tensorflow")
    engine.runner = Scaled(engine.runner, 1 + 2e-4)  # type: ignore[misc]
    with pytest.raises(ConfigError, match=r"at most 0.0001; got 0.0002. Try: --extract.engine tensorflow"):
        engine(pixels(BATCH))
    engine.passes, engine.runner = 0, Scaled(engine.runner, np.nan)  # type: ignore[misc]
    with pytest.raises(ConfigError, match=r"got nan"):
        engine(pixels(BATCH))


class Scaled:
    """A runner whose maps are scaled by a factor."""

    def __init__(self, runner: Any, factor: float) -> None:
        self.runner, self.batch, self.lanes, self.factor = runner, runner.batch, runner.lanes, factor

    def __call__(self, frames: Image) -> dict[str, NDArray[Any]]:
        return {name: np.asarray(maps * np.float32(self.factor)) for name, maps in self.runner(frames).items()}


def test_openvino_does_not_deadlock_nor_break_ctrl_c_nor_send_usage_data() -> None:
    """In a new interpreter, since each of these depends on what happens first in a process."""
    pytest.importorskip("openvino")
    code = """
import gc, os, signal, sys
import numpy as np
from concurrent.futures import ThreadPoolExecutor
from tests.extraction_helpers import extraction_config
from stage1_extract.backbone.trunk import build_trunk
from stage1_extract.engines.openvino import OpenVinoRunner
model = build_trunk(extraction_config()).model
first = OpenVinoRunner(model, 2, "float32")
sys.setswitchinterval(1e-6)  # every second start used to hang here
with ThreadPoolExecutor(first.lanes) as pool:
    list(pool.map(lambda _: first(np.zeros((2, 32, 32, 3), np.uint8)), range(2 * first.lanes)))
sys.setswitchinterval(5e-3)
second = OpenVinoRunner(model, 1, "float32")
del first; gc.collect()
del second; gc.collect()
assert not sys.modules.get("openvino_telemetry")
try:
    os.kill(os.getpid(), signal.SIGINT)  # used to kill the process
except KeyboardInterrupt:
    sys.exit(7)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=120).returncode == 7


def test_tensorflow_traces_once_for_all_batch_sizes(trunk: Trunk) -> None:
    engine = Engine(trunk, 0, "tensorflow")
    assert engine.batch == 32
    for count in (1, 32, 7, 40):
        assert len(engine(pixels(count))["appearance"]) == count
    assert traces(engine) == 1


def traces(engine: Engine) -> int:
    assert isinstance(engine.runner, TensorFlowRunner)
    return sum(run.experimental_get_tracing_count() for run in engine.runner.replicas)


@pytest.mark.soak
def test_several_devices_share_the_frames() -> None:
    """Two virtual CPUs instead of GPUs: a replica on each, both used, and the maps of a single one."""
    code = f"""
import numpy as np, tensorflow as tf
from concurrent.futures import ThreadPoolExecutor
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from tests.extraction_helpers import extraction_config
from stage1_extract.backbone.trunk import build_trunk
from stage1_extract.engines.tensorflow import TensorFlowRunner
model = build_trunk(extraction_config()).model
frames = np.random.default_rng(0).integers(0, 256, ({4 * BATCH}, 32, 32, 3), dtype=np.uint8)
both = TensorFlowRunner(model, {BATCH}, "float32", "float32", ["/CPU:0", "/CPU:1"])
one = TensorFlowRunner(model, {BATCH}, "float32", "float32", ["/CPU:0"])
assert (both.lanes, one.lanes) == (2, 1)
with ThreadPoolExecutor(both.lanes) as pool:
    maps = [maps["appearance"] for maps in pool.map(both, np.split(frames, 4))]
expected = [one(part)["appearance"] for part in np.split(frames, 4)]
np.testing.assert_array_equal(np.concatenate(maps), np.concatenate(expected))
assert [run.experimental_get_tracing_count() for run in both.replicas] == [1, 1]
devices = [{{v.device[-5:] for v in run.get_concrete_function().captured_inputs}} for run in both.replicas]
assert devices == [{{"CPU:0"}}, {{"CPU:1"}}], devices
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_another_engine_can_continue_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openvino")
    clips, store = write_clips(tmp_path / "data", {"Train": 2}), tmp_path / "s.h5"
    for engine, count in (("openvino", 2), ("tensorflow", 4)):
        write_clips(tmp_path / engine, {"Train": count})
        for new in (tmp_path / engine / "Train/Train").iterdir():
            if not (clips / "Train/Train" / new.name).exists():
                new.rename(clips / "Train/Train" / new.name)
        config = extraction_config(clips, engine=engine, dtype="float32")
        assert extract(config, store, scan(config.data)).extracted == 16
    config = extraction_config(clips, engine="tensorflow", dtype="float32")
    extract(config, tmp_path / "t.h5", scan(config.data))
    with Store(store) as mixed, Store(tmp_path / "t.h5") as pure:
        assert mixed.fingerprint == pure.fingerprint
        of_both, of_one = (s.read("appearance", range(32)) for s in (mixed, pure))
        assert 0 < relative_error(of_both[:16], of_one[:16]) < 1e-5
        np.testing.assert_array_equal(of_both[16:], of_one[16:])
        assert set(mixed.header.trunk["relative_error"]) == {"openvino", "tensorflow"}
    assert main(["info", "--store", str(store)]) == 0
    assert "float32, openvino (relative error" in capsys.readouterr().out


def test_an_extraction_does_no_work_twice(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files opened, frames decoded, batches, traces and writes for 80 frames, counted."""
    clips, opened, decoded, written = write_clips(tmp_path / "data"), [], [], []
    read, decode, write = files.read_file, files.decode_image, ShardWriter.write
    monkeypatch.setattr(files, "read_file", lambda *a: opened.append(a) or read(*a))
    monkeypatch.setattr(files, "decode_image", lambda *a: decoded.append(a) or decode(*a))
    monkeypatch.setattr(ShardWriter, "write", lambda *a: written.append(a) or write(*a))
    config = extraction_config(clips, engine=name, shard=40)
    catalogue, engine = scan(config.data), Engine(build_trunk(config), 8, name)
    assert len(opened) == 80 and not decoded  # for sizes and digests
    assert extract(config, tmp_path / "s.h5", catalogue, engine=engine).extracted == 80
    assert (len(opened) - 80, len(decoded), engine.passes, len(written)) == (80, 80, 10, 2 * 10)  # two streams
    assert name == "openvino" or traces(engine) == 1


def test_batches_go_on_from_one_shard_to_the_next(tmp_path: Path) -> None:
    config = extraction_config(write_clips(tmp_path / "data", {"Train": 5}), motion=False)
    catalogue, engine, stores = scan(config.data), Engine(build_trunk(config), 6, "tensorflow"), []
    for shard in (8, 40):
        stores.append(tmp_path / f"{shard}.h5")
        engine.passes = 0
        extract(config.with_settings({"extract.shard": shard}), stores[-1], catalogue, engine=engine)
        assert engine.passes == 7  # not 10, for 40 frames
    contents = [store_content(store) for store in stores]
    for name in ("frames/appearance", "thumbnails/data", "sequences/id"):
        assert contents[0][name] == contents[1][name]


def test_changed_labels_compile_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = write_clips(tmp_path / "data", {"Train": 2})
    config = extraction_config(clips)
    extract(config, tmp_path / "s.h5", scan(config.data))
    (clips / "Train/Train/1/ego.json").write_text('{"speed": 1.0}')
    engine = Engine(build_trunk(config), 8)
    assert extract(config, tmp_path / "s.h5", scan(config.data), engine=engine).extracted == 0
    assert "runner" not in vars(engine)
    with Store(tmp_path / "s.h5") as store:
        assert len(store.header.trunk["relative_error"]) == 1  # from the first run


def test_the_command_names_the_engine_that_ran(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.toml").write_text(CONFIG.format(data=write_clips(tmp_path / "data", {"Train": 2})))
    where = ["--config", str(tmp_path / "c.toml"), "--store", str(tmp_path / "s.h5")]
    assert main(["extract", *where, "--extract.engine", name]) == 0
    assert f"16 frames extracted by {name} in float32 (relative error" in capsys.readouterr().out


@pytest.mark.parametrize("extras", [False, True])
def test_fast_decoding_gives_the_same_maps_with_and_without_flow_and_tracks(extras: bool, tmp_path: Path) -> None:
    clips = write_clips(tmp_path / "data", {"Train": 2}, size=(256, 128))
    full = extraction_config(clips, tracks=extras, motion=extras)
    fast = full.model_copy(update={"frames": full.frames.model_copy(update={"decode": "fast"})})
    catalogue, engine = scan(fast.data), Engine(build_trunk(fast), 8)
    assert build_trunk(fast).recipe.differences(build_trunk(full).recipe) == ["decode: cv2, not cv2-reduced"]
    extract(fast, tmp_path / "s.h5", catalogue, engine=engine)
    image = cv2.imread(str(clips / "Train/Train/1/imgs/003.jpg"), cv2.IMREAD_REDUCED_COLOR_4)
    assert image.shape == (32, 64, 3)
    with Store(tmp_path / "s.h5") as store:
        assert ("motion" in store.streams) == extras
        np.testing.assert_array_equal(
            store.read("appearance", [2]), engine(resize_frame(image, fast.frames)[None])["appearance"]
        )
