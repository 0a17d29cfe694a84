"""Footage unlike the training's: what is flagged, and what is not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from features._common.types import Floats
from stage2_temporal.data.row_profile import row_profile
from stage2_temporal.evaluation.novelty import fit_novelty, flag_majority

RNG = np.random.default_rng(0)
MIXING = RNG.normal(size=(12, 300))


def vectors(count: int, shift: float = 0.0, noise: float = 0.3) -> Floats:
    """Vectors (count, 300) that vary in 12 directions, and a little in all."""
    rng = np.random.default_rng(count)
    return rng.normal(size=(count, 12)) @ MIXING + rng.normal(0, noise, (count, 300)) + shift


def test_vectors_like_the_training_are_rarely_flagged_and_others_always() -> None:
    model = fit_novelty(vectors(200), np.arange(200))
    assert model is not None
    assert 0.001 < (model.distances(vectors(1000)) > model.limit).mean() < 0.02
    assert (model.distances(vectors(100, shift=3.0)) > model.limit).all()  # in a direction that training lacks
    assert (model.distances(3 * vectors(100)) > model.limit).all()


def test_too_few_examples_say_nothing() -> None:
    assert fit_novelty(vectors(10), np.arange(10)) is None
    assert fit_novelty(vectors(200), np.arange(200) % 19) is None
    assert fit_novelty(np.ones((200, 5)), np.arange(200)) is None


@pytest.mark.parametrize("features", [6, 300, 3000])
def test_limit_does_not_depend_on_how_well_components_fit_the_examples_they_know(features: int) -> None:
    """With as many features as these, 80 training examples are nearer to their mean than any other."""
    rng = np.random.default_rng(features)
    model = fit_novelty(rng.normal(size=(80, features)), np.arange(80))
    assert model is not None
    assert (model.distances(rng.normal(size=(500, features))) > model.limit).mean() < 0.04


def test_windows_of_one_sequence_count_as_one() -> None:
    """Eight windows of a sequence resemble each other, so a limit from windows of left-out sequences is larger."""
    rng = np.random.default_rng(1)

    def windows(sequences: int) -> Floats:
        return np.repeat(rng.normal(size=(sequences, 20)), 8, axis=0) + rng.normal(0, 0.1, (8 * sequences, 20))

    examples, others = windows(40), windows(300)
    by_sequence = fit_novelty(examples, np.repeat(np.arange(40), 8))
    by_window = fit_novelty(examples, np.arange(320))
    assert by_sequence is not None and by_window is not None
    flagged = [(model.distances(others) > model.limit).mean() for model in (by_sequence, by_window)]
    assert flagged[0] < 0.05 < flagged[1]


def test_most_windows_decide_about_all() -> None:
    assert flag_majority(np.array([True, True, False])).all()
    assert flag_majority(np.array([True, False, False])).tolist() == [True, False, False]


def drive_frame(horizon: int, brightness: float, rng: np.random.Generator) -> bytes:
    """A thumbnail with sky above a row and textured road below."""
    image = np.full((90, 160, 3), 200 * brightness, np.float64)
    image[horizon:] = 90 * brightness + rng.normal(0, 12, (90 - horizon, 160, 1))
    return cv2.imencode(".jpg", image.clip(0, 255).astype(np.uint8))[1].tobytes()


def test_profile_tells_another_horizon_but_not_another_exposure() -> None:
    rng = np.random.default_rng(4)

    def profiles(count: int, horizon: int, exposure: tuple[float, float] = (0.8, 1.1)) -> Floats:
        frames = [drive_frame(horizon + int(rng.integers(-1, 2)), rng.uniform(*exposure), rng) for _ in range(count)]
        return np.array([row_profile(frame) for frame in frames], np.float64)

    model = fit_novelty(profiles(180, 42), np.arange(180))
    assert model is not None
    assert (model.distances(profiles(60, 42)) > model.limit).mean() < 0.06
    assert (model.distances(profiles(60, 50)) > model.limit).all()
