"""The published model, trained from a store, gives the losses of the same model written in plain Keras on images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
import pytest

from features.config import Config, read_config
from features.store import Store
from stage1_extract.datasets import scan
from stage1_extract.extract import extract
from stage2_temporal.data.task import read_task
from stage2_temporal.evaluation.history import read_history
from stage2_temporal.train import train
from stage2_temporal.training.keras_models import load_model
from tests.helpers import ROOT, write_clips

LENGTH, TRAINABLE, EPOCHS, LEARNING_RATE = 8, 4, 3, 1e-4
CLIPS, TRAINING = 24, 19  # the published validation split of 0.2 leaves 19 clips to train on, fewer than a batch of 38
NEVER_MOVES = 1e-30  # a learning rate that changes no weight
FOUR_DIGITS = 2e-4


def random_backbone(name: str, arguments: Mapping[str, Any], images: np.ndarray) -> keras.Model:
    """A network of random weights whose frozen batch normalisation fits the images (n, height, width, 3).

    Without the latter, maps of random deep networks vanish.
    """
    keras.utils.set_random_seed(1)
    build = getattr(keras.applications, name)
    backbone = build(include_top=False, weights=None, input_shape=images.shape[1:], **arguments)
    for layer in backbone.layers[:-TRAINABLE]:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0  # keep the statistics of the next pass alone
    backbone(images, training=True)
    return backbone


def plain_model(backbone: keras.Model) -> keras.Model:
    """The published model: (batch, 8, height, width, 3) BGR of 0–255 → vx, vy; the backbone's last 4 layers train."""
    for layer in backbone.layers[:-TRAINABLE]:
        layer.trainable = False
    clips = keras.Input((LENGTH, *backbone.input.shape[1:]))
    maps = backbone(keras.ops.reshape(clips, (-1, *backbone.input.shape[1:])))
    maps = keras.ops.reshape(maps, (-1, LENGTH, *maps.shape[1:]))
    x = keras.layers.TimeDistributed(keras.layers.Flatten())(maps)
    x = keras.layers.LSTM(256, activation="relu", name="lstm")(x)
    x = keras.layers.Dense(64, activation="relu", name="dense")(x)
    return keras.Model(clips, keras.layers.Dense(2, name="output")(x))


def read_clips(folder: Path, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The images and velocities that `write_clips` wrote, in the clips' order."""
    images = [
        [cv2.imread(str(folder / f"Train/Train/{clip}/imgs/{frame:03d}.jpg")) for frame in range(1, LENGTH + 1)]
        for clip in range(1, CLIPS + 1)
    ]
    resized = [[cv2.resize(image, size, interpolation=cv2.INTER_CUBIC) for image in clip] for clip in images]
    return np.array(resized, np.float32), np.array([(i / 2, -i / 10) for i in range(1, CLIPS + 1)], np.float32)


def published_config(root: Path, size: tuple[int, int], backbone: Mapping[str, Any], dtype: str) -> Config:
    """configs/competition.toml without dropout, with a smaller learning rate."""
    config = read_config(ROOT / "configs/competition.toml").model_dump(exclude_none=True)
    config["data"]["path"] = str(root / "clips")
    config["frames"] |= {"width": size[0], "height": size[1]}
    config["backbone"] |= {"weights": str(root / "backbone.weights.h5"), **backbone}
    config["extract"]["dtype"] = dtype
    config["head"]["dropout"] = 0.0
    config["train"] |= {"epochs": EPOCHS, "learning_rate": LEARNING_RATE}
    return Config.model_validate(config)


@pytest.mark.parametrize(
    ("name", "arguments", "size", "dtype", "parameters"),
    [
        ("MobileNet", {"alpha": 0.25}, (96, 64), "float16", None),
        # its losses rise to 628 in the second epoch, and with them what rounding to half precision changes, to 0.1 %
        pytest.param(
            "InceptionResNetV2", {}, (320, 180), "float32", 104_948_130,
            marks=[pytest.mark.soak, pytest.mark.timeout(1800)],
        ),
    ],
)  # fmt: skip
def test_losses_are_those_of_plain_keras(
    name: str, arguments: dict[str, float], size: tuple[int, int], dtype: str, parameters: int | None, tmp_path: Path
) -> None:
    folder = write_clips(tmp_path / "clips", {"Train": CLIPS}, size=(size[0] * 3 // 2, size[1] * 3 // 2))
    images, velocities = read_clips(folder, size)
    backbone = random_backbone(name, arguments, images[0])
    backbone.save_weights(tmp_path / "backbone.weights.h5")
    config = published_config(tmp_path, size, {"name": name, "arguments": arguments}, dtype)
    extract(config, tmp_path / "s.h5", scan(config.data))
    with Store(tmp_path / "s.h5") as store:
        task = read_task(config, store)
        metrics = train(config, store, task, tmp_path / "run", report=False)
        resting = {"epochs": 1, "learning_rate": NEVER_MOVES}
        resting_config = config.model_copy(update={"train": config.train.model_copy(update=resting)})
        train(resting_config, store, task, tmp_path / "untrained", report=False)
    history = read_history(tmp_path / "run/history.csv", "")

    model, untrained = plain_model(backbone), load_model(tmp_path / "untrained")
    for layer in ("lstm", "dense", "output"):
        model.get_layer(layer).set_weights(untrained.get_layer(layer).get_weights())
    assert metrics.parameters.total == model.count_params()
    if parameters is not None:
        assert model.count_params() == parameters
    model.compile(keras.optimizers.Adam(LEARNING_RATE), loss="mean_squared_error")
    plain = model.fit(
        images[:TRAINING], velocities[:TRAINING], validation_data=(images[TRAINING:], velocities[TRAINING:]),
        batch_size=TRAINING, epochs=EPOCHS, shuffle=False, verbose=0,
    ).history  # fmt: skip
    for column in ("loss", "val_loss"):
        losses = [getattr(epoch, column) for epoch in history]
        print(f"{name} {column}: {losses}, plain Keras {plain[column]}")
        assert losses == pytest.approx(plain[column], rel=FOUR_DIGITS)
