"""The twin that trains: the same answers, gradients and training as Keras' own layers, and no needless work."""

from __future__ import annotations

import gc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import ref

import keras
import numpy as np
import pytest
import tensorflow as tf

from features.config import TrainConfig
from features.head_config import head_settings
from features.sequences import FrameSequence, Label
from features.store import Store
from stage2_temporal.data.batches import Batches, FrameReader
from stage2_temporal.heads import build_model
from stage2_temporal.training import adam, lstm
from stage2_temporal.training.ahead import Ahead
from stage2_temporal.training.fast_layers import with_fast_layers
from stage2_temporal.training.loop import fit_model, predict_batches
from tests.helpers import write_store
from tests.stage2_helpers import conv_top

SHAPE = (4, 3, 5, 16)
MAPS = np.random.default_rng(0).normal(size=(6, *SHAPE)).astype(np.float32)
TRUE = np.random.default_rng(1).normal(size=(len(MAPS), 2)).astype(np.float32)
CLIPS = 21


def model(head: dict[str, Any] | None = None, **options: Any) -> keras.Model:
    keras.utils.set_random_seed(0)
    chosen = {"name": "flatten_lstm", "units": 8, "dense": 6, "dropout": 0.0, "activation": "relu"} | (head or {})
    return build_model(SHAPE, head_settings(chosen), 2, **{"top": conv_top(SHAPE[1:])} | options)


def gradients(of: keras.Model, training: bool) -> list[np.ndarray]:
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(of(MAPS, training=training) - TRUE))
    return [np.asarray(g) for g in tape.gradient(loss, of.trainable_variables)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    time, rng = SHAPE[0], np.random.default_rng(2)
    maps = rng.normal(size=(CLIPS * time, *SHAPE[1:])).astype(np.float16)
    labels = [(Label(time - 1, {"vx": float(x), "vy": float(y)}),) for x, y in rng.normal(size=(CLIPS, 2))]
    sequences = [FrameSequence(str(i), "train", time, 10.0, (64, 36), "d", own) for i, own in enumerate(labels)]
    path = write_store(tmp_path_factory.mktemp("s") / "s.h5", sequences, {"appearance": maps})
    with Store(path) as opened:
        yield opened


def batches(store: Store, memory: float = 1.0, seed: int | None = 0) -> tuple[FrameReader, Batches]:
    rows = np.arange(CLIPS * SHAPE[0]).reshape(CLIPS, SHAPE[0])
    targets = np.array([list(s.labels[0].targets.values()) for s in store.sequences])
    reader = FrameReader(store, rows, memory)
    return reader, Batches(reader, rows, targets, 8, seed=seed)  # the last batch has 5


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("name", ["flatten_lstm", "pooled_lstm"])
def test_answers_and_gradients_are_keras_own(name: str, activation: str) -> None:
    own = model({"name": name, "activation": activation})
    twin = with_fast_layers(own)
    assert {type(layer) for layer in twin.layers} & {lstm.LSTM}
    assert [id(w) for w in twin.weights] == [id(w) for w in own.weights]
    np.testing.assert_allclose(twin.predict(MAPS, verbose=0), own.predict(MAPS, verbose=0), atol=1e-5)
    for training in (False, True):
        for got, expected in zip(gradients(twin, training), gradients(own, training), strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_convolution_with_bias_and_activation() -> None:
    maps = keras.Input(SHAPE[1:])
    own = keras.Model(maps, keras.layers.Conv2D(5, 1, activation="relu", bias_initializer="ones")(maps))
    twin = with_fast_layers(own)
    assert twin is not own
    np.testing.assert_allclose(np.asarray(twin(MAPS[0])), np.asarray(own(MAPS[0])), atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.LSTM(3, recurrent_dropout=0.5),
        keras.layers.LSTM(3, return_sequences=True),
        keras.layers.LSTM(3, go_backwards=True),
        keras.layers.GRU(3),
        keras.layers.Conv1D(3, 1),
    ],
)
def test_other_layers_stay_keras_own(layer: keras.layers.Layer) -> None:
    vectors = keras.Input((4, 5))
    own = keras.Model(vectors, layer(vectors))
    assert with_fast_layers(own) is own


def test_many_steps_are_not_unrolled() -> None:
    vectors = keras.Input((lstm.LONGEST + 1, 5))
    own = keras.Model(vectors, keras.layers.LSTM(3)(vectors))
    assert with_fast_layers(own) is own


def test_one_twin_a_model_and_none_without_it() -> None:
    own = model()
    twin = with_fast_layers(own)
    assert with_fast_layers(own) is twin
    assert with_fast_layers(own, "bfloat16") is not twin
    gone = ref(own)
    del own, twin
    gc.collect()
    assert gone() is None


def test_saved_weights_load_either_way(tmp_path: Path) -> None:
    own, other = model(), model()
    twin = with_fast_layers(other)
    own.set_weights([w + 1 for w in own.get_weights()])
    own.save_weights(tmp_path / "own.weights.h5")
    twin.load_weights(tmp_path / "own.weights.h5")
    twin.save_weights(tmp_path / "twin.weights.h5")
    third = model()
    third.load_weights(tmp_path / "twin.weights.h5")
    for got, expected in zip(third.get_weights(), own.get_weights(), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_whole_fit_is_keras_own(store: Store) -> None:
    ours, theirs = model(), model()
    outcome = fit_model(ours, batches(store)[1], batches(store, seed=None)[1], TrainConfig(epochs=4))
    theirs.compile(keras.optimizers.Adam(1e-3), loss="mean_squared_error")
    history = theirs.fit(
        batches(store)[1], validation_data=batches(store, seed=None)[1], epochs=4, shuffle=False, verbose=0
    ).history
    np.testing.assert_allclose([row.loss for row in outcome.history], history["loss"], rtol=1e-5)
    np.testing.assert_allclose([row.val_loss for row in outcome.history], history["val_loss"], rtol=1e-5)


def test_adam_is_keras_own() -> None:
    results = []
    for kind in (keras.optimizers.Adam, adam.Adam):
        variable = keras.Variable(np.linspace(-1, 1, 7, dtype=np.float32))
        optimiser = kind(0.01, beta_1=0.8, beta_2=0.9, weight_decay=0.1)
        for step in range(5):
            optimiser.apply([tf.cos(tf.range(7.0) * step)], [variable])
        results.append(np.asarray(variable))
    np.testing.assert_allclose(results[1], results[0], rtol=1e-6)


def test_what_is_saved_after_training_has_keras_layers_only(store: Store, tmp_path: Path) -> None:
    own = model()
    _, data = batches(store)
    fit_model(own, data, None, TrainConfig(epochs=1))
    keras.Model(own.input, own.output).save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        assert b"stage2_temporal" not in archive.read("config.json")
    loaded = keras.models.load_model(tmp_path / "m.keras", safe_mode=True)
    assert type(loaded.get_layer("lstm")) is keras.layers.LSTM
    answers = predict_batches(own, Batches(data._reader, data._rows, None, 8))
    np.testing.assert_allclose(
        loaded.predict(Batches(data._reader, data._rows, None, 8), verbose=0), answers, atol=1e-5
    )


def test_bfloat16_is_near_and_keeps_weights_in_float32(store: Store) -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        own = model()
        outcome = fit_model(own, batches(store)[1], None, TrainConfig(epochs=3, precision=precision))
        losses[precision] = np.array([row.loss for row in outcome.history])
        assert {w.dtype for w in own.weights} == {"float32"}
    assert not np.array_equal(losses["bfloat16"], losses["float32"])
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.02)


class Watch(keras.layers.Layer):
    """Hands its input on and remembers the graphs it was traced into."""

    def __init__(self) -> None:
        super().__init__()
        self.graphs: list[tuple[bool, tf.Graph]] = []

    def call(self, maps: Any, training: bool | None = None) -> Any:
        if training is not None:  # None while shapes are inferred
            self.graphs.append((training, tf.compat.v1.get_default_graph()))
        return maps


def test_a_step_is_traced_once_and_casts_the_maps_once(store: Store) -> None:
    watch, own = Watch(), model()
    maps = keras.Input(SHAPE)
    watched = keras.Model(maps, own(watch(maps)))
    fit_model(watched, batches(store)[1], batches(store, seed=None)[1], TrainConfig(epochs=3))
    assert sorted(training for training, _ in watch.graphs) == [False, True]
    for _, graph in watch.graphs:
        halves = [op for op in graph.get_operations() if op.type == "Cast" and op.inputs[0].dtype == tf.float16]
        assert len(halves) == 1


@pytest.mark.parametrize(("memory", "reads"), [(1.0, CLIPS * 4), (1e-9, 3 * CLIPS * 4 + 2 * 8 * 4)])
def test_rows_are_read_once_an_epoch_or_once_at_all(store: Store, memory: float, reads: int) -> None:
    """Streamed, Keras looks at two batches for their shapes beforehand."""
    reader, data = batches(store, memory)
    fit_model(model(), data, None, TrainConfig(epochs=3))
    assert reader.reads == reads


def test_batches_ahead_are_the_batches(store: Store) -> None:
    plain, ahead = batches(store)[1], Ahead(batches(store)[1])
    _ = ahead[0], ahead[1]  # before the first epoch, as Keras does
    for _ in range(3):
        plain.on_epoch_begin()
        ahead.on_epoch_begin()
        for i in range(len(plain)):
            for got, expected in zip(ahead[i], plain[i], strict=True):
                np.testing.assert_array_equal(got, expected)
