"""Every head fits, predicts, saves and loads; closed-form heads predict what scikit-learn's regressors do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from sklearn import linear_model
from sklearn.base import clone

from features.config import Config, TrainConfig
from features.errors import ConfigError
from features.head_config import RidgeConfig
from features.streams import STANDARDISE
from stage2_temporal.heads import HEADS, find_head
from stage2_temporal.heads.base import Head, validated
from stage2_temporal.heads.closed_form import ClosedFormHead, standardise_vectors
from stage2_temporal.heads.vehicle import VehicleHead
from stage2_temporal.training.scaling import vector_scale
from stage2_temporal.vehicle.geometry import GEOMETRY_NAMES

SHAPE = (5, 4, 6, 8)
RNG = np.random.default_rng(0)
MAPS = RNG.normal(size=(30, *SHAPE)).astype(np.float16)
Y = np.stack([MAPS[:, :, 0].mean(axis=(1, 2, 3)), RNG.normal(size=30)], axis=1).astype(float) * 10 + 3
SMALL: dict[str, Any] = {
    "units": 8,
    "dense": 4,
    "grid": (2, 2),
    "difference": True,
    "epochs": 1,
    "batch": 10,
    "members": 2,
    "search": (2, 1),
}
ON_MAPS = [name for name, head in HEADS.items() if not issubclass(head, VehicleHead)]
CLOSED_FORM = [name for name in ON_MAPS if issubclass(HEADS[name], ClosedFormHead)]


class Recorder:
    """Settings that remember which of them were read."""

    def __init__(self, settings: Any, names: set[str]) -> None:
        self._settings, self._names = settings, names

    def __getattr__(self, name: str) -> Any:
        self._names.add("streams" if name == "input_streams" else name)
        return getattr(self._settings, name)


def small(name: str, **settings: Any) -> Any:
    """The head of that name with those of SMALL and `settings` that it reads."""
    head = find_head(name)
    return head(**{key: value for key, value in (SMALL | settings).items() if key in head().get_params()})


def fit_recording(name: str, shape: tuple[int, ...]) -> tuple[Any, set[str]]:
    """A head fitted to maps of a shape, and the names of the settings that it read."""
    names: set[str] = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stage2_temporal.heads.base.validated", lambda *section: Recorder(validated(*section), names))
        maps = MAPS if shape == SHAPE else RNG.uniform(1, 2, (30, *shape))
        return small(name).fit(maps, Y), names


@pytest.fixture(scope="module", params=ON_MAPS)
def recorded(request: pytest.FixtureRequest) -> tuple[Any, set[str]]:
    return fit_recording(request.param, SHAPE)


@pytest.fixture
def fitted(recorded: tuple[Any, set[str]]) -> Any:
    return recorded[0]


def test_prediction_has_the_shape_of_the_target(fitted: Any) -> None:
    assert fitted.predict(MAPS).shape == (30, 2)
    assert fitted.outcome_.history[0].loss > 0
    assert np.isfinite(fitted.score(MAPS, Y))


def test_saved_model_loads_without_framebank_and_predicts_the_same(fitted: Any, tmp_path: Path) -> None:
    fitted.model_.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras", safe_mode=True)
    assert loaded.input.shape == (None, *SHAPE)
    assert loaded.input.name == "features"
    predictions = loaded.predict(MAPS, batch_size=SMALL["batch"], verbose=0)
    np.testing.assert_allclose(predictions, fitted.predict(MAPS), rtol=1e-6, atol=1e-6)
    restored = clone(fitted).restore(loaded)
    np.testing.assert_allclose(restored.predict(MAPS), fitted.predict(MAPS), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"difference": False}, {"kernel": "linear", "lags": (2,)}])
@pytest.mark.parametrize("name", [name for name in CLOSED_FORM if name != "ridge"])
def test_closed_form_head_predicts_what_scikit_learn_does(name: str, settings: dict[str, Any]) -> None:
    """Compared with the regressor on the same vectors, up to rounding in single precision."""
    solved: dict[str, Any] = {}

    class Recording(find_head(name)):  # type: ignore[misc]
        def solve(self, vectors: Any, targets: Any) -> Any:
            solved["vectors"], solved["solution"] = vectors, super().solve(vectors, targets)
            return solved["solution"]

    head = Recording(**small(name, **settings, standardise=False).get_params()).fit(MAPS, Y)
    vectors, solution = solved["vectors"], solved["solution"]
    if name == "boosting":
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


@pytest.mark.parametrize("examples", [4, 30])  # fewer than features, and more
@pytest.mark.parametrize("settings", [{}, {"standardise": False}, {"alpha": 30.0, "lags": (2,), "difference": True}])
def test_ridge_predicts_what_scikit_learn_does(settings: dict[str, Any], examples: int) -> None:
    head = find_head("ridge")(batch=7, **settings).fit(MAPS[:examples], Y[:examples])
    layer = head.model_.get_layer(STANDARDISE)
    vectors = keras.Model(head.model_.input, layer.output).predict(MAPS, verbose=0).astype(np.float64)
    assert (examples > vectors.shape[1]) == (examples == 30)
    expected = linear_model.Ridge(alpha=head.alpha).fit(vectors[:examples], Y[:examples]).predict(vectors)
    np.testing.assert_allclose(head.predict(MAPS), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_standardised_vectors_have_mean_0_and_deviation_1() -> None:
    vectors = RNG.normal(3, 2, (50, 4)).astype(np.float32)
    scale = vector_scale([vectors])
    np.testing.assert_allclose(standardise_vectors(vectors, scale).mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(standardise_vectors(vectors, scale).std(axis=0), 1, atol=1e-5)
    np.testing.assert_array_equal(standardise_vectors(vectors, None), vectors)


def test_parameters_are_the_settings_that_the_head_reads() -> None:
    head = find_head("ridge").from_config(Config(head=RidgeConfig(alpha=3.0, grid=(2, 1)), train=TrainConfig(shift=2)))
    assert (head.alpha, head.grid, head.shift) == (3.0, (2, 1), 2)
    head_settings = {"streams", "motion", "grid", "components", "difference", "lags", "alpha"}
    assert set(head.get_params()) == head_settings | set(Head.train_settings)
    with pytest.raises(ConfigError, match=r"no setting alpah \(did you mean alpha\?\), it has streams, motion, grid"):
        find_head("ridge")(alpah=1)
    with pytest.raises(ConfigError, match=r"GRU has no setting alpha, it has .*units"):
        find_head("gru")(alpha=1.0)
    with pytest.raises(ConfigError, match=r"Ridge: alpha: .*got -1"):
        find_head("ridge")(alpha=-1).fit(MAPS, Y)


def test_head_reads_every_setting_it_has(recorded: tuple[Any, set[str]]) -> None:
    head, names = recorded
    assert set(head.settings.model_fields) - names == {"name"}


@pytest.mark.parametrize(
    ("name", "shape", "unread"),
    [
        # what is for tracks is not read of an array
        ("box_ridge", (len(GEOMETRY_NAMES),), {"box_noise"}),
        ("box_mlp", (len(GEOMETRY_NAMES),), {"box_noise"}),
        ("fusion", (5, 8, 16, 16), {"alpha", "box_noise"}),
    ],
)
def test_vehicle_head_reads_every_setting_it_has(name: str, shape: tuple[int, ...], unread: set[str]) -> None:
    head, names = fit_recording(name, shape)
    assert set(head.settings.model_fields) - names == {"name"} | unread


def test_nan_targets_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        find_head("ridge")().fit(MAPS, np.where(Y > 3, Y, np.nan))


def test_arrays_of_every_rank_are_accepted() -> None:
    for shape in ((30, 6), (30, 4, 6), (30, 4, 2, 2, 6)):
        values = RNG.normal(size=shape)
        assert find_head("ridge")().fit(values, Y[:, 0]).predict(values).shape == (30,)
        assert find_head("pooled_lstm")(units=2, epochs=1).fit(values, Y).predict(values).shape == (30, 2)


def test_lags_longer_than_the_window_are_ignored_unless_all_are() -> None:
    values = RNG.normal(size=(30, 3, 6))
    long, short = (find_head("ridge")(difference=True, lags=lags).fit(values, Y) for lags in ((1, 2, 9), (1, 2)))
    np.testing.assert_array_equal(long.predict(values), short.predict(values))
    with pytest.raises(ConfigError, match="at least 2 frames"):
        find_head("ridge")(difference=True).fit(values[:, :1], Y)


def test_validation_split_is_the_last_part_of_the_examples() -> None:
    head = small("pooled_lstm", validation_split=0.2, epochs=3).fit(MAPS, Y)
    separate = small("pooled_lstm", epochs=3).fit(MAPS[:24], Y[:24], validation=(MAPS[24:], Y[24:]))
    np.testing.assert_array_equal(head.predict(MAPS), separate.predict(MAPS))
    assert np.isfinite(head.outcome_.history[0].val_loss)
