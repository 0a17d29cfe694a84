"""Heads are scikit-learn estimators: its own checks pass, and its tools work on the examples of a real store."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score, learning_curve
from sklearn.pipeline import Pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from features.sequences import FrameSequence, Label
from features.tracks import Track, track_keys
from stage2_temporal.data.examples import StoreExamples, load_examples
from stage2_temporal.heads import HEADS, find_head
from stage2_temporal.heads.closed_form import ClosedFormHead
from stage2_temporal.heads.gradient import GradientHead
from stage2_temporal.heads.vehicle import VehicleHead
from tests.helpers import write_store
from tests.stage2_helpers import CLIP_LENGTH, MAP_SHAPE, drifting_clips, train_config

ON_MAPS = [head for head in HEADS.values() if not issubclass(head, VehicleHead)]
CLOSED_FORM = [head() for head in ON_MAPS if issubclass(head, ClosedFormHead)]
GRADIENT = [head(units=4, dense=4, epochs=2) for head in ON_MAPS if issubclass(head, GradientHead)]


def unmet(head: Any) -> dict[str, str]:
    """The checks of scikit-learn that a head does not pass, and why."""
    single = "single precision: the last digits depend on the size of a batch and a row's place in it"
    return {"check_methods_subset_invariance": single, "check_methods_sample_order_invariance": single}


@parametrize_with_checks(CLOSED_FORM, expected_failed_checks=unmet)
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.soak
@parametrize_with_checks(GRADIENT, expected_failed_checks=unmet)
def test_scikit_learns_checks_of_gradient_trained_heads(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips with three labels each, so that groups matter."""
    maps, clips = drifting_clips({"train": 24, "test": 4}, noise=0.005)
    sequences = []
    for clip in clips:
        speed = clip.labels[0].targets["ego_speed"]
        labels = tuple(Label(CLIP_LENGTH - 1 - i, {"ego_speed": speed}) for i in range(3))
        sequences.append(FrameSequence(clip.id, clip.split, CLIP_LENGTH, 10.0, (64, 36), clip.digest, labels))
    return write_store(tmp_path_factory.mktemp("s") / "s.h5", sequences, {"appearance": maps})


def examples(path: Path) -> tuple[StoreExamples, Any, Any]:
    return load_examples(path, train_config(window={"length": 3}))


RIDGE = {"difference": True, "lags": (1,), "alpha": 0.1}


def test_scores_do_not_depend_on_the_number_of_processes(path: Path) -> None:
    X, y, groups = examples(path)
    assert len(X) == 72 and X.shape == (72,) and len(np.unique(groups)) == 24
    head = find_head("ridge")(**RIDGE)
    scores = cross_val_score(head, X, y, groups=groups, cv=GroupKFold(4))
    assert scores.min() > 0.3
    np.testing.assert_allclose(cross_val_score(head, X, y, groups=groups, cv=GroupKFold(4), n_jobs=2), scores)


def test_grid_search_keeps_groups_together(path: Path) -> None:
    X, y, groups = examples(path)
    folds = GroupKFold(2)
    search = GridSearchCV(find_head("ridge")(**RIDGE), {"alpha": [1.0, 1e6], "grid": [(1, 1), (2, 2)]}, cv=folds)
    search.fit(X, y, groups=groups)
    assert search.best_params_["alpha"] == 1.0
    assert search.score(X, y) > 0.8
    for train, validation in folds.split(X, y, groups):
        assert set(X[train].groups).isdisjoint(X[validation].groups)


def test_learning_curves_and_pipelines(path: Path) -> None:
    X, y, groups = examples(path)
    pipeline = Pipeline([("head", find_head("kernel_ridge")(**RIDGE))])
    sizes, train, test = learning_curve(pipeline, X, y, groups=groups, cv=GroupKFold(3), train_sizes=[0.3, 1.0])
    assert sizes.tolist() == [14, 48]
    assert test[1].mean() > test[0].mean()
    assert train.shape == (2, 3)


def test_grid_search_of_a_gradient_trained_head(path: Path) -> None:
    X, y, groups = examples(path)
    head = find_head("pooled_lstm")(units=4, dense=0, dropout=0.0, difference=True, batch=8, epochs=3)
    search = GridSearchCV(head, {"learning_rate": [0.03, 1e-6]}, cv=GroupKFold(2), refit=False).fit(X, y, groups=groups)
    assert search.best_params_ == {"learning_rate": 0.03}


def test_fitted_head_is_pickled_and_cloned(path: Path) -> None:
    X, y, _ = examples(path)
    head = find_head("ridge")(**RIDGE).fit(X, y)
    copy = pickle.loads(pickle.dumps(head))
    np.testing.assert_allclose(copy.predict(X), head.predict(X), rtol=1e-6)
    assert clone(head).get_params() == head.get_params()


def test_slices_masks_and_pickled_copies_select_examples(path: Path) -> None:
    X, _, _ = examples(path)
    mask = X.groups == 3
    for chosen in (X[mask], X[np.flatnonzero(mask)], X[9:12], pickle.loads(pickle.dumps(X[9:12]))):
        assert len(chosen) == 3
        np.testing.assert_array_equal(chosen.stream("appearance"), X.stream("appearance")[9:12])
    assert X[9:12].source is X.source
    assert X[:1].window("appearance") == (3, *MAP_SHAPE)
    np.testing.assert_allclose(X[:1].times, [[-0.2, -0.1, 0.0]])
    with pytest.raises(TypeError, match="selects no examples"):
        X[0]


def test_tracks_cover_the_frames_of_the_windows(tmp_path: Path) -> None:
    maps, clips = drifting_clips({"train": 2})
    box = (1.0, 2.0, 3.0, 4.0)
    clips = [
        FrameSequence(c.id, c.split, CLIP_LENGTH, 10.0, (64, 36), c.digest, (Label(4, {"vx": 1.0}, box),))
        for c in clips
    ]

    boxes = np.arange(CLIP_LENGTH * 4.0).reshape(CLIP_LENGTH, 4)
    tracks = {track_keys(clips[1])[0]: Track(boxes, np.linspace(0, 1, CLIP_LENGTH))}
    store = write_store(tmp_path / "s.h5", clips, {"appearance": maps}, tracks=tracks)
    chosen = train_config(target="vx").model_copy(
        update={"window": train_config().window.model_copy(update={"length": 3})}
    )
    X, _, _ = load_examples(store, chosen)
    tracked, confidence = X.tracks()
    assert np.isnan(tracked[0]).all() and (confidence[0] == 0).all()
    np.testing.assert_array_equal(tracked[1], boxes[2:5])
    np.testing.assert_allclose(confidence[1], [0.4, 0.6, 0.8])
