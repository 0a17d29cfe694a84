"""Fast layers: the same predictions, gradients and training as with Keras' own, and each step traced once."""

from __future__ import annotations

import gc
import weakref
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from features.config import Config, TrainConfig
from stage2_temporal.data.batches import Batches
from stage2_temporal.training.fast_layers import MAX_UNROLLED_STEPS, FastLSTM, with_fast_layers
from stage2_temporal.training.loop import Adam, fit_model, predict_batches
from tests.stage2_helpers import build_model, conv_top

SHAPE, CLIPS = (4, 3, 5, 16), 21
MAPS = np.random.default_rng(0).normal(size=(CLIPS, *SHAPE)).astype(np.float16)
TARGETS = np.random.default_rng(1).normal(size=(CLIPS, 2))


def small_model(name: str = "flatten_lstm", activation: str = "relu") -> keras.Model:
    """A head of a few units above a 1x1 convolution, the same each time."""
    keras.utils.set_random_seed(0)
    head = {"name": name, "units": 8, "dense": 6, "dropout": 0.0, "activation": activation}
    return build_model(SHAPE, Config.model_validate({"head": head}).head, 2, top=conv_top(SHAPE[1:]))


def gradients(model: keras.Model, training: bool) -> list[np.ndarray]:
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(MAPS.astype(np.float32), training=training) - TARGETS))
    return [np.asarray(gradient) for gradient in tape.gradient(loss, model.trainable_variables)]


class InMemory:
    """Windows in memory, as batches read them."""

    def windows(self, rows: Any) -> Any:
        return MAPS[rows]


def batches(targets: Any = TARGETS, seed: int | None = 0) -> Batches:
    return Batches(InMemory().windows, np.arange(CLIPS), targets, 8, seed=seed)  # the last batch has 5


@pytest.mark.parametrize(("name", "activation"), [("flatten_lstm", "relu"), ("pooled_lstm", "tanh")])
def test_predictions_and_gradients_equal_those_of_keras_layers(name: str, activation: str) -> None:
    model = small_model(name, activation)
    fast = with_fast_layers(model)
    assert {type(layer) for layer in fast.layers} & {FastLSTM}
    assert [id(w) for w in fast.weights] == [id(w) for w in model.weights]
    np.testing.assert_allclose(fast.predict(MAPS, verbose=0), model.predict(MAPS, verbose=0), atol=1e-5)
    for training in (False, True):
        for gradient, expected in zip(gradients(fast, training), gradients(model, training), strict=True):
            np.testing.assert_allclose(gradient, expected, atol=1e-5)


def test_convolution_keeps_bias_and_activation() -> None:
    maps = keras.Input(SHAPE[1:])
    model = keras.Model(maps, keras.layers.Conv2D(5, 1, activation="relu", bias_initializer="ones")(maps))
    fast = with_fast_layers(model)
    assert fast is not model
    np.testing.assert_allclose(np.asarray(fast(MAPS[0])), np.asarray(model(MAPS[0])), atol=1e-5)


@pytest.mark.parametrize(
    ("steps", "layer"),
    [
        (4, keras.layers.LSTM(3, recurrent_dropout=0.5)),
        (4, keras.layers.LSTM(3, return_sequences=True)),
        (4, keras.layers.LSTM(3, go_backwards=True)),
        (4, keras.layers.GRU(3)),
        (4, keras.layers.Conv1D(3, 1)),
        (MAX_UNROLLED_STEPS + 1, keras.layers.LSTM(3)),
    ],
)
def test_layers_that_compute_something_else_are_not_replaced(steps: int, layer: keras.layers.Layer) -> None:
    vectors = keras.Input((steps, 5))
    model = keras.Model(vectors, layer(vectors))
    assert with_fast_layers(model) is model


def test_copy_is_made_once_per_precision_and_lives_as_long_as_the_model() -> None:
    model = small_model()
    assert with_fast_layers(model) is with_fast_layers(model)
    assert with_fast_layers(model, "bfloat16") is not with_fast_layers(model)
    released = weakref.ref(model)
    del model
    gc.collect()
    assert released() is None


def test_training_equals_that_of_plain_keras() -> None:
    """With fast layers and the fused Adam, against model.fit with keras.optimizers.Adam."""
    model, plain = small_model(), small_model()
    result = fit_model(model, batches(), batches(seed=None), TrainConfig(epochs=3, weight_decay=0.01))
    plain.compile(keras.optimizers.Adam(1e-3, weight_decay=0.01), loss="mean_squared_error")
    history = plain.fit(batches(), validation_data=batches(seed=None), epochs=3, shuffle=False, verbose=0).history
    np.testing.assert_allclose([row.loss for row in result.history], history["loss"], rtol=1e-5)
    np.testing.assert_allclose([row.val_loss for row in result.history], history["val_loss"], rtol=1e-5)


def test_adam_takes_the_steps_of_keras_adam() -> None:
    results = []
    for optimiser_class in (keras.optimizers.Adam, Adam):
        variable = keras.Variable(np.linspace(-1, 1, 7, dtype=np.float32))
        optimiser = optimiser_class(0.01, beta_1=0.8, beta_2=0.9, weight_decay=0.1)
        for step in range(5):
            optimiser.apply([tf.cos(tf.range(7.0) * step)], [variable])
        results.append(np.asarray(variable))
    np.testing.assert_allclose(results[1], results[0], rtol=1e-6)


def test_saved_model_has_keras_layers_only_and_bfloat16_leaves_its_weights_in_float32(tmp_path: Path) -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        model = small_model()
        result = fit_model(model, batches(), None, TrainConfig(epochs=2, precision=precision))
        losses[precision] = np.array([row.loss for row in result.history])
    assert not np.array_equal(losses["bfloat16"], losses["float32"])
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.02)
    assert {w.dtype for w in model.weights} == {"float32"}
    keras.Model(model.input, model.output).save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        assert b"stage2_temporal" not in archive.read("config.json")
    loaded = keras.models.load_model(tmp_path / "m.keras", safe_mode=True)
    assert type(loaded.get_layer("lstm")) is keras.layers.LSTM
    np.testing.assert_allclose(loaded(MAPS), predict_batches(model, batches(None, seed=None)), atol=1e-5)


class Recorder(keras.layers.Layer):
    """Passes its input on and records the graphs that it was traced into."""

    def __init__(self) -> None:
        super().__init__()
        self.graphs: list[tuple[bool, tf.Graph]] = []

    def call(self, maps: Any, training: bool | None = None) -> Any:
        if training is not None:  # None while shapes are inferred
            self.graphs.append((training, tf.compat.v1.get_default_graph()))
        return maps


def test_training_step_is_traced_once_and_casts_the_maps_once() -> None:
    recorder, maps = Recorder(), keras.Input(SHAPE)
    model = keras.Model(maps, small_model()(recorder(maps)))
    fit_model(model, batches(), batches(seed=None), TrainConfig(epochs=2))
    assert sorted(training for training, _ in recorder.graphs) == [False, True]
    for _, graph in recorder.graphs:
        casts = [op for op in graph.get_operations() if op.type == "Cast" and op.inputs[0].dtype == tf.float16]
        assert len(casts) == 1
