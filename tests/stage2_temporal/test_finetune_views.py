"""Fine-tuning on stored views: what is computed once, and the parts of a head that averages several models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from sklearn.linear_model import Ridge

from features.errors import DataError
from features.streams import MEMBER_PREDICTIONS, RIDGE, STAGE_TWO, VECTORS
from stage2_temporal.data.batches import Batches
from stage2_temporal.finetune.frozen_part import divide_model
from stage2_temporal.finetune.loop import FinetuneJob, squared_error
from stage2_temporal.finetune.normal_equations import NormalEquations
from stage2_temporal.finetune.unfreeze import backbone_layers, count_unfrozen, unfreeze_layers
from stage2_temporal.finetune.views import StoredView, compile_frozen, keep_windows, view_batches
from tests.finetune_runs import make_job, run_finetune
from tests.helpers import picture
from tests.image_runs import EARLY_CUT, read_rows, train_on_images

HEAD = {
    "name": "correlation_lstm", "streams": ["appearance", "conv_pw_1_relu"], "grid": [2, 3], "search": [2, 1],
    "lags": [1], "units": 4, "dense": 4, "members": 2,
}  # fmt: skip
OPTIONS: dict[str, Any] = {"unfreeze": "conv_dw_2", "epochs": 2, "batch": 4}
FRAMES = np.stack([[picture(10 * i + k) for k in range(3)] for i in range(2)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `correlation_lstm` on two maps of a small backbone; not to be changed."""
    root = tmp_path_factory.mktemp("trained")
    backbone = EARLY_CUT | {"cut": "conv_pw_2_relu", "taps": ["conv_pw_1_relu"], "tap_pooling": 2}
    counts = {"Train": 6, "Validation": 3, "Test": 2}
    train_on_images(root, counts, backbone=backbone, window={"length": 3}, head=HEAD)
    return root


def max_difference(some: Any, others: Any) -> float:
    return float(np.abs(np.asarray(some) - np.asarray(others)).max())


@pytest.mark.parametrize(
    "unfreeze",
    ["conv_dw_2", 0, *(pytest.param(name, marks=pytest.mark.soak) for name in ("conv_pw_1_bn", "conv_pw_2_bn", "all"))],
)
def test_both_parts_in_turn_equal_the_whole_model(unfreeze: int | str, fused: keras.Model) -> None:
    names = [layer.name for layer in backbone_layers(fused)]
    model = unfreeze_layers(fused, count_unfrozen(names, unfreeze))
    expected = model.predict(FRAMES, verbose=0)
    parts = divide_model(model)
    stored = parts.frozen.predict(FRAMES, verbose=0)
    assert parts.frozen.trainable_variables == []
    assert {id(v) for v in parts.learner.trainable_variables} == {id(v) for v in model.trainable_variables}
    assert max_difference(parts.predictor.predict(stored, verbose=0), expected) < 1e-5
    whole = divide_model(model, from_frames=True)
    assert max_difference(whole.predictor.predict(FRAMES, verbose=0), expected) < 1e-5

    # the prediction is the mean of the ridge and the members' mean
    members = parts.learner.predict(stored, verbose=0).reshape(2, 2, 2).mean(axis=1)
    assert parts.members == 2 and parts.ridge_vectors is not None
    kernel, bias = model.get_layer(STAGE_TWO).get_layer(RIDGE).get_weights()
    ridge = parts.ridge_vectors.predict(stored, verbose=0).mean(axis=1) @ kernel + bias
    unit = model.get_layer(STAGE_TWO).get_layer("unit")
    ridge = ridge * np.asarray(unit.scale) + np.asarray(unit.offset)
    assert max_difference((members + ridge) / 2, expected) < 1e-4


def test_each_member_is_trained_on_its_own_error() -> None:
    true, predicted = np.array([[1.0, 10.0]], np.float32), np.array([[1.0, 10.0, 3.0, 30.0]], np.float32)
    assert float(squared_error(2)(true, predicted)[0]) == pytest.approx((2**2 + 20**2) / 4)
    assert float(squared_error(2, np.array([2.0, 20.0]))(true, predicted)[0]) == pytest.approx((1 + 1) / 4)


@pytest.mark.parametrize("unfreeze", [0, pytest.param("conv_dw_2", marks=pytest.mark.soak)])
def test_stored_views_train_and_the_ridge_is_solved_again(unfreeze: str | int, folder: Path) -> None:
    options = OPTIONS | {"unfreeze": unfreeze, "views": 2, "zoom": 1.1, "backbone_rate": 0.1}
    result = run_finetune(folder, **options)
    run = folder / "runs" / "r"
    history = read_rows(run / "finetune.csv")
    assert [row["epoch"] for row in history] == ["0", "1", "2", "3"]
    assert history[3]["loss"] == ""  # averaging and the ridge are not an epoch of gradient descent
    losses = [float(row["val_loss"]) for row in history]
    assert result.best_epoch == (3 if losses[3] < losses[0] else 0)
    assert json.loads((run / "finetune.json").read_text())["settings"]["views"] == 2
    assert not (run / "finetune.parts").exists()


def test_an_epoch_takes_every_view_of_every_window(folder: Path, fused: keras.Model) -> None:
    """The first view is not augmented; every window has its targets."""
    job = make_job(folder, fused, **OPTIONS | {"views": 2, "epochs": 1, "zoom": 1.3})
    job._store_views()
    views = [job._views[f"train{k}"] for k in range(2)]
    targets = job._task.examples.targets[job._task.known("train")]
    np.testing.assert_allclose(views[0].targets, targets, rtol=1e-6)
    assert (views[1].targets[:, 0] != views[0].targets[:, 0]).all()

    def pairs(batches: Batches) -> list[tuple[float, float]]:
        """Of each example, one number that the frozen layers computed, and its first target."""
        rows = [batches[i] for i in range(len(batches))]
        return [
            (float(x.sum()), float(y[0])) for arrays, ys in rows for x, y in zip(arrays["frozen0"], ys, strict=True)
        ]

    shuffled = pairs(view_batches(views, 4, np.random.default_rng(0)))
    in_order = [pair for view in views for pair in pairs(view_batches([view], 4))]
    assert len(shuffled) == 2 * len(targets)
    assert shuffled != in_order
    np.testing.assert_allclose(sorted(shuffled), sorted(in_order), rtol=1e-6)


def test_vectors_of_frozen_layers_are_stored_once_and_train_mirrored_too(folder: Path, fused: keras.Model) -> None:
    """With a frozen backbone, what is stored of a window are the head's vectors, whose mirror images it knows."""
    job = make_job(folder, fused, **OPTIONS | {"unfreeze": 0, "views": 2, "epochs": 1, "zoom": 1.3, "batch": 100})
    job._store_views()
    assert [*job._views["train1"].arrays] == [VECTORS]
    assert [*divide_model(job.model).frozen.output] == [VECTORS]
    views = [job._views[f"train{k}"] for k in range(2)]
    arrays, targets = job._train_batches(1)[0]
    count = sum(len(view.targets) for view in views)
    assert len(targets) == 2 * count
    plain = view_batches(views, 100)[0]
    rows = {tuple(np.round(y, 5)): x for x, y in zip(arrays[VECTORS], targets, strict=True)}
    assert len(rows) == 2 * count
    for x, (vx, vy) in zip(plain[0][VECTORS], np.round(plain[1], 5), strict=True):
        np.testing.assert_array_equal(rows[vx, vy], x)
        # in the vectors (frame, row, column, inputs · lags, 6), columns are reversed, and so is motion to the right
        cells, mirrored = (v.reshape(len(v), 2, 3, -1, 6) for v in (x, rows[vx, -vy]))
        np.testing.assert_array_equal(mirrored[..., 1:], cells[:, :, ::-1, :, 1:])
        np.testing.assert_array_equal(mirrored[..., 0], -cells[:, :, ::-1, :, 0])


@pytest.mark.parametrize("changed", [{"flip": False}, {"unfreeze": "conv_dw_2"}])
def test_stored_views_are_not_mirrored_unless_vectors_are_known(
    changed: dict[str, Any], folder: Path, fused: keras.Model
) -> None:
    job = make_job(folder, fused, **OPTIONS | {"unfreeze": 0, "views": 2} | changed)
    assert job._mirror is None


class Unpickled:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path("unpickled").touch, ()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda file: np.save(file, np.ones((3, 4), np.float32)), None),
        (
            lambda file: np.save(file, np.ones((2, 4), np.float32)),
            r"expected .* of shape \(3, 4\); got float32 of shape",
        ),
        (lambda file: np.save(file, np.ones((3, 4), np.int64)), "got int64 of shape"),
        (lambda file: np.save(file, np.array([Unpickled()] * 3), allow_pickle=True), "damaged views"),
        (lambda file: file.write(b"\x93NUMPY\1\0v\0{'descr': '<f4', 'shape': (9999999999,)"), "damaged views"),
        (lambda file: file.write(b""), "damaged views"),
    ],
    ids=["sound", "short", "integers", "objects", "a header alone", "empty"],
)
def test_stored_views_are_checked_when_they_are_read(
    content: Callable[[Any], object], reason: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inputs = keras.Input((2,))
    frozen = keras.Model(inputs, {"x": keras.layers.Dense(4)(inputs)})
    folder = tmp_path / "views" / "train0"
    folder.mkdir(parents=True)
    np.save(folder / "targets.npy", np.zeros((3, 1)))
    with (folder / "x.npy").open("wb") as file:
        content(file)
    if reason is None:
        assert StoredView(folder, frozen, (3, 1)).arrays["x"].shape == (3, 4)
    else:
        with pytest.raises(DataError, match=reason) as caught:
            StoredView(folder, frozen, (3, 1))
        assert str(folder / "x.npy") in str(caught.value) and f"Try: rm -r {tmp_path}" in str(caught.value)
    assert not Path("unpickled").exists()


def test_windows_are_decoded_once(tmp_path: Path) -> None:
    decoded = []

    def read(index: int) -> np.ndarray:
        decoded.append(index)
        return np.full((2, 3, 4, 3), index, np.uint8)

    read_once = keep_windows(read, tmp_path / "windows.npy", np.array([7, 3, 5]))
    for _ in range(2):
        for index in (5, 3, 7):
            window = read_once(index)
            np.testing.assert_array_equal(window, np.full((2, 3, 4, 3), index))
            window[:] = 0  # what augmentation does to it is not kept
    assert sorted(decoded) == [3, 5, 7]


def test_openvino_computes_what_tensorflow_does(fused: keras.Model) -> None:
    pytest.importorskip("openvino")
    frozen = divide_model(unfreeze_layers(fused, 0)).frozen
    some, others = (compile_frozen(frozen, engine)(FRAMES) for engine in ("openvino", "tensorflow"))
    assert some.keys() == others.keys()
    for name, values in some.items():
        assert max_difference(values, others[name]) <= 1e-4 * np.abs(others[name]).max()


def test_normal_equations_give_the_ridge_regression_of_all_batches() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 1, (4, 25, 6)), rng.normal(-2, 5, (4, 25, 2))
    equations = NormalEquations(6, 2)
    for vectors, targets in zip(x, y, strict=True):
        equations.add(vectors, targets)
    for penalty in (0.1, 10.0):
        expected = Ridge(penalty).fit(x.reshape(100, 6), y.reshape(100, 2))
        weights, bias = equations.solve(penalty)
        np.testing.assert_allclose(weights.T, expected.coef_)
        np.testing.assert_allclose(bias, expected.intercept_)


@pytest.mark.soak
def test_interrupted_while_views_are_stored(folder: Path, fused: keras.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumed fine-tuning equals an uninterrupted one, and does not compute complete views again."""
    options = OPTIONS | {"views": 2, "epochs": 3}
    shutil.copytree(folder, folder.with_name("other"))
    expected = make_job(folder.with_name("other"), fused, **options)
    expected.train()
    job = make_job(folder, fused, **options)
    train_epoch = FinetuneJob._train_epoch

    def interrupt(self: FinetuneJob, epoch: int) -> Any:
        if epoch == 2:
            raise KeyboardInterrupt
        return train_epoch(self, epoch)

    monkeypatch.setattr(FinetuneJob, "_train_epoch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        job.train()
    monkeypatch.setattr(FinetuneJob, "_train_epoch", train_epoch)
    views = folder / "runs" / "r" / "finetune.parts" / "views"
    times = {path: path.stat().st_mtime_ns for path in views.iterdir()}
    assert {path.name for path in times} == {"train0", "train1", "validation"}
    resumed = make_job(folder, fused, **options)
    resumed.train()
    assert {path: path.stat().st_mtime_ns for path in views.iterdir()} == times
    pairs = zip(resumed.model.get_weights(), expected.model.get_weights(), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


def test_backbone_learns_more_slowly_than_the_head(folder: Path, fused: keras.Model) -> None:
    def moved(rate: float) -> tuple[float, float]:
        job = make_job(folder, fused, **OPTIONS | {"views": 1, "epochs": 1, "backbone_rate": rate})
        before = [layer.get_weights() for layer in backbone_layers(job.model)]
        cell = job.model.get_layer(STAGE_TWO).get_layer("cell0")
        head = cell.get_weights()
        job._store_views()
        job._train_epoch(1)
        after = [layer.get_weights() for layer in backbone_layers(job.model)]
        steps = [max_difference(a, b) for x, y in zip(before, after, strict=True) for a, b in zip(x, y, strict=True)]
        return max(steps), max_difference(head[0], cell.get_weights()[0])

    (slow, head), (fast, same_head) = moved(0.01), moved(1.0)
    assert 0 < slow < 0.05 * fast
    assert head == pytest.approx(same_head, rel=0.5)


def test_members_layer_is_what_a_saved_model_names(fused: keras.Model) -> None:
    assert fused.get_layer(STAGE_TWO).get_layer(MEMBER_PREDICTIONS).output.shape == (None, 2, 2)
