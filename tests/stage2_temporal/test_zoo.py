"""The zoo: every head fits, answers, saves, loads and exports; what scikit-learn solved equals scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from sklearn.base import clone

from features.config import Config, TrainConfig
from features.errors import ConfigError
from features.head_config import RidgeConfig
from stage2_temporal.heads import HEADS, find_head
from stage2_temporal.heads.closed_form import ClosedFormHead, standardise_vectors
from stage2_temporal.heads.vehicle import VehicleHead
from stage2_temporal.training.scaling import vector_scale

SHAPE = (5, 4, 6, 8)
RNG = np.random.default_rng(0)
MAPS = RNG.normal(size=(30, *SHAPE)).astype(np.float16)
Y = np.stack([MAPS[:, :, 0].mean(axis=(1, 2, 3)), RNG.normal(size=30)], axis=1).astype(float) * 10 + 3
SMALL: dict[str, Any] = {"units": 8, "dense": 4, "grid": (2, 2), "difference": True, "epochs": 1, "batch": 10}
WHOLE = [name for name, head in HEADS.items() if not issubclass(head, VehicleHead)]  # the others are told of a vehicle
SOLVED = [name for name in WHOLE if issubclass(HEADS[name], ClosedFormHead)]


def small(name: str, **settings: Any) -> Any:
    """The head of that name with those of SMALL and `settings` that it reads."""
    head = find_head(name)
    return head(**{key: value for key, value in (SMALL | settings).items() if key in head().get_params()})


@pytest.fixture(scope="module", params=WHOLE)
def fitted(request: pytest.FixtureRequest) -> Any:
    return small(request.param).fit(MAPS, Y)


def test_it_answers_in_the_targets_shape(fitted: Any) -> None:
    assert fitted.predict(MAPS).shape == (30, 2)
    assert fitted.outcome_.history[0].loss > 0
    assert np.isfinite(fitted.score(MAPS, Y))


def test_its_model_is_a_model_of_keras_alone(fitted: Any, tmp_path: Path) -> None:
    fitted.model_.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras", safe_mode=True)
    assert loaded.input.shape == (None, *SHAPE)
    assert loaded.input.name == "features"
    answers = loaded.predict(MAPS, batch_size=SMALL["batch"], verbose=0)  # a batch's size shows in the last digits
    np.testing.assert_allclose(answers, fitted.predict(MAPS), rtol=1e-6, atol=1e-6)
    again = clone(fitted).restore(loaded)
    np.testing.assert_allclose(again.predict(MAPS), fitted.predict(MAPS), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"difference": False}, {"kernel": "linear", "lags": (2,)}])
@pytest.mark.parametrize("name", SOLVED)
def test_what_scikit_learn_solved_is_what_keras_answers(name: str, settings: dict[str, Any]) -> None:
    """Beside the regressor itself on the same vectors, to rounding in single precision."""
    kept: dict[str, Any] = {}

    class Kept(find_head(name)):  # type: ignore[misc]
        def solve(self, vectors: Any, targets: Any) -> Any:
            kept["vectors"], kept["solution"] = vectors, super().solve(vectors, targets)
            return kept["solution"]

    head = Kept(**small(name, **settings, standardise=False).get_params()).fit(MAPS, Y)
    vectors, solution = kept["vectors"], kept["solution"]
    if name == "ridge":
        expected = solution.predict(vectors)
    elif name == "boosting":
        expected = np.stack([machine.predict(vectors) for machine in solution], axis=1)
    else:
        from sklearn import kernel_ridge, svm

        kernel, gamma, alpha = head.kernel, 0.1 / vectors.shape[1], 1e-3 if head.kernel == "rbf" else 1.0
        if name == "svr":
            machines = [svm.SVR(C=1 / alpha, kernel=kernel, gamma=gamma, epsilon=0.02).fit(vectors, y) for y in Y.T]
            expected = np.stack([machine.predict(vectors) for machine in machines], axis=1)
        else:
            machine = kernel_ridge.KernelRidge(alpha=alpha, kernel=kernel, gamma=gamma).fit(vectors, Y)
            expected = machine.predict(vectors)
    np.testing.assert_allclose(head.predict(MAPS), expected, atol=2e-5 * np.abs(expected).max())


def test_scaled_is_the_standardise_layer() -> None:
    vectors = RNG.normal(3, 2, (50, 4)).astype(np.float32)
    scale = vector_scale([vectors])
    np.testing.assert_allclose(standardise_vectors(vectors, scale).mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(standardise_vectors(vectors, scale).std(axis=0), 1, atol=1e-5)
    np.testing.assert_array_equal(standardise_vectors(vectors, None), vectors)


def test_settings_are_the_configs_fields() -> None:
    head = find_head("ridge").from_config(Config(head=RidgeConfig(alpha=3.0, grid=(2, 1)), train=TrainConfig(shift=2)))
    assert (head.alpha, head.grid, head.shift) == (3.0, (2, 1), 2)
    own = {"streams", "grid", "components", "difference", "lags", "alpha"}
    assert set(head.get_params()) == own | {"batch", "validation_split", "standardise", "reverse", "shift", "strides"}
    with pytest.raises(TypeError, match=r"no setting alpah \(did you mean alpha\?\), it has streams, grid"):
        find_head("ridge")(alpah=1)
    with pytest.raises(TypeError, match="GRU has no setting alpha, it has .*units"):
        find_head("gru")(alpha=1.0)
    with pytest.raises(ConfigError, match=r"Ridge: alpha: .*got -1"):
        find_head("ridge")(alpha=-1).fit(MAPS, Y)


def test_unknown_targets_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        find_head("ridge")().fit(MAPS, np.where(Y > 3, Y, np.nan))


def test_vectors_of_every_rank_are_taken() -> None:
    for shape in ((30, 6), (30, 4, 6), (30, 4, 2, 2, 6)):
        values = RNG.normal(size=shape)
        assert find_head("ridge")().fit(values, Y[:, 0]).predict(values).shape == (30,)
        assert find_head("pooled_lstm")(units=2, epochs=1).fit(values, Y).predict(values).shape == (30, 2)


def test_lags_beyond_the_window_are_left_out_and_none_is_refused() -> None:
    values = RNG.normal(size=(30, 3, 6))
    long, short = (find_head("ridge")(difference=True, lags=lags).fit(values, Y) for lags in ((1, 2, 9), (1, 2)))
    np.testing.assert_array_equal(long.predict(values), short.predict(values))
    with pytest.raises(ConfigError, match="at least 2 frames"):
        find_head("ridge")(difference=True).fit(values[:, :1], Y)


def test_the_last_part_is_held_out_when_asked() -> None:
    head = small("pooled_lstm", validation_split=0.2, epochs=3).fit(MAPS, Y)
    apart = small("pooled_lstm", epochs=3).fit(MAPS[:24], Y[:24], validation=(MAPS[24:], Y[24:]))
    np.testing.assert_array_equal(head.predict(MAPS), apart.predict(MAPS))
    assert np.isfinite(head.outcome_.history[0].val_loss)
