"""Features of other tools become a store on which heads work, and images are refused by name."""

from __future__ import annotations

import csv
import hashlib
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from features.errors import BadInputs, ConfigError, DataError, FramebankError, StoreError
from features.store import Store
from features.verification import find_damage
from framebank.cli import main
from stage1_extract.feature_import import ImportOptions, import_features

LENGTH, WIDTH = 5, 7
SPLITS = ["train"] * 24 + ["validation"] * 6 + ["test"] * 6
OPTIONS = ImportOptions("dino", fps=10.0, dtype="float32")


def clips() -> dict[str, NDArray[np.float32]]:
    """Features that move along a fixed direction, the faster the car drives."""
    rng = np.random.default_rng(1)
    direction, features = rng.normal(size=WIDTH), {}
    for i in range(len(SPLITS)):
        steps = (i % 12) * np.arange(LENGTH)[:, None]
        features[f"clip{i:02d}"] = (rng.normal(0, 0.05, (LENGTH, WIDTH)) + steps * direction / 10).astype(np.float32)
    return features


def write_table(path: Path, shared: bool = False, **changes: Any) -> Path:
    header = ["sequence", "split", "ego_speed", *(["first", "length"] if shared else []), *changes]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for i, split in enumerate(SPLITS):
            rows = [i * LENGTH, LENGTH] if shared else []
            writer.writerow([f"clip{i:02d}", split, float(i % 12), *rows, *changes.values()])
    return path


def write_npy(folder: Path) -> Path:
    (folder / "features").mkdir()
    for name, values in clips().items():
        np.save(folder / "features" / f"{name}.npy", values)
    return folder / "features"


def write_one_npy(folder: Path) -> Path:
    np.save(folder / "all.npy", np.concatenate(list(clips().values())))
    return folder / "all.npy"


def write_hdf5(folder: Path) -> Path:
    with h5py.File(folder / "features.h5", "w") as f:
        for name, values in clips().items():
            f.create_dataset(name, data=values, compression="gzip")
    return folder / "features.h5"


def write_parquet(folder: Path) -> Path:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    values = np.concatenate(list(clips().values()))
    names = [name for name in clips() for _ in range(LENGTH)]
    table = pyarrow.table({"sequence": names, "features": list(values)})
    parquet.write_table(table, folder / "features.parquet", row_group_size=13)
    return folder / "features.parquet"


@pytest.mark.parametrize("write", [write_npy, write_one_npy, write_hdf5, write_parquet])
def test_every_format_gives_the_same_store(tmp_path: Path, write: Any) -> None:
    features, store = write(tmp_path), tmp_path / "dino.h5"
    table = write_table(tmp_path / "table.csv", shared=write is write_one_npy)
    assert "180 frames of 36 sequences, 7 float32 each" in import_features(features, table, store, OPTIONS)
    assert not find_damage(store) and not (tmp_path / "dino.h5.shards").exists()
    with Store(store) as opened:
        np.testing.assert_array_equal(opened.read("appearance", range(180)), np.concatenate(list(clips().values())))
        assert [s.id for s in opened.sequences] == list(clips()) and opened.complete
        assert opened.sequences[13].labels[0].targets == {"ego_speed": 1.0}
        assert opened.sequences[13].labels[0].frame == LENGTH - 1
        assert opened.recipe.backbone == "import:dino"
        if features.is_file():
            assert opened.recipe.weights_digest == hashlib.sha256(features.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of imported features."""
    folder = tmp_path_factory.mktemp("imported")
    write_table(folder / "table.csv")
    arguments = [str(write_hdf5(folder)), "--table", str(folder / "table.csv"), "--store", str(folder / "dino.h5")]
    assert main(["import", *arguments, "--name", "dino", "--fps", "10"]) == 0
    return folder


def test_heads_and_leaderboard_work_and_images_are_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    train = ["train", "--store", "dino.h5", "--window.length", "5", "--head.name", "ridge", "--head.difference", "true"]
    assert main([*train, "--run", "r"]) == 2
    assert "backbone.name 'import:dino' in the store" in " ".join(capsys.readouterr().err.split())
    assert main([*train, "--backbone.name", "import:dino", "--run", "r"]) == 0
    assert json.loads(Path("runs/r/metrics.json").read_text())["splits"]["test"]["model"]["skill"] > 0.9
    card = Path("runs/r/README.md").read_text()
    assert "import:dino" in card and "another tool" in card and "fb.predict" not in card
    capsys.readouterr()
    assert main(["leaderboard"]) == 0
    assert "ridge" in capsys.readouterr().out
    assert main(["evaluate", "--run", "r"]) == 0
    for command, why in (
        (["predict", "--run", "r"], "another tool computed its features (import:dino)"),
        (["fuse", "--run", "r"], "its backbone import:dino was run elsewhere"),
        (["extract", "--backbone.name", "import:dino", "--store", "x.h5"], "cannot compute them from images"),
    ):
        capsys.readouterr()
        assert main(command) == 2
        assert why in " ".join(capsys.readouterr().err.split()), command


def test_info_says_that_they_were_imported(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--store", str(project / "dino.h5")]) == 0
    out = capsys.readouterr().out
    assert "import:dino, weights features.h5" in out and "frames       1x1" not in out and "computed in" not in out


def test_maps_and_tokens_keep_their_shape(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    for i in range(len(SPLITS)):
        np.save(tmp_path / "f" / f"clip{i:02d}.npy", np.ones((LENGTH, 4, 3)))
    import_features(tmp_path / "f", write_table(tmp_path / "t.csv"), tmp_path / "s.h5", OPTIONS)
    with Store(tmp_path / "s.h5") as store:
        assert store.streams["appearance"].shape == (4, 1, 3)


def test_a_store_of_other_features_is_not_replaced(project: Path) -> None:
    with pytest.raises(StoreError, match="a store of other features"):
        import_features(project / "features.h5", project / "table.csv", project / "dino.h5", ImportOptions("clip"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fps": -1}, "wrong fps"),
        ({"frame": "x"}, "frame is not a number"),
        ({"first": 3, "length": 9}, "rows that are not there"),
        ({"speed": 1}, None),
    ],
)
def test_faults_of_the_table_are_named(project: Path, tmp_path: Path, changes: Any, message: str | None) -> None:
    table = write_table(tmp_path / "t.csv", **changes)
    arguments = project / "features.h5", table, tmp_path / "s.h5", OPTIONS
    if message is None:
        import_features(*arguments)
    else:
        with pytest.raises(BadInputs, match="errors; nothing was imported") as e:
            import_features(*arguments)
        assert any(message in fault for fault in e.value.faults)
        assert not (tmp_path / "s.h5").exists()


def hostile_files(folder: Path) -> dict[str, Path]:
    """Files that are not what they claim, by the error that names them."""
    np.save(folder / "objects.npy", np.array([{"a": 1}], object), allow_pickle=True)
    np.save(folder / "text.npy", np.array([["a", "b"]]))
    np.save(folder / "flat.npy", np.zeros(9))
    (folder / "short.npy").write_bytes(b"")
    np.save(folder / "cut.npy", np.zeros((100, 100)))
    (folder / "cut.npy").write_bytes((folder / "cut.npy").read_bytes()[:5000])
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999, 8), }".ljust(117) + b"\n"
    (folder / "huge.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"0" * 64)
    with h5py.File(folder / "link.h5", "w") as f:
        f["x"] = h5py.ExternalLink("/etc/passwd", "/")
    with h5py.File(folder / "wide.h5", "w") as f:
        f.create_dataset("x", (2, 1 << 26), "f4", chunks=(1, 1 << 16))
    (folder / "no.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + b"\xff" * 200)
    (folder / "a.pickle").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    if find_spec("pyarrow") is not None:
        (folder / "no.parquet").write_bytes(b"PAR1" + b"\xff" * 100 + b"PAR1")
    return {path.name: path for path in folder.iterdir()}


def test_hostile_feature_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    files = hostile_files(tmp_path / "files")
    table = tmp_path / "t.csv"
    table.write_text("sequence,split,ego_speed\nclip,train,1\n")
    for name, path in files.items():
        with pytest.raises(FramebankError) as e:
            import_features(path, table, tmp_path / "s.h5", OPTIONS)
        assert name in str(e.value), name
        assert not (tmp_path / "s.h5").exists()


def test_numbers_that_cannot_be_stored_are_refused(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("sequence,split,ego_speed\nclip,train,1\n")
    for value, dtype, message in ((np.nan, "float32", "NaN or infinite"), (1e6, "float16", "half precision")):
        np.save(tmp_path / "x.npy", np.full((3, 2), value))
        with pytest.raises(DataError, match=message):
            import_features(tmp_path / "x.npy", table, tmp_path / "s.h5", ImportOptions("x", dtype=dtype))
        assert not (tmp_path / "s.h5").exists()


def test_name_must_be_a_word(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--name must be a word"):
        import_features(tmp_path, tmp_path, tmp_path, ImportOptions("a/b"))
