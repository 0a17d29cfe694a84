"""Principal components of maps: scikit-learn's, fitted to training frames only, kept in the store and in the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from filelock import FileLock
from sklearn.decomposition import PCA, IncrementalPCA

from features.errors import ConfigError
from features.principal_components import PCABasis, fit_pca
from features.store import Store
from features.store_tables import StreamInfo
from features.store_writer import StreamContent, extend_store
from features.verification import find_damage
from stage1_extract.__main__ import main as stage1
from stage1_extract.existing_store import ExistingStore
from stage2_temporal.data.derived_streams import PCAProjection, derive_streams, parse_stream_name
from stage2_temporal.data.examples import load_examples
from stage2_temporal.heads import find_head
from tests.helpers import write_store
from tests.stage2_helpers import CLIP_LENGTH, MAP_SHAPE, conv_top, drifting_clips, train_config

COUNTS = {"train": 10, "test": 3}
PCA8 = PCAProjection("appearance", 8)
WINDOWS_OF_4 = train_config(window={"length": 4})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    maps, sequences = drifting_clips(COUNTS, noise=0.3)
    return write_store(tmp_path / "s.h5", sequences, {"appearance": maps})


def test_components_are_scikit_learns_of_the_training_frames(path: Path) -> None:
    with Store(path) as store:
        frames = store.read("appearance", range(store.frames)).astype(np.float64).reshape(store.frames, -1)
    training = frames[: 10 * CLIP_LENGTH]
    exact = PCA(8, svd_solver="full").fit(training)
    assert derive_streams(path, [PCA8]) == ["pca8"]
    with Store(path) as store:
        basis = PCABasis(**store.basis("pca8"))
        projected = store.read("pca8", range(store.frames))
    signs = np.sign(np.sum(basis.components * exact.components_, axis=1))
    np.testing.assert_allclose(basis.mean, training.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(basis.components * signs[:, None], exact.components_, atol=1e-6)
    expected = exact.transform(frames)  # of the test split too
    np.testing.assert_allclose(projected * signs, expected, atol=1e-5 * np.abs(expected).max())


def test_fit_in_batches_equals_one_fit_and_samples_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    maps = (rng.normal(size=(50, 4)) * (8, 4, 2, 1)) @ np.linalg.qr(rng.normal(size=(30, 4)))[0].T + 3
    at_once = fit_pca(IncrementalPCA(6), lambda rows: maps[rows], np.arange(50))
    assert not at_once.components[4:].any()  # nothing varies there
    monkeypatch.setattr("features.principal_components.FIT_BATCH", 7)
    in_batches = fit_pca(IncrementalPCA(6), lambda rows: maps[rows], np.arange(50))
    np.testing.assert_allclose(np.abs(in_batches.components), np.abs(at_once.components), atol=1e-6)
    monkeypatch.setattr("features.principal_components.MAX_FIT_FRAMES", 20)
    read: list[int] = []

    def recorded(rows: Any) -> Any:
        read.extend(rows.tolist())
        return maps[rows]

    first = fit_pca(IncrementalPCA(3), recorded, np.arange(50))
    second = fit_pca(IncrementalPCA(3), recorded, np.arange(50))
    assert read[:20] == read[20:] == sorted(set(read))
    np.testing.assert_array_equal(first.components, second.components)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ridge", {"difference": True, "lags": (1, 2)}),
        ("pooled_lstm", {"difference": True, "units": 4, "dense": 0, "epochs": 1, "batch": 8}),
    ],
)
def test_head_on_stored_components_is_the_head_on_maps(
    path: Path, name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    X, y, _ = load_examples(path, WINDOWS_OF_4)
    head = find_head(name)(components=8, **settings).fit(X, y)
    assert head.has_stored_features(X) and X.source.store.streams["pca8"] == PCA8.info(X.source.store)
    predictions = head.predict(X)
    tolerance = 1e-5 * np.abs(predictions).max()
    np.testing.assert_allclose(head.predict(X.stream("appearance")), predictions, atol=tolerance)
    layer = head.model_.get_layer("features.components")
    assert not layer.trainable_weights and layer.kernel.shape == (np.prod(MAP_SHAPE), 8)
    head.model_.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    restored = find_head(name)(**head.get_params()).restore(loaded)
    assert restored.has_stored_features(X)
    np.testing.assert_allclose(restored.predict(X), predictions.reshape(len(X), -1), atol=tolerance)


def test_unwritable_store_and_plain_array_give_the_same_basis(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stage2_temporal.data.derived_streams.LOCK_TIMEOUT", 0.1)
    X, y, _ = load_examples(path, train_config())  # windows of whole clips: every training frame once
    locked, stored, array = (find_head("ridge")(components=8) for _ in range(3))
    with FileLock(path.with_name(f"{path.name}.lock")):
        locked.fit(X, y)
    assert "pca8 cannot be saved in the store" in capsys.readouterr().err
    assert not locked.has_stored_features(X)
    stored.fit(X, y)
    assert stored.has_stored_features(X)
    array.fit(X.stream("appearance"), y)
    expected = stored.predict(X)
    for head in (locked, array):
        np.testing.assert_allclose(head.predict(X), expected, atol=1e-3 * np.abs(expected).max())


def test_basis_depends_on_training_clips_and_a_model_keeps_its_basis(path: Path, tmp_path: Path) -> None:
    X, y, _ = load_examples(path, WINDOWS_OF_4)
    head = find_head("ridge")(components=8).fit(X, y)
    expected = head.predict(X.stream("appearance"))
    with Store(path) as store:
        fingerprint, sequences = PCA8.info(store).fingerprint, list(store.sequences)
        maps = store.read("appearance", range(store.frames))
    fewer_training_clips = [replace(s, split="test" if i < 4 else s.split) for i, s in enumerate(sequences)]
    other = write_store(tmp_path / "other.h5", fewer_training_clips, {"appearance": maps})
    new_test_clips = [replace(s, digest="new") if s.split == "test" else s for s in sequences]
    same = write_store(tmp_path / "same.h5", new_test_clips, {"appearance": maps})
    with Store(other) as other_store, Store(same) as same_store:
        assert PCA8.info(other_store).fingerprint != fingerprint
        assert PCA8.info(same_store).fingerprint == fingerprint
    assert derive_streams(other, [PCA8]) == ["pca8"]
    other_X = load_examples(other, WINDOWS_OF_4, splits=("train", "test"))[0]
    assert not head.has_stored_features(other_X)  # its components are not the model's
    np.testing.assert_allclose(head.predict(other_X[other_X.groups < 10]), expected, rtol=1e-5)


def test_store_keeps_a_basis_with_its_stream(path: Path) -> None:
    with Store(path) as store:
        assert store.basis("appearance") == store.basis("pca8") == {}
    derive_streams(path, [PCA8])
    with Store(path) as store:
        before = store.basis("pca8")
        extend_store(
            path, {"more": StreamContent(StreamInfo((1,), "float32", {"a": 1}), batches=[np.zeros((store.frames, 1))])}
        )
    with Store(path) as store:
        assert {n: a.tobytes() for n, a in store.basis("pca8").items()} == {n: a.tobytes() for n, a in before.items()}
        assert PCA8.is_stored(store) and set(ExistingStore.read(path, None).bases["pca8"]) == {"mean", "components"}
    with h5py.File(path, "r+") as f:
        assert f["bases/pca8/components"].fletcher32 and f["bases/pca8/mean"].fletcher32
        del f["bases"]  # as in a store of an older version
    with Store(path) as store:
        assert not PCA8.is_stored(store)
    assert derive_streams(path, [PCA8]) == ["pca8"]


def test_damaged_basis_is_found_by_verify(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    derive_streams(path, [PCA8])
    with h5py.File(path) as f:
        offset = f["bases/pca8/components"].id.get_chunk_info(0).byte_offset
    data = bytearray(path.read_bytes())
    data[offset + 8] ^= 0xFF
    path.write_bytes(data)
    assert stage1(["verify", "--store", str(path)]) != 0
    assert "pca8" in capsys.readouterr().err.replace(str(path), "")
    assert "pca8" not in ExistingStore.read(path, find_damage(path)).bases


def test_impossible_numbers_of_components_are_refused(path: Path, tmp_path: Path) -> None:
    X, y, _ = load_examples(path, WINDOWS_OF_4)
    most = 10 * CLIP_LENGTH - 1
    with pytest.raises(ConfigError, match=f"at most {most} .*got {most + 1}.*--head.components {most}"):
        find_head("ridge")(components=most + 1).fit(X, y)
    with pytest.raises(ConfigError, match="at most 11 "):
        find_head("ridge")(components=12).fit(X.stream("appearance")[:3], y[:3])
    with pytest.raises(ConfigError, match="components"):
        find_head("ridge")(components=-1).fit(X, y)
    assert parse_stream_name("motion.pca16") == PCAProjection("motion", 16)
    with pytest.raises(ConfigError, match="not a stream that can be derived"):
        parse_stream_name("pca0")


def test_components_below_a_trainable_top_are_refused(tmp_path: Path) -> None:
    maps, sequences = drifting_clips(COUNTS)
    path = write_store(tmp_path / "s.h5", sequences, {"appearance": maps}, top=conv_top())
    X, y, _ = load_examples(path, WINDOWS_OF_4)
    for call in (
        lambda: find_head("ridge")(components=4).fit(X, y),
        lambda: find_head("gru")(components=4).derived_streams(X),
    ):
        with pytest.raises(ConfigError, match=r"backbone\.top = false"):
            call()
