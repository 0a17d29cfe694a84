"""Principal components of maps: scikit-learn's, of training frames alone, kept in the store and in the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from filelock import FileLock
from sklearn.decomposition import PCA

from features.errors import ConfigError
from features.store import Store, StreamInfo
from features.store_writer import StreamContent, extend_store
from stage1_extract.__main__ import main as stage1
from stage1_extract.existing_store import ExistingStore
from stage2_temporal.__main__ import main
from stage2_temporal.data.derived_streams import derive_streams, is_stored, parse_stream_name
from stage2_temporal.data.examples import load_examples
from stage2_temporal.data.pca_projection import PCABasis, PCAProjection, fit_pca
from stage2_temporal.heads import find_head
from tests.helpers import write_store
from tests.stage2_helpers import CLIP_LENGTH, MAP_SHAPE, conv_top, drifting_clips, train_config

COUNTS = {"train": 10, "test": 3}
PCA8 = PCAProjection("appearance", 8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    maps, sequences = drifting_clips(COUNTS, noise=0.3)
    return write_store(tmp_path / "s.h5", sequences, {"appearance": maps})


def frames(path: Path, count: int) -> Any:
    with Store(path) as store:
        return store.read("appearance", range(count)).astype(np.float64).reshape(count, -1)


def test_it_is_scikit_learns_of_the_training_frames(path: Path) -> None:
    seen = frames(path, 10 * CLIP_LENGTH)
    exact = PCA(8, svd_solver="full").fit(seen)
    assert derive_streams(path, [PCA8]) == ["pca8"]
    with Store(path) as store:
        basis = PCABasis.of(store.basis("pca8"))
        got = store.read("pca8", range(store.frames))
    signs = np.sign(np.sum(basis.components * exact.components_, axis=1))
    np.testing.assert_allclose(basis.mean, seen.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(basis.components * signs[:, None], exact.components_, atol=1e-6)
    expected = exact.transform(frames(path, 13 * CLIP_LENGTH))  # of the test split too
    np.testing.assert_allclose(got * signs, expected, atol=1e-5 * np.abs(expected).max())


def test_blocks_find_the_same_and_a_draw_repeats_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    maps = (rng.normal(size=(50, 4)) * (8, 4, 2, 1)) @ np.linalg.qr(rng.normal(size=(30, 4)))[0].T + 3
    whole = fit_pca(lambda rows: maps[rows], np.arange(50), 6)
    assert not whole.components[4:].any()  # nothing varies there
    monkeypatch.setattr("stage2_temporal.data.pca_projection.MAPS_PER_BATCH", 7)
    parts = fit_pca(lambda rows: maps[rows], np.arange(50), 6)
    np.testing.assert_allclose(np.abs(parts.components), np.abs(whole.components), atol=1e-6)
    monkeypatch.setattr("stage2_temporal.data.pca_projection.MAX_FIT_FRAMES", 20)
    read: list[int] = []

    def reading(rows: Any) -> Any:
        read.extend(rows.tolist())
        return maps[rows]

    first, second = fit_pca(reading, np.arange(50), 3), fit_pca(reading, np.arange(50), 3)
    assert read[:20] == read[20:] == sorted(set(read))
    np.testing.assert_array_equal(first.components, second.components)


@pytest.mark.parametrize("difference", [False, True])
@pytest.mark.parametrize("name", ["ridge", "pooled_lstm", "boosting"])
def test_cached_is_uncached(path: Path, name: str, difference: bool, tmp_path: Path) -> None:
    X, y, _ = load_examples(path, train_config(window={"length": 4}))
    settings = {"units": 4, "dense": 0, "epochs": 1, "batch": 8, "lags": (1, 2), "layers": 2}
    head = find_head(name)(components=8, difference=difference, **settings).fit(X, y)
    assert head._ready(X) and X.source.store.streams["pca8"] == PCA8.info(X.source.store)
    cached = head.predict(X)
    tolerance = 1e-5 * np.abs(cached).max()
    np.testing.assert_allclose(head.predict(X.stream("appearance")), cached, atol=tolerance)
    layer = head.model_.get_layer("features.components")
    assert not layer.trainable_weights and layer.kernel.shape == (np.prod(MAP_SHAPE), 8)
    head.model_.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    again = find_head(name)(**head.get_params()).restore(loaded)
    assert again._ready(X)
    np.testing.assert_allclose(again.predict(X), cached.reshape(len(X), -1), atol=tolerance)


def test_a_store_that_cannot_be_written_and_a_plain_array(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stage2_temporal.data.derived_streams.LOCK_TIMEOUT", 0.1)
    X, y, _ = load_examples(path, train_config(window={"length": CLIP_LENGTH}))  # every training frame once
    heads = [find_head("pooled_lstm")(components=8, units=4, dense=0, epochs=1, batch=8) for _ in range(3)]
    with FileLock(path.with_name(f"{path.name}.lock")):
        heads[0].fit(X, y)
    assert "pca8 are not kept in the store" in capsys.readouterr().err
    assert not heads[0]._ready(X)
    heads[1].fit(X, y)
    assert heads[1]._ready(X)
    heads[2].fit(X.stream("appearance"), y)
    expected = heads[1].predict(X)
    for head in heads[::2]:
        np.testing.assert_allclose(head.predict(X), expected, atol=1e-3 * np.abs(expected).max())


def test_other_training_clips_make_it_anew_and_a_model_keeps_its_own(path: Path, tmp_path: Path) -> None:
    X, y, _ = load_examples(path, train_config(window={"length": 4}))
    head = find_head("ridge")(components=8).fit(X, y)
    expected = head.predict(X.stream("appearance"))
    with Store(path) as store:
        was, sequences = PCA8.info(store), list(store.sequences)
        maps = store.read("appearance", range(store.frames))
    fewer = [replace(s, split="test" if i < 4 else s.split) for i, s in enumerate(sequences)]
    other = write_store(tmp_path / "other.h5", fewer, {"appearance": maps})
    tested = [replace(s, digest="new") if s.split == "test" else s for s in sequences]
    with Store(other) as store, Store(write_store(tmp_path / "t.h5", tested, {"appearance": maps})) as same:
        assert PCA8.info(store).fingerprint != was.fingerprint
        assert PCA8.info(same).fingerprint == was.fingerprint
    assert derive_streams(other, [PCA8]) == ["pca8"]
    there = load_examples(other, train_config(window={"length": 4}), splits=("train", "test"))[0]
    assert not head._ready(there)  # the store's components are others than the model's
    at = [i for i, s in enumerate(there.groups.tolist()) if s < 10]
    np.testing.assert_allclose(head.predict(there[np.array(at)]), expected, rtol=1e-5)


def test_the_store_keeps_a_basis_with_its_stream(path: Path) -> None:
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
        assert is_stored(store, PCA8) and set(ExistingStore.of(path, {}).bases["pca8"]) == {"mean", "components"}
    with h5py.File(path, "r+") as f:
        assert f["bases/pca8/components"].fletcher32 and f["bases/pca8/mean"].fletcher32
        del f["bases"]  # as written by who knows no bases
    with Store(path) as store:
        assert not is_stored(store, PCA8)
    assert derive_streams(path, [PCA8]) == ["pca8"]


def test_a_damaged_basis_is_found(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    derive_streams(path, [PCA8])
    with h5py.File(path) as f:
        at = f["bases/pca8/components"].id.get_chunk_info(0).byte_offset
    data = bytearray(path.read_bytes())
    data[at + 8] ^= 0xFF
    path.write_bytes(data)
    assert stage1(["verify", "--store", str(path)]) != 0
    assert "frame 0: pca8 damaged" in "".join(capsys.readouterr())
    assert "pca8" not in ExistingStore.of(path, {0: ["pca8"]}).bases


def test_refusals(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    X, y, _ = load_examples(path, train_config(window={"length": 4}))
    most = 10 * CLIP_LENGTH - 1
    with pytest.raises(ConfigError, match=f"at most {most} .*got {most + 1}.*--head.components {most}"):
        find_head("ridge")(components=most + 1).fit(X, y)
    with pytest.raises(ConfigError, match="at most 11 "):
        find_head("ridge")(components=12).fit(X.stream("appearance")[:3], y[:3])
    with pytest.raises(ConfigError, match="components"):
        find_head("ridge")(components=-1).fit(X, y)
    maps, sequences = drifting_clips(COUNTS)
    topped = write_store(tmp_path / "t.h5", sequences, {"appearance": maps}, top=conv_top())
    T, _, _ = load_examples(topped, train_config(window={"length": 4}))
    for call in (lambda: find_head("ridge")(components=4).fit(T, y), lambda: find_head("gru")(components=4).derived(T)):
        with pytest.raises(ConfigError, match=r"backbone\.top = false"):
            call()
    assert main(["derive", "--store", str(path), "--stream", "pca4", "pca99"]) == 2
    assert "pca99" in capsys.readouterr().err
    assert main(["derive", "--store", str(path), "--stream", "pca4"]) == 0
    assert capsys.readouterr().out == f"{path}: pca4 derived\n"
    assert (
        parse_stream_name("motion.pca16") == PCAProjection("motion", 16)
        and parse_stream_name("motion.pca16").name == "motion.pca16"
    )
    with pytest.raises(ConfigError, match="no stream that can be derived"):
        parse_stream_name("pca0")
