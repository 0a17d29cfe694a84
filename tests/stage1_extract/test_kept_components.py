"""Principal components in place of maps: fitted once, the same whatever interrupts or extends the extraction."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import IncrementalPCA

from features.config import Config
from features.errors import ConfigError, DataError, StoreError
from features.frame_files import shard_folder
from features.principal_components import PCABasis, fit_pca, load_bases, save_bases
from features.store import Store
from stage1_extract import extract as extract_module
from stage1_extract.datasets import scan
from stage1_extract.dry_run import estimate_extraction
from stage1_extract.engines.engine import Engine
from stage1_extract.extract import extract
from tests.extraction_helpers import extraction_config
from tests.helpers import write_clips

TAP = "conv_pw_1_relu"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("components") / "data", {"Train": 4, "Validation": 1})


def config(data: Path, keep: object = "pca 3", **settings: object) -> Config:
    return extraction_config(data, dtype="float32", keep=keep, motion=False).with_settings(settings)


def run(settings: Config, store: Path, engine: Engine | None = None) -> int:
    return extract(settings, store, scan(settings.data), engine=engine).extracted


def bases(store: Path, *streams: str) -> dict[str, str]:
    with Store(store) as opened:
        return {name: PCABasis(**opened.basis(name)).digest for name in streams or ("appearance",)}


def test_components_of_training_maps_are_stored_in_place_of_maps(data: Path, tmp_path: Path) -> None:
    keep = {"appearance": "pca 3", TAP: "pca 5"}
    settings = config(data, keep, **{"backbone.taps": (TAP,)})
    run(settings.with_settings({"extract.keep": "maps"}), tmp_path / "maps.h5")
    assert run(settings, tmp_path / "s.h5") == 40
    with Store(tmp_path / "maps.h5") as maps, Store(tmp_path / "s.h5") as store:
        assert {name: info.shape for name, info in store.streams.items()} == {"appearance": (3,), TAP: (5,)}
        for name, info in store.streams.items():
            values = maps.read(name, range(40)).reshape(40, -1)
            basis = PCABasis(**store.basis(name))
            expected = fit_pca(IncrementalPCA(info.shape[0]), lambda rows, values=values: values[rows], np.arange(32))
            np.testing.assert_allclose(basis.components, expected.components, atol=1e-4)
            projected = (values - basis.mean) @ basis.components.T
            np.testing.assert_allclose(store.read(name, range(40)), projected, atol=1e-3 * np.abs(projected).max())
            assert (np.abs(projected).max(axis=0) > 10 * np.abs(projected).max() / 1000).all()
        assert store.recipe.basis == PCABasis(**store.basis("appearance")).digest
        assert store.streams[TAP].origin["basis"] == PCABasis(**store.basis(TAP)).digest
    assert run(settings, tmp_path / "s.h5") == 0


@pytest.mark.parametrize("packed_gb", [1.0, pytest.param(0.0, marks=pytest.mark.soak)])
def test_the_basis_stays_when_it_is_interrupted_and_when_clips_are_added(
    packed_gb: float, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(data, tmp_path / "data")
    settings, store = config(tmp_path / "data").with_settings({"extract.packed_gb": packed_gb}), tmp_path / "s.h5"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(extract_module, "save_store", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        run(settings, store)
    (file,) = shard_folder(store).glob(".bases*")
    basis = load_bases(file)["appearance"].digest
    write_clips(tmp_path / "more", {"Train": 6})
    for name in ("5", "6"):  # before it goes on, and afterwards
        shutil.move(tmp_path / f"more/Train/Train/{name}", tmp_path / "data/Train/Train" / name)
        assert run(settings, store) == 8
        assert bases(store) == {"appearance": basis}
        assert not list(shard_folder(store).glob(".bases*"))
    (tmp_path / "s.h5.scan").unlink(missing_ok=True)
    assert run(settings, tmp_path / "fresh.h5") == 56 and bases(tmp_path / "fresh.h5") != {"appearance": basis}


def test_another_number_of_components_is_another_recipe(data: Path, tmp_path: Path) -> None:
    run(config(data), tmp_path / "s.h5")
    for keep in ("pca 2", "maps"):
        with pytest.raises(StoreError, match=r"another recipe.*basis: "):
            run(config(data, keep), tmp_path / "s.h5")


def test_more_components_than_frames_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"extract\.keep of appearance.*at most 31 .*pca 31"):
        run(config(data, "pca 40"), tmp_path / "s.h5")


def test_dry_run_knows_their_size(data: Path, tmp_path: Path) -> None:
    settings = config(data)
    estimate = estimate_extraction(settings, tmp_path / "s.h5", scan(settings.data))
    assert estimate.streams["appearance"].frame_bytes == 12
    assert list(tmp_path.iterdir()) == []


def test_saved_bases_are_read_back_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    basis = PCABasis(np.ones(4, np.float32), np.eye(2, 4, dtype=np.float32))
    save_bases(tmp_path / "b.npz", {"appearance": basis, "block.1": basis})
    assert {name: b.digest for name, b in load_bases(tmp_path / "b.npz").items()} == dict.fromkeys(
        ["appearance", "block.1"], basis.digest
    )
    assert load_bases(tmp_path / "none.npz") == {}
    (tmp_path / "b.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError, match=r"b\.npz: damaged"):
        load_bases(tmp_path / "b.npz")
