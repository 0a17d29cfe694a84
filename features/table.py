"""A store's labels and sequences, and a run's predictions for them, as a pandas DataFrame. Pandas is an extra."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from features._common.atomic import atomic_write
from features._common.csv_table import read_csv_table
from features._common.extras import require_package
from features._common.plain_text import disarm_cell
from features.errors import ConfigError, DataError, StoreError
from features.sequences import Camera, FrameSequence, Label
from features.windows import target_value

BOX_COLUMNS = ("left", "top", "right", "bottom")  # px of the full frame
CAMERA_COLUMNS = ("fx", "fy", "cx", "cy", "height", "horizon")
KEY = ["sequence", "label"]
WINDOW_PARTS = ("first", "stride", "length")  # of predictions.csv
TABLE_FORMATS = (".csv", ".parquet")


def label_table(sequences: Sequence[FrameSequence]) -> Any:
    """A DataFrame with a row per label, and one for each sequence without labels; see `Store.table`.

    Raises:
        ConfigError: pandas is not installed.
    """
    require_package("pandas", "tables", "a table")
    import pandas

    names = dict.fromkeys(
        name for s in sequences for label in s.labels for name in label.targets if name not in ("x", "y")
    )
    rows = [_row(s, i, label, names) for s in sequences for i, label in enumerate(s.labels or (None,))]
    table = pandas.DataFrame(rows).astype({"label": "Int64", "frame": "Int64"})
    optional = [c for c in (*BOX_COLUMNS, "x", "y", *(f"camera_{c}" for c in CAMERA_COLUMNS)) if table[c].isna().all()]
    return table.drop(columns=optional)


def _row(sequence: FrameSequence, index: int, label: Label | None, names: Mapping[str, None]) -> dict[str, Any]:
    known = label or Label(0)
    row: dict[str, Any] = {
        "sequence": sequence.id,
        "label": None if label is None else index,
        "frame": None if label is None else label.frame,
        "time": sequence.frame_times[label.frame] if label and 0 <= label.frame < sequence.length else math.nan,
        "split": sequence.split,
        "frames": sequence.length,
        "fps": sequence.fps,
        "width": sequence.size[0],
        "height": sequence.size[1],
    }
    camera: Camera | None = sequence.camera
    optional = {
        **dict(zip(BOX_COLUMNS, known.box or (math.nan,) * 4, strict=True)),
        "x": target_value(known, "x"),
        "y": target_value(known, "y"),
        **{f"camera_{name}": _number(getattr(camera, name, None)) for name in CAMERA_COLUMNS},
    }
    # a data set may have a target of any name
    targets = {f"target_{n}" if n in row | optional else n: target_value(known, n) for n in names}
    return row | targets | optional


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def join_predictions(table: Any, run: Path) -> Any:
    """Add the columns of a run's predictions.csv to a `label_table`, NaN where the run predicts nothing.

    Raises:
        DataError: there are no predictions in the folder, or the file is not as training writes it.
        StoreError: the run predicts labels that the store does not have.
    """
    import pandas

    path, hint = run / "predictions.csv", "framebank evaluate, which writes it again"
    whole = ("label", "frame", *WINDOW_PARTS)
    csv = read_csv_table(path, required=("sequence", "split", *whole), hint=hint)
    predicted = pandas.DataFrame([row.cells for row in csv.rows], columns=csv.columns)
    for name in predicted.columns.difference(["sequence", "split"]):
        with suppress(ValueError, TypeError):  # text
            predicted[name] = pandas.to_numeric(predicted[name])
    if wrong := [name for name in whole if predicted[name].dtype.kind != "i"]:
        raise DataError(f"{path}: no whole number in each row of {', '.join(wrong)}", hint=hint)
    if predicted.duplicated(KEY).any():
        raise DataError(f"{path}: two predictions for one label", hint=hint)
    stored = table[[*KEY, "frame"]].dropna().astype({"label": "int64", "frame": "int64"})
    if len(predicted.merge(stored)) != len(predicted):  # by all common columns
        raise StoreError(f"{run}: its predictions are for other labels than the store's", hint="--store of the run")
    true = [name for name in predicted if name.endswith("_true")]
    predicted = predicted.drop(columns=["frame", "distance", *true], errors="ignore").astype({"label": "Int64"})
    renamed = {"split": "run_split"} | {name: f"window_{name}" for name in WINDOW_PARTS}
    predicted = predicted.drop(columns=[*renamed.values()], errors="ignore").rename(columns=renamed)
    predicted = predicted.drop(columns=table.columns.difference(KEY), errors="ignore")
    joined = table.merge(predicted, left_on=KEY, right_on=KEY, how="left", validate="one_to_one")
    return joined.astype({f"window_{name}": "Int64" for name in WINDOW_PARTS})


def write_table(path: Path, table: Any) -> None:
    """Write a DataFrame as `.csv` or `.parquet`, whichever the path ends in; a ConfigError for other endings."""
    suffix = path.suffix.lower()
    if suffix not in TABLE_FORMATS:
        raise ConfigError(
            f"{path}: unknown format", expected=f"one of {', '.join(TABLE_FORMATS)}", got=suffix or "no ending"
        )
    if suffix == ".parquet":
        require_package("pyarrow", "tables", "a Parquet file")
    with atomic_write(path) as temporary:
        if suffix == ".parquet":
            table.to_parquet(temporary, index=False)
        else:
            text = {name: table[name].map(disarm_cell) for name in table if table[name].dtype.kind not in "iufb"}
            table.assign(**text).rename(columns=disarm_cell).to_csv(temporary, index=False)
