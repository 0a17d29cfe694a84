"""Engines: which one runs, that its numbers are the network's, and how much work it does for them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from features.config import Config
from features.errors import ConfigError
from features.store import Store
from features.store_writer import ShardWriter
from stage1_extract.__main__ import main
from stage1_extract.backbone.trunk import build_trunk
from stage1_extract.datasets import image_sequence as files
from stage1_extract.datasets import scan
from stage1_extract.engines import openvino
from stage1_extract.engines.engine import Engine, choose_engine, relative_error
from stage1_extract.engines.tensorflow import TensorFlowRunner, largest_batch
from stage1_extract.extract import extract
from stage1_extract.frame_loader import resize_frame
from tests.extraction_helpers import CONFIG, extraction_config
from tests.helpers import ROOT, write_clips

BATCH = 4


def config(**extract_settings: object) -> Config:
    return extraction_config(**{"dtype": "float32", **extract_settings})


def pixels(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(params=["tensorflow", "openvino"])
def name(request: pytest.FixtureRequest) -> str:
    if request.param == "openvino":
        pytest.importorskip("openvino")
    return str(request.param)


@pytest.mark.parametrize(
    ("asked", "precision", "gpus", "openvino", "chosen"),
    [
        ("auto", "float32", 0, True, "openvino"),
        ("auto", "bfloat16", 0, True, "openvino"),
        ("auto", "float16", 0, True, "tensorflow"),
        ("auto", "float32", 0, False, "tensorflow"),
        ("auto", "float32", 1, True, "tensorflow"),
        ("tensorflow", "float32", 0, True, "tensorflow"),
        ("openvino", "float32", 2, True, "openvino"),
    ],
)
def test_the_engine_that_suits_the_machine(asked: str, precision: str, gpus: int, openvino: bool, chosen: str) -> None:
    assert choose_engine(asked, precision, gpus, openvino) == chosen


def test_what_this_machine_has_not_got_is_said() -> None:
    with pytest.raises(ConfigError, match=r"not installed.*make setup"):
        choose_engine("openvino", "float32", 0, False)
    with pytest.raises(ConfigError, match=r"float16.*--extract.precision bfloat16"):
        choose_engine("openvino", "float16", 0, True)
    with pytest.raises(ConfigError, match=r"got FP32, INT8. Try: --extract.precision float32"):
        openvino.check_precision("bfloat16", ["INT8", "FP32"])
    openvino.check_precision("bfloat16", ["BF16", "FP32"])


def test_float32_maps_are_those_of_keras(name: str) -> None:
    engine = Engine(build_trunk(config()), BATCH, name)
    backbone = keras.applications.MobileNet(include_top=False, weights=None, input_shape=(32, 32, 3), alpha=0.25)
    backbone.set_weights(engine.trunk.backbone.model.get_weights())
    frames = pixels(11)
    x = keras.applications.mobilenet.preprocess_input(frames.astype(np.float32))
    expected = keras.Model(backbone.input, backbone.get_layer("conv_pw_3_relu").output).predict(x, verbose=0)
    np.testing.assert_allclose(engine(frames), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_a_frames_numbers_depend_on_nothing_else(name: str) -> None:
    engine, again = (Engine(build_trunk(config()), BATCH, name) for _ in range(2))
    frames = pixels(4 * BATCH + 3)
    maps = engine(frames)
    assert engine.passes == 5
    assert np.array_equal(maps, again(frames))  # another compilation, other lanes
    for at in (0, 5, 18):
        assert np.array_equal(engine(frames[at : at + 1])[0], maps[at])


def test_the_error_is_measured_on_the_first_frames(name: str) -> None:
    engine = Engine(build_trunk(config()), BATCH, name)
    assert engine.relative_error is None
    engine(pixels(2))
    assert engine.relative_error == 0.0 if name == "tensorflow" else 0 < (engine.relative_error or 0) < 1e-5


def test_lower_precision_is_what_it_says(name: str) -> None:
    trunk = build_trunk(config(precision="bfloat16"))
    assert trunk.recipe.fingerprint != build_trunk(config()).recipe.fingerprint
    engine, exact = Engine(trunk, BATCH, name), Engine(build_trunk(config()), BATCH, "tensorflow")
    try:
        maps = engine(pixels(BATCH))
    except ConfigError as e:
        pytest.skip(str(e))
    assert maps.dtype == np.float32
    assert engine.relative_error == pytest.approx(relative_error(maps, exact(pixels(BATCH))), rel=1e-3)
    assert 1e-4 < engine.relative_error < 0.05
    assert f"bfloat16 (relative error {engine.relative_error:.1e})" in str(engine)


def test_maps_that_are_off_are_refused(name: str) -> None:
    engine = Engine(build_trunk(config()), BATCH, "openvino" if name == "openvino" else "tensorflow")
    engine.name = "another"  # TensorFlow's own float32 is right by definition
    engine.runner = Scaled(engine.runner, 1 + 2e-4)  # type: ignore[misc]
    with pytest.raises(ConfigError, match=r"at most 0.0001; got 0.0002. Try: --extract.engine tensorflow"):
        engine(pixels(BATCH))
    engine.passes, engine.runner = 0, Scaled(engine.runner, np.nan)  # type: ignore[misc]
    with pytest.raises(ConfigError, match=r"got nan"):
        engine(pixels(BATCH))


class Scaled:
    """A runner whose maps are off by a factor."""

    def __init__(self, runner: Any, factor: float) -> None:
        self.runner, self.batch, self.lanes, self.factor = runner, runner.batch, runner.lanes, factor

    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[Any]:
        return np.asarray(self.runner(frames) * np.float32(self.factor))


def test_openvino_does_not_report_its_use() -> None:
    pytest.importorskip("openvino")
    code = (
        "import sys, numpy, keras\nfrom stage1_extract.engines.openvino import OpenVinoRunner\n"
        "x = keras.Input((4, 4, 3), dtype='uint8')\n"
        "m = keras.Model(x, keras.layers.Conv2D(2, 1)(keras.ops.cast(x, 'float32')))\n"
        "OpenVinoRunner(m, 1, 'float32')(numpy.zeros((1, 4, 4, 3), numpy.uint8))\n"
        "sys.exit(bool(sys.modules.get('openvino_telemetry')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_signal_is_heard_when_engines_have_ended() -> None:
    """In a fresh interpreter: OpenVINO's own way with the stack for signals ended the process at Ctrl-C."""
    pytest.importorskip("openvino")
    code = """
import gc, os, signal, sys; sys.path.insert(0, "tests/stage1_extract")
from test_engine import config
from stage1_extract.engine import build_trunk
from stage1_extract.engine_openvino import OpenVinoRunner
model = build_trunk(config()).model
first, second = (OpenVinoRunner(model, 1, "float32") for _ in range(2))
del first; gc.collect()
del second; gc.collect()
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    sys.exit(7)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 7


def test_first_passes_at_once_do_not_wait_for_each_other() -> None:
    """In a fresh interpreter whose threads change places all the time; it hung in one of two such starts."""
    pytest.importorskip("openvino")
    code = """
import sys; sys.path.insert(0, "tests/stage1_extract")
from test_engine import config, pixels
from stage1_extract.engine import build_trunk
from stage1_extract.engine_openvino import OpenVinoRunner
from concurrent.futures import ThreadPoolExecutor
trunk = build_trunk(config())
runner = OpenVinoRunner(trunk.model, 2, "float32")
sys.setswitchinterval(1e-6)
with ThreadPoolExecutor(runner.lanes) as pool:
    list(pool.map(lambda _: runner(pixels(2)), range(2 * runner.lanes)))
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


@pytest.mark.parametrize(("limit", "found"), [(1, 1), (3, 2), (8, 8), (100, 64), (10**6, 512)])
def test_the_batch_is_as_large_as_memory_admits(limit: int, found: int) -> None:
    assert largest_batch(memory(limit)) == found


def test_memory_for_no_frame_at_all_is_said() -> None:
    with pytest.raises(ConfigError, match="one frame"):
        largest_batch(memory(0))


def memory(limit: int) -> Callable[[int], object]:
    def fits(batch: int) -> None:
        if batch > limit:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM")

    return fits


def test_one_trace_whatever_the_batches() -> None:
    engine = Engine(build_trunk(config()), 0, "tensorflow")
    assert engine.batch == 32
    for count in (1, 32, 7, 40):
        assert len(engine(pixels(count))) == count
    assert isinstance(engine.runner, TensorFlowRunner) and engine.runner.traces == 1


def test_several_devices_share_the_frames() -> None:
    """Two virtual CPUs stand for two GPUs: a replica on each, both used, numbers as on one."""
    code = f"""
import numpy as np, tensorflow as tf
from concurrent.futures import ThreadPoolExecutor
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import sys; sys.path.insert(0, "tests/stage1_extract")
from test_engine import config, pixels
from stage1_extract.engine import build_trunk
from stage1_extract.engine_tensorflow import TensorFlowRunner
model, frames = build_trunk(config()).model, pixels({4 * BATCH})
both = TensorFlowRunner(model, {BATCH}, "float32", "float32", ["/CPU:0", "/CPU:1"])
one = TensorFlowRunner(model, {BATCH}, "float32", "float32", ["/CPU:0"])
assert (both.lanes, one.lanes) == (2, 1)
with ThreadPoolExecutor(both.lanes) as pool:
    maps = list(pool.map(both, np.split(frames, 4)))
np.testing.assert_array_equal(np.concatenate(maps), np.concatenate(list(map(one, np.split(frames, 4)))))
assert [run.experimental_get_tracing_count() for run in both.replicas] == [1, 1]
held = [{{v.device[-5:] for v in run.get_concrete_function().captured_inputs}} for run in both.replicas]
assert held == [{{"CPU:0"}}, {{"CPU:1"}}], held
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_store_begun_by_one_engine_goes_on_with_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openvino")
    clips, store = write_clips(tmp_path / "data", {"Train": 2}), tmp_path / "s.h5"
    for engine, count in (("openvino", 2), ("tensorflow", 4)):
        write_clips(tmp_path / engine, {"Train": count})
        for new in (tmp_path / engine / "Train/Train").iterdir():
            if not (clips / "Train/Train" / new.name).exists():
                new.rename(clips / "Train/Train" / new.name)
        asked = extraction_config(clips, engine=engine, dtype="float32")
        assert extract(asked, store, scan(asked.data)).extracted == 16
    whole = extraction_config(clips, engine="tensorflow", dtype="float32")
    extract(whole, tmp_path / "t.h5", scan(whole.data))
    with Store(store) as mixed, Store(tmp_path / "t.h5") as pure:
        assert mixed.fingerprint == pure.fingerprint
        ours, theirs = (s.read("appearance", range(32)) for s in (mixed, pure))
        assert 0 < relative_error(ours[:16], theirs[:16]) < 1e-5
        np.testing.assert_array_equal(ours[16:], theirs[16:])
        assert set(mixed.header.trunk["relative_error"]) == {"openvino", "tensorflow"}
    assert main(["info", "--store", str(store)]) == 0
    assert "float32, openvino (relative error" in capsys.readouterr().out


def test_the_work_an_extraction_does(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: files opened, frames decoded, passes, traces and writes for 80 frames."""
    clips, opened, decoded, written = write_clips(tmp_path / "data"), [], [], []
    read, decode, write = files.read_file, files.decode_image, ShardWriter.write
    monkeypatch.setattr(files, "read_file", lambda *a: opened.append(a) or read(*a))
    monkeypatch.setattr(files, "decode_image", lambda *a: decoded.append(a) or decode(*a))
    monkeypatch.setattr(ShardWriter, "write", lambda *a: written.append(a) or write(*a))
    asked = extraction_config(clips, engine=name, shard=40)
    catalogue, engine = scan(asked.data), Engine(build_trunk(asked), 8, name)
    assert len(opened) == 80 and not decoded  # for sizes and digests
    assert extract(asked, tmp_path / "s.h5", catalogue, engine=engine).extracted == 80
    assert (len(opened) - 80, len(decoded), engine.passes, len(written)) == (80, 80, 10, 10)
    assert name == "openvino" or engine.runner.traces == 1  # type: ignore[attr-defined]


def test_changed_labels_compile_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = write_clips(tmp_path / "data", {"Train": 2})
    asked = extraction_config(clips)
    extract(asked, tmp_path / "s.h5", scan(asked.data))
    (clips / "Train/Train/1/ego.json").write_text('{"speed": 1.0}')
    engine = Engine(build_trunk(asked), 8)
    assert extract(asked, tmp_path / "s.h5", scan(asked.data), engine=engine).extracted == 0
    assert "runner" not in vars(engine)
    with Store(tmp_path / "s.h5") as store:
        assert len(store.header.trunk["relative_error"]) == 1  # of the run before


def test_the_command_says_what_ran(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.toml").write_text(CONFIG.format(data=write_clips(tmp_path / "data", {"Train": 2})))
    where = ["--config", str(tmp_path / "c.toml"), "--store", str(tmp_path / "s.h5")]
    assert main(["extract", *where, "--extract.engine", name]) == 0
    assert f"16 frames extracted by {name} in float32 (relative error" in capsys.readouterr().out


@pytest.mark.parametrize("extras", [False, True])
def test_fast_decoding_is_another_recipe_whatever_else_is_wanted_of_the_frames(extras: bool, tmp_path: Path) -> None:
    clips = write_clips(tmp_path / "data", {"Train": 2}, size=(256, 128))
    full = extraction_config(clips, tracks=extras, motion=extras)
    fast = full.model_copy(update={"frames": full.frames.model_copy(update={"decode": "fast"})})
    catalogue, engine = scan(fast.data), Engine(build_trunk(fast), 8)
    assert build_trunk(fast).recipe.differences(build_trunk(full).recipe) == ["decode: cv2 against cv2-reduced"]
    extract(fast, tmp_path / "s.h5", catalogue, engine=engine)
    image = cv2.imread(str(clips / "Train/Train/1/imgs/003.jpg"), cv2.IMREAD_REDUCED_COLOR_4)
    assert image.shape == (32, 64, 3)
    with Store(tmp_path / "s.h5") as store:
        assert ("motion" in store.streams) == extras
        np.testing.assert_array_equal(store.read("appearance", [2]), engine(resize_frame(image, fast.frames)[None]))
