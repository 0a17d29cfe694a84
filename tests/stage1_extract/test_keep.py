"""Small features in place of maps: averaged over a grid in the same pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from features.config import Config
from features.errors import ConfigError, StoreError
from features.store import Store
from stage1_extract.backbone.trunk import build_trunk
from stage1_extract.datasets import scan
from stage1_extract.extract import extract
from stage2_temporal.data.pooling import pool_frames
from tests.extraction_helpers import extraction_config
from tests.helpers import write_clips

TAP = "conv_pw_1_relu"


def config(data: Path, keep: object, **settings: object) -> Config:
    return extraction_config(data, dtype="float32", keep=keep).with_settings({"backbone.taps": (TAP,), **settings})


@pytest.mark.parametrize("keep", ["grid 2x3", {"appearance": "grid 2x3"}, {TAP: "grid 2x3", "appearance": "maps"}])
def test_maps_are_averaged_as_pooled_heads_do(keep: object, tmp_path: Path) -> None:
    data = write_clips(tmp_path / "data", {"Train": 2})
    whole, kept = config(data, "maps"), config(data, keep)
    for name, settings in (("whole", whole), ("kept", kept)):
        extract(settings, tmp_path / f"{name}.h5", scan(settings.data))
    with Store(tmp_path / "whole.h5") as maps, Store(tmp_path / "kept.h5") as store:
        for stream in ("appearance", TAP):
            values, rows = maps.read(stream, range(16)), store.read(stream, range(16))
            if kept.extract.grid(stream):
                expected = np.asarray(pool_frames(values[None], (2, 3))).reshape(16, 2, 3, -1)
                np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-5)
            else:
                np.testing.assert_array_equal(rows, values)
        same = kept.extract.grid("appearance") is None
        assert (store.fingerprint == maps.fingerprint) == same
        assert (store.streams[TAP] == maps.streams[TAP]) == (kept.extract.grid(TAP) is None)
    assert extract(kept, tmp_path / "kept.h5", scan(kept.data)).extracted == 0


def test_another_grid_is_another_recipe(tmp_path: Path) -> None:
    data = write_clips(tmp_path / "data", {"Train": 1})
    first, second = config(data, {"appearance": "grid 2x3"}), config(data, {"appearance": "grid 1x1"})
    extract(first, tmp_path / "s.h5", scan(first.data))
    with pytest.raises(StoreError, match=r"another recipe.*grid: \[2,3\], not \[1,1\]"):
        extract(second, tmp_path / "s.h5", scan(second.data))


@pytest.mark.parametrize(
    ("keep", "message"),
    [("grid 9x2", r"finer than the maps of appearance.*at most 8x8 cells.*'grid 8x2'"), ({"flow": "maps"}, "no such")],
)
def test_a_grid_that_fits_no_map_is_refused(keep: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        build_trunk(config(tmp_path, keep))


@pytest.mark.parametrize("keep", ["grid", "grid 0x3", "grid 2x", "pca 3x3", {"appearance": "cells"}])
def test_other_words_are_refused_with_the_config(keep: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep"):
        config(tmp_path, keep)


def test_a_store_of_cells_has_no_top(tmp_path: Path) -> None:
    settings = config(tmp_path, {"appearance": "grid 1x1"}, **{"backbone.top": True})
    assert build_trunk(settings).top() is None
    assert build_trunk(config(tmp_path, "maps", **{"backbone.top": True})).top() is not None
