"""Derived streams: the same numbers as in a head's graph, computed once into the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from filelock import FileLock

from features.errors import ConfigError
from features.store import Store
from stage2_temporal.__main__ import main
from stage2_temporal.data.derived_streams import GridPooling, derive_streams, parse_stream_name
from stage2_temporal.data.examples import load_examples
from stage2_temporal.heads import find_head
from tests.helpers import write_store
from tests.stage2_helpers import CLIP_LENGTH, MAP_SHAPE, conv_top, drifting_clips, train_config

WINDOWS_OF_4 = train_config(window={"length": 4})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    maps, sequences = drifting_clips({"train": 10, "test": 3})
    return write_store(tmp_path / "s.h5", sequences, {"appearance": maps})


def test_stream_names_describe_what_is_computed() -> None:
    for name in ("pooled", "grid3x4", "change2x2", "change1x1lag3", "motion.grid2x2", "motion.pooled"):
        assert parse_stream_name(name).name == name
    assert parse_stream_name("grid1x1") == parse_stream_name("pooled") == GridPooling("appearance", (1, 1))
    assert parse_stream_name("motion.change2x4lag3") == GridPooling("motion", (2, 4), 3)
    for name in ("grid", "grid2x4lag2", "pca", "a.b.grid2x4"):
        with pytest.raises(ConfigError, match="not a stream that can be derived"):
            parse_stream_name(name)


def test_derived_numbers_by_hand(path: Path) -> None:
    derive_streams(path, [parse_stream_name(name) for name in ("pooled", "change1x1", "change1x1lag2")])
    with Store(path) as store:
        rows = np.arange(store.frames)
        maps = store.read("appearance", rows).astype(np.float32).reshape(-1, CLIP_LENGTH, *MAP_SHAPE)
        derived = {name: store.read(name, rows).reshape(-1, CLIP_LENGTH, MAP_SHAPE[-1]) for name in store.streams
                   if name != "appearance"}  # fmt: skip
    assert set(derived) == {"pooled", "change1x1", "change1x1lag2"}
    np.testing.assert_allclose(derived["pooled"], maps.mean(axis=(2, 3)), atol=1e-6)
    for lag, name in ((1, "change1x1"), (2, "change1x1lag2")):
        expected = np.abs(maps[:, lag:] - maps[:, :-lag]).mean(axis=(2, 3))
        np.testing.assert_allclose(derived[name][:, lag:], expected, atol=1e-6)
        assert not derived[name][:, :lag].any()


def test_batch_size_does_not_change_the_numbers(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [GridPooling("appearance", (2, 2), lag) for lag in (0, 1, 4)]
    with Store(path) as store:
        at_once = [np.concatenate([*stream.content(store).batches]) for stream in streams]
        monkeypatch.setattr("stage2_temporal.data.derived_streams.MAPS_PER_BATCH", 1)
        for values, stream in zip(at_once, streams, strict=True):
            np.testing.assert_allclose(np.concatenate([*stream.content(store).batches]), values, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "stride", "settings"),
    [
        ("ridge", 1, {"difference": True, "grid": (2, 3), "lags": (1, 2)}),
        ("ridge", 2, {"difference": True, "lags": (1, 2)}),
        ("ridge", 1, {}),
        ("pooled_lstm", 2, {"difference": True, "grid": (2, 3), "units": 4, "dense": 0, "epochs": 1, "batch": 8}),
    ],
)
def test_head_on_derived_streams_is_the_head_on_maps(
    path: Path, name: str, stride: int, settings: dict[str, Any]
) -> None:
    """Both the predictions of one fitted head, and those of a head fitted the other way."""
    X, y, _ = load_examples(path, train_config(window={"length": 3, "stride": stride}))
    head = find_head(name)(**settings).fit(X, y)
    assert head.has_stored_features(X)
    from_streams, maps = head.predict(X), X.stream("appearance")
    np.testing.assert_allclose(head.predict(maps), from_streams, atol=1e-5 * np.abs(from_streams).max())
    fitted_on_maps = find_head(name)(**head.get_params()).fit(maps, y)
    np.testing.assert_allclose(fitted_on_maps.predict(X), from_streams, atol=1e-3 * np.abs(from_streams).max())


def test_streams_are_derived_once_and_then_no_map_is_read(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = find_head("ridge")(difference=True)
    X, y, _ = load_examples(path, WINDOWS_OF_4)
    head.fit(X, y)
    assert "pooled, change1x1, change1x1lag2 derived" in capsys.readouterr().err
    modified = path.stat().st_mtime_ns
    X, y, _ = load_examples(path, WINDOWS_OF_4)
    head.fit(X, y).predict(X)
    assert capsys.readouterr().err == ""
    assert path.stat().st_mtime_ns == modified
    assert "appearance" not in X.source._frames


def test_trainable_top_is_not_bypassed(tmp_path: Path) -> None:
    maps, sequences = drifting_clips({"train": 10})
    path = write_store(tmp_path / "s.h5", sequences, {"appearance": maps}, top=conv_top())
    X, y, _ = load_examples(path, WINDOWS_OF_4)
    head = find_head("pooled_lstm")(units=4, epochs=1).fit(X, y)
    with Store(path) as store:
        assert list(store.streams) == ["appearance"]
    assert not head.has_stored_features(X)
    assert any(isinstance(layer, keras.Model) for layer in head.model_.layers)


def test_unwritable_store_is_reported_and_can_be_trained_on(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stage2_temporal.data.derived_streams.LOCK_TIMEOUT", 0.1)
    X, y, _ = load_examples(path, WINDOWS_OF_4)
    with FileLock(path.with_name(f"{path.name}.lock")):
        while_locked = find_head("ridge")(difference=True).fit(X, y)
    assert "cannot be saved in the store" in capsys.readouterr().err
    assert not while_locked.has_stored_features(X)
    unlocked = find_head("ridge")(difference=True).fit(X, y)
    np.testing.assert_allclose(unlocked.predict(X), while_locked.predict(X), rtol=1e-4)


def test_stream_of_an_older_version_is_derived_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pooled = [GridPooling("appearance", (1, 1))]
    assert derive_streams(path, pooled) == ["pooled"]
    assert derive_streams(path, pooled) == []
    monkeypatch.setattr("stage2_temporal.data.derived_streams.GRID_POOLING_VERSION", 2)
    with Store(path) as store:
        assert not pooled[0].is_stored(store)
    assert derive_streams(path, pooled) == ["pooled"]


def test_derive_command(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["derive", "--store", str(path), "--stream", "grid2x4", "change3x4", "pca4"]) == 0
    assert capsys.readouterr().out == f"{path}: grid2x4, change3x4, pca4 derived\n"
    assert main(["derive", "--store", str(path), "--stream", "grid2x4"]) == 0
    assert "already" in capsys.readouterr().out
    for name, message in (
        ("grid9x9", "head.grid does not fit"),
        ("motion.pooled", "Try: --head.streams appearance, or framebank derive --stream pooled"),
        ("fourier", "not a stream that can be derived"),
        ("pca99", "pca99: more principal components"),
    ):
        assert main(["derive", "--store", str(path), "--stream", name]) == 2
        assert message in capsys.readouterr().err
