"""Intervals from heads that were fitted without some sequences: whose errors they are, and how well they cover."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from features._common.types import Floats
from features.config import Config
from features.errors import DataError
from features.store import Store
from stage2_temporal.data.examples import HeadInputs, StoreExamples, StoreSource
from stage2_temporal.data.task import Task, read_task
from stage2_temporal.evaluation.uncertainty import UncertainPredictions, Uncertainty
from stage2_temporal.heads import find_head
from stage2_temporal.heads.cross_fitting import FOLDS, interval_folds, predict_left_out
from stage2_temporal.heads.linear_models import Ridge
from stage2_temporal.heads.uncertainty import learn_uncertainty
from tests.helpers import write_store
from tests.stage2_helpers import drifting_clips, train_config

RIDGE = {"name": "ridge", "difference": True}
COUNTS = {"train": 30, "validation": 6, "test": 200}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    maps, sequences = drifting_clips(COUNTS, noise=0.3)
    path = write_store(tmp_path_factory.mktemp("s") / "s.h5", sequences, {"appearance": maps})
    with Store(path) as opened:
        yield opened


def examples(store: Store, config: Config) -> tuple[StoreExamples, Task]:
    task = read_task(config, store)
    return StoreExamples(StoreSource(store.path, task.examples.rows, 1.0, task.frame_interval), task.examples), task


def learn(store: Store, **train: Any) -> tuple[Uncertainty, UncertainPredictions, Task]:
    config = train_config(head=RIDGE, **train)
    X, task = examples(store, config)
    rows = task.known("train")
    head = find_head("ridge").from_config(config).fit(X[rows], task.examples.targets[rows])
    return *learn_uncertainty(head, X, task, config.train), task


def coverage(predictions: UncertainPredictions, task: Task) -> float:
    rows, true = task.known("test"), task.examples.targets
    return float(((predictions.low <= true) & (true <= predictions.high))[rows].mean())


def test_few_validation_sequences_make_no_intervals_but_all_sequences_do(store: Store) -> None:
    uncertainty, predictions, _ = learn(store, interval_folds=0)
    assert uncertainty.scores.sequences == 6 and np.isnan(predictions.low).all()
    uncertainty, predictions, task = learn(store)
    assert uncertainty.scores.sequences == 36
    assert 0.8 < coverage(predictions, task) < 0.99


def test_each_example_is_predicted_by_a_head_that_does_not_know_its_sequence(store: Store) -> None:
    known: list[set[int]] = []

    class Recording(Ridge):
        def fit(self, X: Any, y: Any, validation: Any = None, *, callbacks: Any = ()) -> Recording:
            known.append(set(X.groups.tolist()))
            super().fit(X, y, validation, callbacks=callbacks)
            return self

    X, task = examples(store, train_config(head=RIDGE))
    asked: list[set[int]] = []

    def predict(head: Any, held: StoreExamples) -> Floats:
        asked.append(set(held.groups.tolist()))
        return np.asarray(np.c_[head.predict(X=held), held.groups])

    left_out = predict_left_out(Recording(difference=True), X, task, FOLDS, predict)
    assert left_out is not None
    rows, outputs = left_out
    assert all(not a & b and len(a) > 25 for a, b in zip(known, asked, strict=True))
    assert sorted(rows) == sorted([*task.known("train"), *task.known("validation")])
    np.testing.assert_array_equal(outputs[:, 1], X.groups[rows])


@pytest.mark.parametrize(
    ("head", "setting", "validation", "folds"),
    [
        ("ridge", "auto", 6, FOLDS),
        ("ridge", "auto", 200, 0),  # enough of them
        ("ridge", 0, 6, 0),
        ("ridge", 1, 6, 0),
        ("ridge", 7, 200, 7),
        ("ridge", 999, 6, 36),
        ("pooled_lstm", "auto", 6, 0),
        ("pooled_lstm", 4, 6, 4),
    ],
)
def test_number_of_folds(store: Store, head: str, setting: int | str, validation: int, folds: int) -> None:
    config = train_config(head={"name": head}, interval_folds=setting)
    _, task = examples(store, config)
    if validation > COUNTS["validation"]:
        splits = np.where(task.splits == "test", "validation", "train")
        task = replace(task, splits=splits)
    assert len(task.known("validation")) == validation
    assert interval_folds(find_head(head).from_config(config), task, config.train) == folds


def test_network_with_few_validation_sequences_says_how_to_be_surer(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    config = train_config(interval_level=0.8)  # for which 6 sequences are enough
    _, task = examples(store, config)
    with caplog.at_level(logging.INFO):
        assert interval_folds(find_head("pooled_lstm").from_config(config), task, config.train) == 0
    assert "6 validation sequences" in caplog.text and "--train.interval_folds 5" in caplog.text


@pytest.mark.soak
def test_network_is_trained_again_where_that_is_asked_for(store: Store) -> None:
    config = train_config(interval_folds=3, epochs=2)
    X, task = examples(store, config)
    train, validation = task.known("train"), task.known("validation")
    targets = task.examples.targets
    head = find_head("pooled_lstm").from_config(config)
    head.fit(X[train], targets[train], validation=(X[validation], targets[validation]))
    uncertainty, predictions = learn_uncertainty(head, X, task, config.train)
    assert uncertainty.scores.sequences == 36
    assert 0.75 < coverage(predictions, task) < 0.99


@pytest.mark.parametrize(
    ("error", "message"), [(DataError("too few labels"), "too few labels"), (KeyboardInterrupt(), "stopped by Ctrl-C")]
)
def test_head_that_cannot_be_fitted_to_a_part_takes_the_validation_sequences(
    store: Store, caplog: pytest.LogCaptureFixture, error: BaseException, message: str
) -> None:
    class Needy(Ridge):
        """It needs 30 examples."""

        def prepare(self, examples: HeadInputs, targets: Floats) -> None:
            if len(targets) < 30:
                raise error

    X, task = examples(store, train_config(head=RIDGE))
    rows = task.known("train")
    head = Needy(difference=True).fit(X[rows], task.examples.targets[rows])
    settings = train_config(head=RIDGE, interval_folds=5).train
    with caplog.at_level(logging.INFO):
        uncertainty, _ = learn_uncertainty(head, X, task, settings)
    assert message in caplog.text
    assert uncertainty.scores.sequences == 6
