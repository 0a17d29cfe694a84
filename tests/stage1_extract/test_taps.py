"""Taps: maps of inner layers, stored as streams of their own from the same pass of the trunk."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from features.config import Config
from features.errors import ConfigError
from features.store import Store
from stage1_extract.backbone.registry import find_backbone
from stage1_extract.backbone.trunk import build_trunk
from stage1_extract.datasets import scan
from stage1_extract.engines.engine import Engine
from stage1_extract.extract import extract
from tests.extraction_helpers import extraction_config, store_content
from tests.helpers import write_clips

TAPS = ("conv_pw_1_relu", "conv1_relu")


def with_taps(config: Config, *taps: str, pooling: int = 1) -> Config:
    update = {"taps": taps, "tap_pooling": pooling}
    return config.model_copy(update={"backbone": config.backbone.model_copy(update=update)})


@pytest.mark.parametrize("engine", ["tensorflow", "openvino"])
@pytest.mark.parametrize("pooling", [1, 3])
def test_maps_are_those_of_the_layers(engine: str, pooling: int) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    trunk = build_trunk(with_taps(extraction_config(dtype="float32"), *TAPS, pooling=pooling))
    frames = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    maps = Engine(trunk, 4, engine)(frames)
    model, preprocess = trunk.backbone.model, find_backbone("MobileNet")[1]
    layers = {"appearance": "conv_pw_3_relu"} | {name: name for name in TAPS}
    assert maps.keys() == trunk.streams.keys() == layers.keys()
    for stream, layer in layers.items():
        expected = keras.Model(model.input, model.get_layer(layer).output)(
            preprocess(frames.astype(np.float32))
        ).numpy()
        if stream in TAPS and pooling > 1:
            size = -(-expected.shape[1] // pooling)
            before = (size * pooling - expected.shape[1]) // 2  # TensorFlow's padding `same`
            rows = [slice(max(i * pooling - before, 0), (i + 1) * pooling - before) for i in range(size)]
            expected = np.stack([np.stack([expected[:, r, c].mean((1, 2)) for c in rows], 1) for r in rows], 1)
        assert trunk.streams[stream].shape == expected.shape[1:]
        np.testing.assert_allclose(maps[stream], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_adding_a_tap_extracts_that_stream_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = extraction_config(write_clips(tmp_path / "data", {"Train": 2, "Test": 1}))
    catalogue, both = scan(config.data), with_taps(config, *TAPS[:1])
    extract(config, tmp_path / "s.h5", catalogue)
    before = store_content(tmp_path / "s.h5")
    result = extract(both, tmp_path / "s.h5", catalogue)
    assert (result.extracted, result.frames, result.flows, result.tracks) == (24, 24, 0, 0)
    after = store_content(tmp_path / "s.h5")
    assert after.keys() - before.keys() == {f"frames/{TAPS[0]}"}
    assert all(after[name] == content for name, content in before.items())
    # both at once give the same numbers, and a finished store loads no network
    extract(both, tmp_path / "once.h5", catalogue)
    assert store_content(tmp_path / "once.h5") == after
    monkeypatch.setattr("stage1_extract.backbone.trunk.build_trunk", lambda _: pytest.fail("a network was loaded"))
    assert extract(both, tmp_path / "s.h5", catalogue).extracted == 0
    # a config without the tap leaves its stream in the store
    assert extract(config, tmp_path / "s.h5", catalogue).extracted == 0
    with Store(tmp_path / "s.h5") as store:
        assert set(store.streams) == {"appearance", "motion", TAPS[0]}


def test_another_pooling_replaces_the_stream(tmp_path: Path) -> None:
    config = extraction_config(write_clips(tmp_path / "data", {"Train": 1}))
    catalogue = scan(config.data)
    for pooling, size in ((1, 16), (2, 8)):
        assert extract(with_taps(config, TAPS[0], pooling=pooling), tmp_path / "s.h5", catalogue).extracted == 8
        with Store(tmp_path / "s.h5") as store:
            assert store.streams[TAPS[0]].shape == (size, size, 16)


@pytest.mark.parametrize(
    ("tap", "pooling", "message"),
    [
        ("conv_pw_1_relo", 1, "did you mean conv_pw_1_relu"),
        ("conv_pw_3_relu", 1, "no such layer below the cut"),
        ("conv_dw_6", 1, "no such layer below the cut"),
        ("conv1", 17, "no map that can be averaged over 17x17 cells"),
    ],
)
def test_tap_that_cannot_be_stored_is_refused(tap: str, pooling: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_trunk(with_taps(extraction_config(), tap, pooling=pooling))
