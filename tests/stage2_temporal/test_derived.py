"""Derived streams: the same numbers as the graph's, once in the store, never in the way."""

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
from stage2_temporal.data.derived_streams import derive_streams, is_stored, parse_stream_name
from stage2_temporal.data.examples import ArrayExamples, load_examples
from stage2_temporal.data.grid_pooling import GridPooling
from stage2_temporal.heads import find_head
from tests.helpers import write_store
from tests.stage2_helpers import CLIP_LENGTH, MAP_SHAPE, conv_top, drifting_clips, train_config


@pytest.fixture
def path(tmp_path: Path) -> Path:
    maps, sequences = drifting_clips({"train": 10, "test": 3})
    return write_store(tmp_path / "s.h5", sequences, {"appearance": maps})


@pytest.mark.parametrize("name", ["pooled", "grid3x4", "change2x2", "change1x1lag3", "motion.grid2x2", "motion.pooled"])
def test_a_name_says_what_it_is(name: str) -> None:
    assert parse_stream_name(name).name == name


def test_names_by_hand() -> None:
    assert parse_stream_name("grid1x1") == parse_stream_name("pooled") == GridPooling("appearance", (1, 1))
    assert parse_stream_name("motion.change2x4lag3") == GridPooling("motion", (2, 4), 3)
    for name in ("grid", "grid2x4lag2", "pca", "a.b.grid2x4"):
        with pytest.raises(ConfigError, match="no stream that can be derived"):
            parse_stream_name(name)


def test_numbers_by_hand(path: Path) -> None:
    derive_streams(path, [parse_stream_name(n) for n in ("pooled", "change1x1", "change1x1lag2")])
    with Store(path) as store:
        rows = np.arange(store.frames)
        maps = store.read("appearance", rows).astype(np.float32).reshape(-1, CLIP_LENGTH, *MAP_SHAPE)
        got = {
            n: store.read(n, rows).reshape(-1, CLIP_LENGTH, MAP_SHAPE[-1]) for n in store.streams if n != "appearance"
        }
    assert set(got) == {"pooled", "change1x1", "change1x1lag2"}
    np.testing.assert_allclose(got["pooled"], maps.mean(axis=(2, 3)), atol=1e-6)
    for lag, name in ((1, "change1x1"), (2, "change1x1lag2")):
        expected = np.abs(maps[:, lag:] - maps[:, :-lag]).mean(axis=(2, 3))
        np.testing.assert_allclose(got[name][:, lag:], expected, atol=1e-6)
        assert not got[name][:, :lag].any()


def test_blocks_do_not_show(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [parse_stream_name(n) for n in ("grid2x2", "change2x2", "change2x2lag4")]
    with Store(path) as store:
        whole = [np.concatenate(list(d.batches(store))) for d in wanted]
        monkeypatch.setattr("stage2_temporal.data.grid_pooling.FRAMES_PER_BATCH", 1)
        for values, d in zip(whole, wanted, strict=True):
            np.testing.assert_allclose(np.concatenate(list(d.batches(store))), values, atol=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("settings", [{}, {"difference": True}, {"difference": True, "grid": (2, 3)}])
@pytest.mark.parametrize("name", ["ridge", "pooled_lstm"])
def test_cached_is_uncached(path: Path, name: str, settings: dict[str, Any], stride: int) -> None:
    """What is trained on from the store is the same part of the same model that takes maps."""
    X, y, _ = load_examples(path, train_config(window={"length": 3, "stride": stride}))
    head = find_head(name)(units=4, dense=0, epochs=1, batch=8, lags=(1, 2), **settings).fit(X, y)
    assert head._ready(X)
    cached = head.predict(X)
    uncached = head.predict(ArrayExamples(X.stream("appearance")).values)
    np.testing.assert_allclose(cached, uncached, atol=1e-5 * np.abs(cached).max())
    again = find_head(name)(**head.get_params()).fit(X.stream("appearance"), y)  # and trained on maps it is the same
    np.testing.assert_allclose(again.predict(X), cached, atol=1e-3 * np.abs(cached).max())


def test_it_is_derived_once_and_no_map_is_read_after_it(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = find_head("ridge")(difference=True)
    X, y, _ = load_examples(path, train_config(window={"length": 4}))
    head.fit(X, y)
    assert "derived" in capsys.readouterr().err
    before = path.stat().st_mtime_ns
    X, y, _ = load_examples(path, train_config(window={"length": 4}))
    head.fit(X, y).predict(X)
    assert capsys.readouterr().err == ""
    assert path.stat().st_mtime_ns == before
    assert X.source.reader("appearance").reads <= 2 * 4 + len(X.source.rows)  # the shape of one example, and held
    assert {n for n in X.source._readers if n != "appearance"} == {"pooled", "change1x1", "change1x1lag2"}


def test_a_trainable_top_is_never_passed_by(tmp_path: Path) -> None:
    maps, sequences = drifting_clips({"train": 10})
    path = write_store(tmp_path / "s.h5", sequences, {"appearance": maps}, top=conv_top())
    X, y, _ = load_examples(path, train_config(window={"length": 4}))
    head = find_head("pooled_lstm")(units=4, epochs=1).fit(X, y)
    with Store(path) as store:
        assert list(store.streams) == ["appearance"]
    assert not head._ready(X)
    assert any(isinstance(layer, keras.Model) for layer in head.model_.layers)


def test_where_it_cannot_be_written_it_is_computed_and_said(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stage2_temporal.data.derived_streams.LOCK_TIMEOUT", 0.1)
    X, y, _ = load_examples(path, train_config(window={"length": 4}))
    with FileLock(path.with_name(f"{path.name}.lock")):
        locked = find_head("ridge")(difference=True).fit(X, y)
    assert "not kept in the store" in capsys.readouterr().err
    assert not locked._ready(X)
    free = find_head("ridge")(difference=True).fit(X, y)
    np.testing.assert_allclose(free.predict(X), locked.predict(X), rtol=1e-4)


def test_a_stream_of_another_origin_is_made_anew(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [parse_stream_name("pooled")]
    assert derive_streams(path, wanted) == ["pooled"]
    assert derive_streams(path, wanted) == []
    monkeypatch.setattr("stage2_temporal.data.grid_pooling.GRID_POOLING_VERSION", 2)
    with Store(path) as store:
        assert not is_stored(store, wanted[0])
    assert derive_streams(path, wanted) == ["pooled"]


def test_the_command(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["derive", "--store", str(path), "--stream", "grid2x4", "change3x4"]) == 0
    assert capsys.readouterr().out == f"{path}: grid2x4, change3x4 derived\n"
    assert main(["derive", "--store", str(path), "--stream", "grid2x4"]) == 0
    assert "there already" in capsys.readouterr().out
    for flags, says in (
        (["--stream", "grid9x9"], "head.grid does not fit"),
        (["--stream", "motion.pooled"], "no stream 'motion'"),
        (["--stream", "fourier"], "no stream that can be derived"),
        ([], "which streams"),
    ):
        assert main(["derive", "--store", str(path), *flags]) == 2
        assert says in capsys.readouterr().err
