"""Fine-tuning: which weights train, epoch 0, resuming after an interruption, and its errors."""

from __future__ import annotations

import gc
import json
import shutil
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from features.config import FinetuneConfig
from features.errors import BadInputs, ConfigError, DataError, FramebankError, StoreError
from features.store import Store
from stage1_extract.backbone.trunk import build_trunk
from stage2_temporal.__main__ import main
from stage2_temporal.evaluation.history import Epoch
from stage2_temporal.finetune.augmentation import QUEUED_BATCHES, ImageWindowBatches, make_augmentation
from stage2_temporal.finetune.checkpoint import FinetuneState, read_state, save_state
from stage2_temporal.finetune.finetune import finetune
from stage2_temporal.finetune.loop import AveragingAdam, choose_policy, learning_rate_schedule, seed_dropout
from stage2_temporal.finetune.unfreeze import backbone_layers, count_unfrozen, unfreeze_layers
from stage2_temporal.fused.fuse import build_fused_model
from tests.finetune_runs import make_job, run_config, run_finetune
from tests.helpers import picture
from tests.image_runs import EARLY_CUT, WITH_TOP, image_config, read_rows, train_on_images
from tests.stage2_helpers import build_model

CLIPS = {"Train": 6, "Validation": 3, "Test": 2}
FRAMES = np.stack([[picture(10 * i + k) for k in range(4)] for i in range(2)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with a store in half precision and a run whose fused model is small; not to be changed."""
    root = tmp_path_factory.mktemp("trained")
    train_on_images(root, CLIPS, extract={"dtype": "float16"})
    return root


def equal(some: list[Any], others: list[Any]) -> bool:
    return len(some) == len(others) and all(np.array_equal(a, b) for a, b in zip(some, others, strict=True))


def test_command_fine_tunes_the_last_layers_and_writes_scores(
    folder: Path, fused: keras.Model, capsys: pytest.CaptureFixture[str]
) -> None:
    run = folder / "runs" / "r"
    command = ["finetune", "--run", str(run), "--store", str(folder / "s.h5"), "--data.path", str(folder / "clips")]
    command += ["--finetune.learning_rate", "0.01", "--finetune.unfreeze", "9", "--finetune.epochs", "2"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    steps = [*(f"finetune: epoch {i}/2" for i in range(3)), "finetune: averaged weights"]
    assert [line.split(",")[0] for line in err.splitlines()] == steps, err
    assert all(word in out for word in ("constant", "two-stage", "fine-tuned", "Fine-tuning"))
    facts, history = json.loads((run / "finetune.json").read_text()), read_rows(run / "finetune.csv")
    assert [r["epoch"] for r in history] == ["0", "1", "2", "3"]
    assert (history[0]["loss"], history[0]["rmse"]) == ("", "")

    # epoch 0 has the two stages' predictions, but for what the store's half precision changed
    metrics = json.loads((run / "metrics.json").read_text())
    two_stages = metrics["splits"]["validation"]["model"]
    assert float(history[0]["val_rmse"]) == pytest.approx(two_stages["rmse"], rel=1e-2)
    assert facts["epoch0"]["difference"] <= facts["epoch0"]["tolerated"] == 1e-4 + facts["epoch0"]["rounding"]
    assert facts["epoch0"]["rounding"] > 0
    assert facts["splits"]["validation"]["two-stage"] == two_stages
    losses = [float(r["val_loss"]) for r in history]
    assert facts["best_epoch"] == (3 if losses[3] < losses[0] else 0)
    assert facts["helped"] == (facts["best_epoch"] > 0)
    assert len(facts["unfrozen"]) == 9

    # in the saved model, frozen layers are bit for bit what they were
    after = keras.models.load_model(run / "finetuned.keras", compile=False, safe_mode=True)
    pairs = list(zip(backbone_layers(fused), backbone_layers(after), strict=True))
    changed = [not equal(a.get_weights(), b.get_weights()) for a, b in pairs]
    assert not any(changed[:-9]) and any(changed[-9:]) == facts["helped"]
    assert not (run / "finetune.parts").exists() and not list(run.glob(".*"))

    # the same command does nothing more; the report shows the result
    assert main(command) == 0
    assert "already fine-tuned" in capsys.readouterr().err
    page = (run / "report.html").read_text()
    assert 'id="fine-tuning"' in page and ">fine-tuned<" in page


@pytest.mark.parametrize(("backbone", "batch_norm"), [(WITH_TOP, False), (EARLY_CUT, True)])
def test_unfrozen_layers_train_and_frozen_ones_stay(backbone: dict[str, Any], batch_norm: bool) -> None:
    """With a top, layers on both sides of the cut train."""
    keras.utils.set_random_seed(0)
    config = image_config(Path("unused"), backbone=backbone, head={"dense": 0})  # a small relu layer may be dead
    trunk = build_trunk(config)
    stage_two = build_model((4, *trunk.streams["appearance"].shape), config.head, 2, top=trunk.top())
    fused = build_fused_model(trunk.model, stage_two)
    for layer in backbone_layers(fused):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.gamma.assign(4 * layer.gamma)  # else random deep maps are of size 1e-17
    model = unfreeze_layers(fused, 9, batch_norm=batch_norm)
    np.testing.assert_allclose(model.predict(FRAMES, verbose=0), fused.predict(FRAMES, verbose=0), rtol=1e-5)
    start = model.get_weights()
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model.fit(FRAMES, np.ones((2, 2)), verbose=0)
    trained, layers = model.get_weights(), backbone_layers(fused)

    def layer_weights(values: list[Any]) -> list[list[Any]]:
        fused.set_weights(values)
        return [[np.array(w) for w in layer.get_weights()] for layer in layers]

    after, before = layer_weights(trained), layer_weights(start)
    changed = [
        [not np.array_equal(x, y) for x, y in zip(a, b, strict=True)] for a, b in zip(before, after, strict=True)
    ]
    assert not any(any(weights) for weights in changed[:-9]) and sum(len(w) for w in before[:-9]) > 0
    norms = [c for c, x in zip(changed, layers, strict=True) if isinstance(x, keras.layers.BatchNormalization)]
    assert norms[-3:] == [[True, True, batch_norm, batch_norm]] * 3  # scale, offset, mean, variance
    assert sum(len(weights) == 1 and weights[0] for weights in changed[-9:]) == 3  # convolutions
    assert not equal(trained[-2:], start[-2:])  # the head


def test_only_the_head_drops_out(fused: keras.Model) -> None:
    model = unfreeze_layers(fused, 9)
    assert len({float(np.asarray(model(FRAMES, training=True)).sum()) for _ in range(8)}) > 1
    model.get_layer("framebank").get_layer("dropout").rate = 0.0
    np.testing.assert_allclose(model(FRAMES, training=True), model(FRAMES, training=False), rtol=1e-5)


def test_dropout_repeats_with_seed_and_epoch(fused: keras.Model) -> None:
    model = unfreeze_layers(fused, 3)

    def draw(epoch: int) -> list[Any]:
        seed_dropout(model, 0, epoch)
        return [np.asarray(model(FRAMES, training=True)) for _ in range(6)]

    assert equal(draw(1), draw(1))
    assert not equal(draw(1), draw(2))


def test_mixed_precision_copy_keeps_float32_weights_and_head(fused: keras.Model) -> None:
    model = unfreeze_layers(fused, 3, policy="mixed_float16")
    assert {w.dtype for w in model.get_weights()} == {np.dtype("float32")}
    assert model.output.dtype == "float32"
    convolution = next(layer for layer in backbone_layers(model) if isinstance(layer, keras.layers.Conv2D))
    assert convolution.compute_dtype == "float16"
    exact, mixed = fused.predict(FRAMES, verbose=0), model.predict(FRAMES, verbose=0)
    assert not np.array_equal(exact, mixed)
    np.testing.assert_allclose(mixed, exact, atol=0.02 * float(np.abs(exact).max()))


def test_resumed_equals_uninterrupted(
    folder: Path, fused: keras.Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The average of the weights too, to which the steps before the interruption belong."""
    shutil.copytree(folder / "runs" / "r", folder / "runs" / "uninterrupted")
    options = {"epochs": 3, "unfreeze": "conv_pw_2"}
    expected = make_job(folder, fused, "uninterrupted", **options)
    history = expected.train().history
    weights = expected.model.get_weights()

    begin = ImageWindowBatches.begin

    def interrupt(self: ImageWindowBatches, epoch: int) -> None:
        if epoch == 3:
            raise KeyboardInterrupt
        begin(self, epoch)

    monkeypatch.setattr(ImageWindowBatches, "begin", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_job(folder, fused, **options).train()
    state = read_state(folder / "runs" / "r" / "finetune.parts", "key")
    assert state is not None and len(state.history) == 3
    files = {p.name for p in (folder / "runs" / "r" / "finetune.parts").iterdir()}
    assert files == {"state.json", "epoch2.weights.h5"}
    monkeypatch.setattr(ImageWindowBatches, "begin", begin)
    capsys.readouterr()
    resumed = make_job(folder, fused, **options)
    resumed_history = resumed.train().history
    err = capsys.readouterr().err
    assert "resuming after epoch 2" in err and "epoch 3/3" in err and "epoch 2/3" not in err

    histories = [[replace(row, seconds=0.0) for row in h] for h in (history, resumed_history)]
    assert repr(histories[0]) == repr(histories[1])  # as text, because NaN differs from itself
    assert equal(weights, resumed.model.get_weights())


def test_weights_of_all_steps_are_averaged_at_the_end() -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    optimiser = AveragingAdam(0.1, [1.0, 0.5], averaged_steps=4)
    model.compile(optimiser, "mse")
    x, averages = np.random.default_rng(0).normal(size=(8, 3)), None
    for _ in range(6):
        before = model.get_weights()
        model.fit(x, x.sum(axis=1), batch_size=8, verbose=0)
        weights = model.get_weights()
        moved = [float(np.abs(a - b).max()) for a, b in zip(weights, before, strict=True)]
        assert moved[0] > 0.02  # the average would hardly move
        averages = weights if averages is None else [(3 * a + w) / 4 for a, w in zip(averages, weights, strict=True)]
    optimiser.average_weights(model.trainable_variables)
    assert averages is not None
    for averaged, expected in zip(model.get_weights(), averages, strict=True):
        np.testing.assert_allclose(averaged, expected, rtol=1e-5)


def test_worse_results_are_not_kept(folder: Path, fused: keras.Model, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder / "runs" / "r"
    state = FinetuneState(key="another key", facts={}, history=[Epoch(0, 1, 1, 1, 1, 0)])
    save_state(run / "finetune.parts", state, fused)
    result = run_finetune(folder, learning_rate=30, epochs=1)
    assert "saved with other settings" in capsys.readouterr().err
    assert (result.best_epoch, result.helped) == (0, False)
    assert "Fine-tuning did not help" in result.verdict
    tuned = keras.models.load_model(run / "finetuned.keras", compile=False)
    assert equal(tuned.get_weights(), fused.get_weights())


def test_damaged_state_is_refused(folder: Path, fused: keras.Model) -> None:
    assert read_state(folder / "no folder", "key") is None
    parts = folder / "runs" / "r" / "finetune.parts"
    row = Epoch(0, 1, 1, 1, 1, 0)
    save_state(parts, FinetuneState(key="key", facts={}, history=[row, replace(row, epoch=1)]), fused)
    (parts / "epoch1.weights.h5").write_bytes(b"no weights")
    with pytest.raises(DataError, match=r"Try: rm -r"):
        make_job(folder, fused).train()
    (parts / "state.json").write_bytes(b"no state")
    with pytest.raises(DataError, match=r"Try: rm -r"):
        read_state(parts, "key")


def test_fused_model_that_differs_from_the_predictions_is_refused(folder: Path) -> None:
    path = folder / "runs" / "r" / "predictions.csv"
    lines = path.read_text().splitlines()
    column = lines[0].split(",").index("vx_pred")
    k = next(i for i, line in enumerate(lines) if line.startswith("validation,"))
    cells = lines[k].split(",")
    cells[column] = str(float(cells[column]) + 0.1)
    lines[k] = ",".join(cells)
    path.write_text("\n".join(lines))
    with pytest.raises(StoreError, match=r"predictions differ from the run's predictions\.csv"):
        run_finetune(folder)
    assert not list((folder / "runs" / "r").glob("finetuned*"))


def test_settings_of_the_trained_run_cannot_be_changed(trained: Path) -> None:
    config = run_config(trained)
    head = config.head.model_copy(update={"units": 5})
    config = config.with_target("ego_speed").model_copy(update={"head": head})
    with Store(trained / "s.h5") as store, pytest.raises(ConfigError) as caught:
        finetune(trained / "runs" / "r", store, config)
    assert "data.target, head.units: the run was trained with different values" in str(caught.value)


def test_missing_and_damaged_images_are_all_named(folder: Path) -> None:
    shutil.rmtree(folder / "clips" / "Train" / "Train" / "2")
    (folder / "clips" / "Validation" / "Validation" / "1" / "imgs" / "003.jpg").write_bytes(b"")
    with pytest.raises(BadInputs, match=r"--data\.path") as caught:
        run_finetune(folder)
    reason, *missing = caught.value.faults
    assert "003.jpg" in reason
    assert [line.split("sequence ")[1] for line in missing] == [
        "Train/2 is missing or damaged.",
        "Validation/1 is missing or damaged.",
    ]


def test_image_that_vanishes_is_named(folder: Path, fused: keras.Model) -> None:
    """The error of a decoding thread is raised, not TensorFlow's."""
    job = make_job(folder, fused)
    (folder / "clips" / "Train" / "Train" / "2" / "imgs" / "008.jpg").write_bytes(b"\xff\xd8 cut")
    with pytest.raises(FramebankError, match=r"008\.jpg: .*Try: check or replace the file"):
        job.predict(job.fused, np.arange(6))


def test_unfreeze_by_number_name_or_all() -> None:
    names = ["a", "b", "c"]
    assert [count_unfrozen(names, n) for n in (0, 2, 3, "all", "a", "c")] == [0, 2, 3, 3, 3, 1]
    with pytest.raises(ConfigError, match="expected 0 to 3, all, or a layer such as a, b, c; got 4"):
        count_unfrozen(names, 4)
    with pytest.raises(ConfigError, match=r"no such layers.*such as a, b, c; got d"):
        count_unfrozen(names, "d")


def test_mirroring_flips_pixels_and_negates_vy() -> None:
    rng = np.random.default_rng(0)
    window = rng.integers(0, 256, (3, 4, 6, 3), dtype=np.uint8)
    original = window.copy()
    targets = np.array([2.0, -3.0], np.float32)
    flip = make_augmentation(FinetuneConfig(brightness=0, contrast=0), ("vx", "vy"))
    drawn = [flip(window, targets, np.random.default_rng(s)) for s in range(40)]
    flipped = [(w, t) for w, t in drawn if not np.array_equal(w, window)]
    assert 8 < len(flipped) < 32
    for w, t in flipped:
        np.testing.assert_array_equal(w, window[:, :, ::-1])
        assert t.tolist() == [2.0, 3.0]
    assert all(t.tolist() == [2.0, -3.0] for w, t in drawn if np.array_equal(w, window))
    np.testing.assert_array_equal(window, original)


def test_brightness_and_contrast_change_all_frames_alike_and_no_label() -> None:
    frame = np.random.default_rng(1).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    window, targets = np.stack([frame] * 3), np.array([2.0, -3.0], np.float32)
    light = make_augmentation(FinetuneConfig(flip=False, brightness=0.2, contrast=0.2), ("vx", "vy"))
    different = 0
    for s in range(10):
        w, t = light(window, targets, np.random.default_rng(s))
        assert t.tolist() == [2.0, -3.0] and w.dtype == np.uint8
        assert all(np.array_equal(w[0], other) for other in w[1:])
        levels = w[0].ravel()[np.argsort(frame.ravel(), kind="stable")].astype(int)
        assert (np.diff(levels) >= 0).all()  # monotonic: brighter stays brighter
        different += not np.array_equal(w, window)
    assert different == 10


def test_enlarged_windows_show_shorter_distances_and_lower_speeds() -> None:
    def road(*distances: float) -> NDArray[np.uint8]:
        """Bars across a flat road, seen from 30 px above it, with the horizon in the middle."""
        frames = np.zeros((len(distances), 161, 40, 3), np.uint8)
        for frame, distance in zip(frames, distances, strict=True):
            cv2.rectangle(frame, (0, round(80 + 30 / distance)), (39, 160), (255, 255, 255), -1)
        return frames

    def distances(window: NDArray[np.uint8]) -> NDArray[np.float64]:
        return 30 / ((window[:, :, 20, 0] < 128).sum(axis=1) - 80)

    window, targets = road(1.0, 0.8, 0.6), np.array([2.0, -3.0, 6.0], np.float32)
    zoom = make_augmentation(FinetuneConfig(flip=False, brightness=0, contrast=0, zoom=1.3), ("vx", "vy", "x"))
    drawn = [zoom(window, targets, np.random.default_rng(s)) for s in range(10)]
    for zoomed, (vx, vy, x) in drawn:
        assert zoomed.shape == window.shape and zoomed.dtype == np.uint8
        assert vy == -3.0 and x == pytest.approx(3 * vx)
        np.testing.assert_allclose(distances(zoomed), distances(window) * vx / 2, rtol=0.06)
    factors = [2 / vx for _, (vx, _, _) in drawn]
    assert 1 / 1.3 < min(factors) < 0.9 and 1.1 < max(factors) < 1.3


def test_zoom_with_an_unknown_target_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"finetune\.zoom: its effect on distance is unknown.*--finetune\.zoom 1"):
        make_augmentation(FinetuneConfig(zoom=1.2), ("distance", "vx"))


def test_shifted_windows_show_the_same_picture_elsewhere() -> None:
    window = np.zeros((3, 90, 160, 3), np.uint8)
    window[:, 40:50, 70:90] = 255
    shift = make_augmentation(FinetuneConfig(flip=False, brightness=0, contrast=0, shift=0.1), ("ego_speed",))
    middles = []
    for seed in range(10):
        shifted, targets = shift(window, np.array([5.0], np.float32), np.random.default_rng(seed))
        assert targets == [5.0]
        assert abs(int(shifted.sum()) - int(window.sum())) < 0.02 * window.sum()
        assert (shifted == shifted[0]).all()  # all frames of a window alike
        middles.append(np.argwhere(shifted[0, :, :, 0] > 127).mean(axis=0) - (44.5, 79.5))
    down, right = np.abs(middles).max(axis=0)
    assert 4 < down <= 9.5 and 8 < right <= 16.5


def test_shift_is_refused_for_targets_that_depend_on_where_the_camera_looks() -> None:
    with pytest.raises(ConfigError, match=r"finetune\.shift: its effect on x is unknown.*--finetune\.shift 0"):
        make_augmentation(FinetuneConfig(shift=0.01), ("x", "ego_speed"))


def test_windows_with_an_unknown_target_are_not_mirrored(capsys: pytest.CaptureFixture[str]) -> None:
    augment = make_augmentation(FinetuneConfig(brightness=0, contrast=0), ("distance",))
    assert capsys.readouterr().err == "finetune: windows are not mirrored, since the effect on distance is unknown\n"
    for seed in range(10):
        window, targets = augment(FRAMES[0], np.array([5.0], np.float32), np.random.default_rng(seed))
        assert np.array_equal(window, FRAMES[0]) and targets.tolist() == [5.0]
    make_augmentation(FinetuneConfig(), ("vx", "vy"))
    assert capsys.readouterr().err == ""


def test_batches_depend_on_seed_and_epoch_only() -> None:
    frames = np.random.default_rng(2).integers(0, 256, (10, 2, 4, 4, 3), dtype=np.uint8)
    targets = np.arange(10.0)[:, None]

    def batches(epoch: int) -> list[Any]:
        light = make_augmentation(FinetuneConfig(), ("x",))
        windows = ImageWindowBatches(lambda i: frames[i], np.arange(10), targets, 4, threads=1, seed=3, augment=light)
        windows.begin(epoch)
        return [windows[i] for i in range(len(windows))]

    one, two, three = batches(1), batches(1), batches(2)
    assert [len(b[0]) for b in one] == [4, 4, 2]
    assert all(equal(list(a), list(b)) for a, b in zip(one, two, strict=True))
    assert not all(equal(list(a), list(b)) for a, b in zip(one, three, strict=True))
    assert sorted(np.concatenate([b[1] for b in three]).ravel().tolist()) == list(range(10))
    assert len(ImageWindowBatches(lambda i: frames[i], np.arange(10), targets, 4, only_full=True)) == 2


def test_decoded_windows_in_memory_are_bounded() -> None:
    """Even with a slow network."""
    threads, batch, count = 2, 2, 120
    lock, alive, most_alive, decoded = threading.Lock(), 0, 0, 0

    class Frames(np.ndarray[Any, Any]):
        """An array that a finaliser can be attached to."""

    def release() -> None:
        nonlocal alive
        with lock:
            alive -= 1

    def read(index: int) -> Any:
        nonlocal alive, most_alive, decoded
        window = np.full((2, 4, 4, 3), index, np.uint8).view(Frames)
        weakref.finalize(window, release)
        with lock:
            alive, decoded = alive + 1, decoded + 1
            most_alive = max(most_alive, alive)
        return window

    windows = ImageWindowBatches(read, np.arange(count), np.zeros((count, 1)), batch, threads=threads, seed=0)
    inputs = keras.Input((2, 4, 4, 3))
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(inputs)))
    model.compile("sgd", "mse")
    batches_ahead: list[int] = []

    def slow(step: int, logs: Any) -> None:
        time.sleep(0.01)
        batches_ahead.append(decoded // batch - step)

    model.fit(windows, shuffle=False, verbose=0, callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=slow)])
    gc.collect()
    assert len(batches_ahead) == count // batch
    # queued, being decoded, in TensorFlow's own buffer, and two that Keras inspects first
    assert max(batches_ahead) <= QUEUED_BATCHES * threads + threads + 2 + 4
    assert most_alive <= 2 * batch * threads
    assert alive == 0


def test_learning_rate_rises_then_falls() -> None:
    rate = learning_rate_schedule(FinetuneConfig(learning_rate=1e-3), 100)
    values = [float(rate(step)) for step in range(101)]
    assert 0 < values[0] < 2e-4
    assert (np.diff(values[:11]) > 0).all()
    assert values[10] == pytest.approx(1e-3)
    assert (np.diff(values[10:]) < 0).all()
    assert values[100] == pytest.approx(0, abs=1e-9)
    assert float(learning_rate_schedule(FinetuneConfig(learning_rate=1e-3), 3)(0)) == pytest.approx(1e-3)  # no warm-up


def test_half_precision_only_on_gpus_with_tensor_cores() -> None:
    assert [choose_policy(gpus) for gpus in ([], [(6, 1)], [(8, 0), (6, 1)])] == ["float32"] * 3
    assert [choose_policy(gpus) for gpus in ([(8, 6)], [(8, 0), (8, 0)])] == ["mixed_float16"] * 2
