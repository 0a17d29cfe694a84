"""Fine-tuning: what trains, what stays, what epoch 0 is, and going on after an interruption."""

from __future__ import annotations

import csv
import gc
import json
import shutil
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import stage1_extract.__main__ as stage1
from features.config import FinetuneConfig
from features.errors import ConfigError
from features.store import Store
from stage2_temporal.__main__ import main
from stage2_temporal.evaluation.history import Epoch
from stage2_temporal.finetune import checkpoint, finetune, loop
from stage2_temporal.finetune.augmentation import Augmentation, mirror_signs, mirror_window
from stage2_temporal.finetune.checkpoint import FinetuneState
from stage2_temporal.finetune.image_batches import AHEAD, ImageWindowBatches
from stage2_temporal.finetune.loop import Devices, FinetuneJob, choose_devices, schedule, seed_noise
from stage2_temporal.finetune.unfreeze import backbone_layers, count_unfrozen, unfreeze_layers
from tests.helpers import write_clips

ROOT = Path(__file__).parents[2]
CONFIG = """
[data]
layout = "competition"
path = "clips"
target = "velocity"

[frames]
width = 64
height = 48

%s
[window]
length = 4
end = 0

[head]
units = 4
dense = 4
dropout = 0.5

[train]
epochs = 2
batch = 4

[extract]
dtype = "%s"
"""
TRUNKS = {  # with a top and without; random deep maps are too small for half precision
    "float32": """[backbone]
name = "MobileNet"
weights = "random"
arguments = { alpha = 0.25 }
unfreeze = 3""",
    "float16": """[backbone]
name = "EfficientNetLite0"
cut = "block2b_add"
top = false""",
}
SPEED = ["--finetune.learning_rate", "0.01", "--finetune.threads", "2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `float32` and `float16` with clips, their store in that type and a finished run; not to be changed."""
    root = tmp_path_factory.mktemp("trained")
    for dtype in TRUNKS:
        write_clips(root / dtype / "clips", {"Train": 6, "Validation": 3, "Test": 2})
        (root / dtype / "task.toml").write_text(CONFIG % (TRUNKS[dtype], dtype))
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(root / dtype)
            assert stage1.main(["extract", "--config", "task.toml", "--store", "s.h5"]) == 0
            assert main(["train", "--config", "task.toml", "--store", "s.h5", "--run", "r"]) == 0
    return root


@pytest.fixture
def folder(request: pytest.FixtureRequest, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of one of them to work in."""
    shutil.copytree(trained / getattr(request, "param", "float32"), tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    return tmp_path / "w"


def command(*more: str) -> int:
    return main(["finetune", "--run", "r", "--store", "s.h5", *SPEED, *more])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def fused(folder: Path) -> keras.Model:
    """The run's fused model, built anew."""
    config = finetune.read_config(folder / "runs" / "r" / "config.toml")
    with Store(folder / "s.h5") as store:
        return finetune.fuse_run(folder / "runs" / "r", store, config)[0]


def weights(layer: keras.layers.Layer) -> list[np.ndarray[Any, Any]]:
    return [np.array(w) for w in layer.get_weights()]


def same(some: list[Any], others: list[Any]) -> bool:
    return len(some) == len(others) and all(np.array_equal(a, b) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize("folder", ["float32", pytest.param("float16", marks=pytest.mark.soak)], indirect=True)
def test_the_whole_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = fused(folder)
    capsys.readouterr()
    assert command("--finetune.unfreeze", "9", "--finetune.epochs", "2") == 0
    out, err = capsys.readouterr()
    assert [line.split(",")[0] for line in err.splitlines()] == [f"finetune: epoch {i}/2" for i in range(3)], err
    assert all(word in out for word in ("constant", "two-stage", "fine-tuned", "Fine-tuning"))
    run = folder / "runs" / "r"
    facts, history = json.loads((run / "finetune.json").read_text()), rows(run / "finetune.csv")
    assert [r["epoch"] for r in history] == ["0", "1", "2"]
    assert (history[0]["loss"], history[0]["rmse"]) == ("", "")

    # epoch 0 is what training found for the epoch it kept
    metrics = json.loads((run / "metrics.json").read_text())
    two_stage = metrics["splits"]["validation"]["model"]["rmse"]
    assert float(history[0]["val_rmse"]) == pytest.approx(two_stage, rel=1e-3)
    assert facts["epoch0"]["difference"] <= facts["epoch0"]["tolerated"] <= 1e-4 + facts["epoch0"]["rounding"]
    assert (facts["epoch0"]["rounding"] == 0) == ('dtype = "float32"' in (run / "config.toml").read_text())
    assert facts["splits"]["validation"]["two-stage"] == metrics["splits"]["validation"]["model"]
    losses = [float(r["val_loss"]) for r in history]
    assert facts["best_epoch"] == int(np.argmin(losses))
    assert facts["helped"] == (facts["best_epoch"] > 0)
    assert len(facts["unfrozen"]) == 9

    # frozen layers are bit for bit what they were; the saved model answers as judged
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", "")
        code = (
            "import keras, sys, numpy as np; m = keras.models.load_model('runs/r/finetuned.keras', safe_mode=True);"
            "assert not {'features', 'stage1_extract', 'stage2_temporal'} & set(sys.modules);"
            "print(m.input.shape, m.input.dtype, m.output.shape)"
        )
        loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder)
    assert loaded.stdout.strip() == "(None, 4, 48, 64, 3) uint8 (None, 2)"
    after = keras.models.load_model(run / "finetuned.keras", compile=False)
    assert [layer.name for layer in after.layers] == [layer.name for layer in before.layers]
    pairs = list(zip(backbone_layers(before), backbone_layers(after), strict=True))
    assert all(same(weights(a), weights(b)) for a, b in pairs[:-9])
    if facts["helped"]:
        assert any(not same(weights(a), weights(b)) for a, b in pairs[-9:])
    assert not (run / "finetune.parts").exists()
    assert not list(run.glob(".*"))

    # done is done; the report shows it
    assert command("--finetune.unfreeze", "9", "--finetune.epochs", "2") == 0
    assert "fine-tuned already" in capsys.readouterr().out
    page = (run / "report.html").read_text()
    assert 'id="fine-tuning"' in page and ">fine-tuned<" in page
    assert main(["report", "--run", "r", "--store", "s.h5"]) == 0


def job(folder: Path, **options: Any) -> FinetuneJob:
    """A job on the folder's parts, as the command makes it."""
    run = folder / "runs" / "r"
    config = finetune.read_config(run / "config.toml")
    options = {"learning_rate": 0.01, "threads": 2, "unfreeze": 5} | options
    config = config.model_copy(update={"finetune": FinetuneConfig(**options)})
    store = Store(folder / "s.h5")
    wanted = finetune.read_task(config, store)
    model, _ = finetune.fuse_run(run, store, config)
    count = count_unfrozen([layer.name for layer in backbone_layers(model)], config.finetune.unfreeze)
    read = finetune.reader(store, wanted, config)
    return FinetuneJob(run, store, wanted, config, model, count, Devices("float32", 0), "key", read)


@pytest.mark.parametrize(
    ("folder", "batch_norm"), [("float32", False), ("float16", False), ("float16", True)], indirect=["folder"]
)
def test_what_trains_and_what_stays(folder: Path, batch_norm: bool) -> None:
    work = job(folder, unfreeze=9, batch_norm=batch_norm)
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 48, 64, 3), dtype=np.uint8)
    np.testing.assert_allclose(work.model.predict(frames, verbose=0), work.fused.predict(frames, verbose=0), rtol=1e-5)
    work._epoch0()
    state = FinetuneState("key", [Epoch(0, 1, 1, 9, 9, 0)])
    work._epoch(1, state)
    start, end = work.start, work.model.get_weights()
    work.fused.set_weights(end)
    after = [weights(layer) for layer in backbone_layers(work.fused)]
    work.fused.set_weights(start)
    before = [weights(layer) for layer in backbone_layers(work.fused)]
    layers = backbone_layers(work.fused)
    assert [layer.name for layer in layers][-1] in ("conv_pw_13_relu", "block2b_add")
    assert all(same(a, b) for a, b in zip(before[:-9], after[:-9], strict=True))
    assert sum(len(b) for b in before[:-9]) >= 25
    norms = others = 0
    for layer, a, b in list(zip(layers, before, after, strict=True))[-9:]:
        if isinstance(layer, keras.layers.BatchNormalization):
            norms += 1
            gamma, beta, mean, variance = (not np.array_equal(x, y) for x, y in zip(a, b, strict=True))
            assert gamma and beta
            assert mean == variance == batch_norm
        else:
            others += bool(a) and not same(a, b)
    assert norms == 3  # on both sides of the cut
    assert others == 3
    head = work.fused.get_layer("framebank").get_layer("lstm")
    assert head.count_params() > 0
    assert not same(end[-2:], start[-2:])


def test_dropout_is_active_in_the_head_alone(folder: Path) -> None:
    model = unfreeze_layers(fused(folder), 9)
    frames = np.zeros((1, 4, 48, 64, 3), np.uint8) + np.arange(64, dtype=np.uint8)[:, None]
    noisy = {float(np.asarray(model(frames, training=True)).sum()) for _ in range(8)}
    assert len(noisy) > 1
    head = model.get_layer("framebank").get_layer("dropout")
    head.rate = 0.0
    still = np.asarray(model(frames, training=True))
    np.testing.assert_allclose(still, np.asarray(model(frames, training=False)), rtol=1e-5)


def test_resumed_equals_uninterrupted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("runs/r", "runs/whole")
    flags = ["--store", "s.h5", *SPEED, "--finetune.epochs", "3", "--finetune.unfreeze", "conv_pw_12"]
    assert main(["finetune", "--run", "whole", *flags]) == 0

    epoch = FinetuneJob._epoch

    def stopped(self: FinetuneJob, number: int, state: FinetuneState) -> None:
        if number == 3:
            raise KeyboardInterrupt
        epoch(self, number, state)

    monkeypatch.setattr(FinetuneJob, "_epoch", stopped)
    assert main(["finetune", "--run", "r", *flags]) == 130
    run = folder / "runs" / "r"
    assert not any((run / name).exists() for name in ("finetuned.keras", "finetune.csv", "finetune.json"))
    assert len(checkpoint.read_checkpoint(run / "finetune.parts" / "state.npz").history) == 3  # type: ignore[union-attr]
    monkeypatch.setattr(FinetuneJob, "_epoch", epoch)
    capsys.readouterr()
    assert main(["finetune", "--run", "r", *flags]) == 0
    err = capsys.readouterr().err
    assert "goes on after epoch 2" in err and "epoch 3/3" in err and "epoch 2/3" not in err

    whole = folder / "runs" / "whole"
    columns = ("epoch", "loss", "rmse", "val_loss", "val_rmse")
    one, two = ([[r[c] for c in columns] for r in rows(p / "finetune.csv")] for p in (whole, run))
    assert one == two
    models = [keras.models.load_model(p / "finetuned.keras", compile=False) for p in (whole, run)]
    assert same(models[0].get_weights(), models[1].get_weights())


def test_a_state_of_other_settings_is_begun_anew(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "runs" / "r" / "finetune.parts" / "state.npz"
    checkpoint.save_checkpoint(path, FinetuneState("another", [Epoch(0, 1, 1, 1, 1, 0)]))
    assert command("--finetune.epochs", "1") == 0
    assert "of other settings: begun anew" in capsys.readouterr().err
    path.parent.mkdir()
    path.write_bytes(b"no zip")
    assert command("--finetune.epochs", "2") == 2
    assert "Try: rm -r" in capsys.readouterr().err


def test_what_does_not_help_is_not_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = fused(folder).get_weights()
    assert main(["finetune", "--run", "r", "--store", "s.h5", "--finetune.learning_rate", "30"]) == 0
    assert "Fine-tuning did not help" in capsys.readouterr().out
    run = folder / "runs" / "r"
    facts = json.loads((run / "finetune.json").read_text())
    assert (facts["best_epoch"], facts["helped"]) == (0, False)
    assert same(keras.models.load_model(run / "finetuned.keras", compile=False).get_weights(), before)


def test_epoch_0_of_another_model_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "runs" / "r" / "predictions.csv"
    lines = path.read_text().splitlines()
    head = lines[0].split(",").index("vx_pred")
    at = next(i for i, line in enumerate(lines) if line.startswith("validation,"))
    cells = lines[at].split(",")
    cells[head] = str(float(cells[head]) + 0.1)
    path.write_text("\n".join([*lines[:at], ",".join(cells), *lines[at + 1 :]]))
    assert command() == 2
    assert "epoch 0 is not the two stages' result" in capsys.readouterr().err
    assert not (folder / "runs" / "r" / "finetuned.keras").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--finetune.unfreeze conv_pw_99", "no such layer to unfreeze from"),
        ("--finetune.unfreeze 86", "expected 0 to 85 layers; got 86"),
        ("--head.units 5 --data.target ego_speed", "data.target, head.units: the run was trained with another value"),
        ("--data.path nowhere", "nowhere"),
    ],
)
def test_what_the_user_can_mend(folder: Path, capsys: pytest.CaptureFixture[str], flags: str, says: str) -> None:
    assert main(["finetune", "--run", "r", "--store", "s.h5", *flags.split()]) == 2
    said = capsys.readouterr().err
    assert says in said and "Try: " in said and len(said.splitlines()) == 1, said
    assert not list((folder / "runs" / "r").glob("finetune*"))


def test_images_that_are_gone_are_all_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(folder / "clips" / "Train" / "Train" / "2")
    (folder / "clips" / "Validation" / "Validation" / "1" / "imgs" / "003.jpg").write_bytes(b"")
    assert command() == 2
    said = capsys.readouterr().err
    assert "Train/2 is gone" in said and "Validation/1 is gone or damaged" in said and "Try: " in said


def test_an_image_that_goes_while_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = ImageWindowBatches.begin

    def gone(self: ImageWindowBatches, epoch: int) -> None:
        begin(self, epoch)
        (folder / "clips" / "Train" / "Train" / "2" / "imgs" / "008.jpg").write_bytes(b"\xff\xd8 cut")

    monkeypatch.setattr(ImageWindowBatches, "begin", gone)
    assert command() == 2
    assert "008.jpg" in capsys.readouterr().err


def test_counting_layers() -> None:
    names = ["a", "b", "c"]
    assert [count_unfrozen(names, n) for n in (0, 2, 3, "all", "a", "c")] == [0, 2, 3, 3, 3, 1]
    with pytest.raises(ConfigError, match="expected 0 to 3 layers; got 4"):
        count_unfrozen(names, 4)
    with pytest.raises(ConfigError, match=r"e\.g\. b"):
        count_unfrozen(names, "B")


def test_a_flip_mirrors_pixels_and_negates_vy() -> None:
    rng = np.random.default_rng(0)
    window = rng.integers(0, 256, (3, 4, 6, 3), dtype=np.uint8)
    kept = window.copy()
    targets = np.array([2.0, -3.0], np.float32)
    flip = Augmentation(True, 0.0, 0.0, mirror_signs(("vx", "vy")) or ())
    drawn = [flip(window, targets, np.random.default_rng(s)) for s in range(40)]
    flipped = [(w, t) for w, t in drawn if not np.array_equal(w, window)]
    assert 8 < len(flipped) < 32
    for w, t in flipped:
        np.testing.assert_array_equal(w, window[:, :, ::-1])
        assert t.tolist() == [2.0, 3.0]
    assert all(t.tolist() == [2.0, -3.0] for w, t in drawn if np.array_equal(w, window))
    np.testing.assert_array_equal(mirror_window(mirror_window(window)), window)
    np.testing.assert_array_equal(window, kept)
    assert mirror_signs(("x", "y")) == (1, -1) and mirror_signs(("ego_speed",)) == (1,)
    assert mirror_signs(("vx", "distance")) is None


def test_brightness_and_contrast_are_the_same_for_all_frames_and_leave_labels() -> None:
    frame = np.random.default_rng(1).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    window, targets = np.stack([frame] * 3), np.array([2.0, -3.0], np.float32)
    light = Augmentation(False, 0.2, 0.2, (1.0, -1.0))
    different = 0
    for s in range(10):
        w, t = light(window, targets, np.random.default_rng(s))
        assert t.tolist() == [2.0, -3.0] and w.dtype == np.uint8
        assert all(np.array_equal(w[0], other) for other in w[1:])
        levels = w[0].ravel()[np.argsort(frame.ravel(), kind="stable")].astype(int)
        assert (np.diff(levels) >= 0).all()  # monotonic: brighter stays brighter
        different += not np.array_equal(w, window)
    assert different == 10


def test_unknown_columns_are_not_flipped_and_it_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    drawn = loop.augmentation(FinetuneConfig(), ("distance",))
    assert not drawn.flip and drawn.brightness == 0.1
    assert capsys.readouterr().err == "finetune: no flip, what it does to distance is not known\n"
    assert loop.augmentation(FinetuneConfig(), ("vx", "vy")).flip
    assert capsys.readouterr().err == ""


def test_windows_follow_seed_and_epoch_alone() -> None:
    frames = np.random.default_rng(2).integers(0, 256, (10, 2, 4, 4, 3), dtype=np.uint8)
    targets = np.arange(10.0)[:, None]

    def batches(epoch: int) -> list[Any]:
        light = Augmentation(True, 0.1, 0.1, (1.0,))
        windows = ImageWindowBatches(
            lambda i: frames[i], np.arange(10), targets, 4, threads=1, seed=3, augmentation=light
        )
        windows.begin(epoch)
        return [windows[i] for i in range(len(windows))]

    one, two, three = batches(1), batches(1), batches(2)
    assert [len(b[0]) for b in one] == [4, 4, 2]
    assert all(same(list(a), list(b)) for a, b in zip(one, two, strict=True))
    assert not all(same(list(a), list(b)) for a, b in zip(one, three, strict=True))
    assert sorted(np.concatenate([b[1] for b in three]).ravel().tolist()) == list(range(10))
    assert len(ImageWindowBatches(lambda i: frames[i], np.arange(10), targets, 4, whole=True)) == 2


def test_memory_stays_flat() -> None:
    """However slow the network, no more windows live than the queue and the threads may hold."""
    threads, batch, count = 2, 2, 120
    lock, alive, most, decoded = threading.Lock(), 0, 0, 0

    class Frames(np.ndarray[Any, Any]):
        """Can be watched."""

    def gone() -> None:
        nonlocal alive
        with lock:
            alive -= 1

    def read(index: int) -> Any:
        nonlocal alive, most, decoded
        window = np.full((2, 4, 4, 3), index, np.uint8).view(Frames)
        weakref.finalize(window, gone)
        with lock:
            alive, decoded = alive + 1, decoded + 1
            most = max(most, alive)
        return window

    windows = ImageWindowBatches(read, np.arange(count), np.zeros((count, 1)), batch, threads=threads, seed=0)
    inputs = keras.Input((2, 4, 4, 3))
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(inputs)))
    model.compile("sgd", "mse")
    ahead: list[int] = []

    def slow(step: int, logs: Any) -> None:
        time.sleep(0.01)
        ahead.append(decoded // batch - step)

    model.fit(windows, shuffle=False, verbose=0, callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=slow)])
    gc.collect()
    assert len(ahead) == count // batch
    # waiting, at work, in TensorFlow's hands, and the two that Keras looks at first
    assert max(ahead) <= AHEAD * threads + threads + 2 + 4
    assert most <= 2 * batch * threads
    assert alive == 0


def test_the_learning_rate_rises_then_falls() -> None:
    rate = schedule(FinetuneConfig(learning_rate=1e-3, warmup=0.2), 50)
    values = [float(rate(step)) for step in range(51)]
    assert 0 < values[0] < 2e-4
    assert (np.diff(values[:11]) > 0).all()
    assert values[10] == pytest.approx(1e-3)
    assert (np.diff(values[10:]) < 0).all()
    assert values[50] == pytest.approx(0, abs=1e-9)
    assert float(schedule(FinetuneConfig(learning_rate=1e-3, warmup=0.0), 50)(0)) == pytest.approx(1e-3)


def test_devices() -> None:
    assert choose_devices([]) == Devices("float32", 0)
    assert choose_devices([(8, 6)]) == Devices("mixed_float16", 1)
    assert choose_devices([(6, 1)]) == Devices("float32", 1)
    assert choose_devices([(8, 0), (8, 0)]) == Devices("mixed_float16", 2)


def test_mixed_precision_copy(folder: Path) -> None:
    whole = fused(folder)
    model = unfreeze_layers(whole, 3, policy="mixed_float16")
    frames = np.random.default_rng(0).integers(0, 256, (1, 4, 48, 64, 3), dtype=np.uint8)
    assert {w.dtype for w in model.get_weights()} == {np.dtype("float32")}
    assert model.output.dtype == "float32"
    assert (
        next(layer for layer in backbone_layers(model) if isinstance(layer, keras.layers.Conv2D)).compute_dtype
        == "float16"
    )
    exact, mixed = whole.predict(frames, verbose=0), model.predict(frames, verbose=0)
    assert not np.array_equal(exact, mixed)
    np.testing.assert_allclose(mixed, exact, atol=0.02 * float(np.abs(exact).max()))


def test_seeded_noise(folder: Path) -> None:
    model = unfreeze_layers(fused(folder), 3)
    frames = np.zeros((1, 4, 48, 64, 3), np.uint8)

    def draw(epoch: int) -> list[Any]:
        seed_noise(model, 0, epoch)
        return [np.asarray(model(frames, training=True)) for _ in range(6)]

    assert same(draw(1), draw(1))
    assert not same(draw(1), draw(2))
