"""A CSV manifest: path, sequence, frame, split, then target columns.

Optional reserved columns: fps; left, top, right, bottom (the vehicle's box in pixels); x, y (its position in metres).
Paths are relative to the CSV, and may lie outside its folder: it is the user's own file.
"""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

from features.config import DataConfig
from features.errors import DataError
from features.sequences import SPLITS
from stage1_extract.datasets.image_sequence import ClipSpec, error_line
from stage1_extract.datasets.label_csv import LabelRow, read_label_csv

REQUIRED = ("path", "sequence", "frame", "split")


def manifest_clips(data: DataConfig) -> tuple[list[ClipSpec], list[str]]:
    """A draft for each sequence in the order of its first row, and the faults that belong to none.

    Rows of a sequence are ordered by `frame`, which need not be contiguous; several rows of one frame are several
    labels of it. A row with neither target nor box nor position only names its frame.

    Raises:
        DataError: no such file, no CSV, no rows, or a missing column.
    """
    path = Path(data.path)
    faults: list[str] = []
    hint = f"set data.path to a CSV file with the columns {', '.join(REQUIRED)}"
    table = read_label_csv(path, faults, required=REQUIRED, hint=hint)
    if not table.rows and not faults:
        raise DataError(f"{path}: no rows", expected="one row a frame", got="a header only", hint=f"edit {path}")
    rows: dict[str, list[LabelRow]] = defaultdict(list)
    for row in table.rows:
        if row.cells["sequence"]:
            rows[row.cells["sequence"]].append(row)
        else:
            faults.append(error_line(f"{row.where}: no sequence", expected="a name", got="an empty cell"))
    targets = table.targets(*REQUIRED, "fps")
    return [_draft(id, own, path.parent, targets, data.fps) for id, own in rows.items()], faults


def _draft(id: str, rows: list[LabelRow], root: Path, targets: tuple[str, ...], fps: float) -> ClipSpec:
    faults: list[str] = []
    draft = ClipSpec(id, _split(rows, faults), _fps(rows, fps, faults), faults=faults)
    numbered: list[tuple[float, LabelRow]] = []
    files: dict[float, LabelRow] = {}
    for row in rows:
        number = row.number("frame", draft.faults)
        if not row.cells["frame"] or not row.cells["path"]:
            column = "path" if row.cells["frame"] else "frame"
            draft.faults.append(error_line(f"{row.where}: no {column}", expected=f"a {column}", got="an empty cell"))
        elif math.isfinite(number):
            first = files.setdefault(number, row)
            if first.cells["path"] != row.cells["path"]:
                draft.faults.append(
                    error_line(
                        f"{row.where}: frame {row.cells['frame']} of {id} is there twice",
                        expected=first.cells["path"],
                        got=row.cells["path"],
                    )
                )
            numbered.append((number, row))
    order = {number: index for index, number in enumerate(sorted(files))}
    draft.files = tuple(root / files[number].cells["path"] for number in order)
    labels = [row.label(order[n], targets, draft.faults) for n, row in sorted(numbered, key=lambda pair: pair[0])]
    draft.labels = tuple(label for label in labels if label is not None)
    return draft


def _split(rows: list[LabelRow], faults: list[str]) -> str:
    split = rows[0].cells["split"]
    for row in rows:
        if row.cells["split"] not in SPLITS:
            got = repr(row.cells["split"])
            faults.append(error_line(f"{row.where}: unknown split", expected=f"one of {', '.join(SPLITS)}", got=got))
        elif row.cells["split"] != split:
            # frames of one sequence on both sides of a split would make every figure too good
            what = f"{row.where}: sequence {row.cells['sequence']} is in two splits"
            faults.append(error_line(what, expected=split, got=row.cells["split"]))
    return split


def _fps(rows: list[LabelRow], default: float, faults: list[str]) -> float:
    given: float | None = None
    for row in rows:
        value = row.number("fps", faults)
        if math.isfinite(value):
            given = value if given is None else given
            if value <= 0 or value != given:
                expected = f"{given}, as above" if given > 0 else "more than 0"
                faults.append(error_line(f"{row.where}: wrong fps", expected=expected, got=value))
    return default if given is None else given
