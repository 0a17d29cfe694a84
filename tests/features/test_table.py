"""A store's table: labels, sequences, and a run's predictions, in memory and as files."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features.errors import ConfigError, DataError, StoreError
from features.sequences import Camera, FrameSequence, Label
from features.store import Store
from features.table import write_table
from framebank.cli import main
from tests.helpers import write_store

pandas = pytest.importorskip("pandas")

PREDICTIONS = """split,sequence,label,frame,first,stride,length,vx_true,vx_pred,distance,vx_low,vx_high,unlike_training
train,Train/1,0,7,0,1,8,1.5,1.25,20.1,1.0,1.5,0
validation,Train/2,1,7,0,1,8,,2.5,,2.0,3.0,1
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of four sequences: without labels, with one, with two, and with one outside its frames."""
    box, position = (1.5, 2.5, 3.5, 4.5), (20.1, -0.3)
    labels: list[tuple[Label, ...]] = [
        (),
        (Label(7, {"vx": 1.5}, box, position),),
        (Label(3, {"ego_speed": 9.0}), Label(7, {"vx": math.nan, "fps": 3.0})),
        (Label(39, {"vx": 2.0}),),
    ]
    sequences = [
        FrameSequence(f"Train/{i}", "train", 8, 20.0, (1280, 720), f"{i:064x}", of) for i, of in enumerate(labels)
    ]
    sequences[1] = replace(sequences[1], camera=Camera(700.0, 700.0, 640.0, 360.0, 1.4))
    return write_store(tmp_path / "s.h5", sequences, {"appearance": np.zeros((32, 3, 5, 7), np.float16)})


def run_folder(tmp_path: Path, text: str = PREDICTIONS) -> Path:
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "predictions.csv").write_text(text)
    return tmp_path / "run"


def test_table_has_a_row_per_label_and_one_per_unlabelled_sequence(path: Path) -> None:
    with Store(path) as store:
        table = store.table()
    assert table.sequence.tolist() == ["Train/0", "Train/1", "Train/2", "Train/2", "Train/3"]
    assert table.label.tolist() == [pandas.NA, 0, 0, 1, 0]
    assert table.frame.tolist()[1:] == [7, 3, 7, 39]
    np.testing.assert_allclose(table.time, [np.nan, 0.35, 0.15, 0.35, np.nan])
    np.testing.assert_allclose(table.vx, [np.nan, 1.5, np.nan, np.nan, 2.0])
    np.testing.assert_allclose(table.ego_speed, [np.nan, np.nan, 9, np.nan, np.nan])
    assert table.fps.tolist() == [20.0] * 5 and table.target_fps.tolist()[3] == 3.0  # a target named like a column
    assert table.loc[1, ["left", "x", "y", "camera_fx", "camera_height"]].tolist() == [1.5, 20.1, -0.3, 700.0, 1.4]
    assert "camera_horizon" not in table  # nobody knows it


def test_predictions_are_joined_to_their_labels(path: Path, tmp_path: Path) -> None:
    with Store(path) as store:
        table = store.table(run_folder(tmp_path))
        assert len(table) == len(store.table())
    np.testing.assert_allclose(table.vx_pred, [np.nan, 1.25, np.nan, 2.5, np.nan])
    assert table.run_split.tolist()[1::2] == ["train", "validation"]
    assert table.window_length.tolist()[1::2] == [8, 8]
    assert {"vx_low", "vx_high", "unlike_training"} <= set(table) and not {"vx_true", "frame_x"} & set(table)


def test_predictions_of_another_store_are_refused(path: Path, tmp_path: Path) -> None:
    with Store(path) as store:
        for wrong in (PREDICTIONS.replace("Train/2", "Train/9"), PREDICTIONS.replace("0,7,0", "0,6,0")):
            with pytest.raises(StoreError, match="other labels"):
                store.table(run_folder(tmp_path, wrong))
        with pytest.raises(DataError, match="no column"):
            store.table(run_folder(tmp_path, "a,b\n1,2\n"))
        with pytest.raises(DataError, match="bad header"):
            store.table(run_folder(tmp_path, ""))
        with pytest.raises(DataError, match="two predictions for one label"):
            store.table(run_folder(tmp_path, PREDICTIONS + PREDICTIONS.splitlines()[1]))
        with pytest.raises(DataError, match="no whole number in each row of label"):
            store.table(run_folder(tmp_path, PREDICTIONS.replace("Train/1,0", "Train/1,0.5")))
        with pytest.raises(DataError, match="no such file"):
            store.table(tmp_path)


def test_command_writes_csv_and_parquet(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow")
    with Store(path) as store:
        expected = store.table()
    for suffix, read in (("csv", pandas.read_csv), ("parquet", pandas.read_parquet)):
        output = tmp_path / f"out.{suffix}"
        assert main(["table", "--store", str(path), "--output", str(output)]) == 0
        assert f"{output}: 5 rows" in capsys.readouterr().out
        pandas.testing.assert_frame_equal(read(output), expected, check_dtype=False)
    assert main(["table", "--store", str(path), "--output", str(tmp_path / "out.xlsx")]) == 2
    assert "expected one of .csv, .parquet" in capsys.readouterr().err


def test_text_of_a_run_is_no_formula_and_takes_no_column_of_the_store(path: Path, tmp_path: Path) -> None:
    text = PREDICTIONS.replace(",distance,", ",fps,").replace("train,Train", "=1+1,Train").replace(",20.1,", ",@x,")
    with Store(path) as store:
        table = store.table(run_folder(tmp_path, text))
    assert table.fps.tolist() == [20.0] * 5
    write_table(tmp_path / "out.csv", table)
    assert "'=1+1" in (tmp_path / "out.csv").read_text()


def test_missing_pandas_names_the_extra(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("features._common.extras.find_spec", lambda name: None)
    with Store(path) as store, pytest.raises(ConfigError, match=r"framebank\[tables\]"):
        store.table()
