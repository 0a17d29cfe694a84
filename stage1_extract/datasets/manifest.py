"""A CSV manifest: the columns path, sequence, frame and split, then target columns.

Optional reserved columns: time (seconds, of each frame) or fps; left, top, right, bottom (the vehicle's box in px);
x, y (its position in m). Other columns without any number, such as remarks, are ignored.
Paths are relative to the CSV, and may lie outside its folder, because it is the user's own file.
"""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np

from features._common.console import logger
from features._common.csv_table import CsvRow, read_csv_table
from features._common.user_path import expand_user
from features.config import DataConfig
from features.errors import DataError
from features.limits import FASTEST_RATE, LARGEST_NUMBER, SLOWEST_RATE, VIDEO_FRAMES
from features.sequences import SPLITS
from stage1_extract.datasets.clip import add_fault, frame_timing
from stage1_extract.datasets.image_sequence import ClipSpec
from stage1_extract.datasets.label_csv import finite_number, read_label, read_number, target_columns

SUSPICIOUS_RATE = 0.2  # frames per second; below it, `time` may be in ms
REQUIRED_COLUMNS = ("path", "sequence", "frame", "split")


def manifest_clips(data: DataConfig) -> tuple[list[ClipSpec], list[str]]:
    """Describe each sequence, in order of its first row, and collect faults that belong to no sequence.

    The rows of a sequence are ordered by `frame`. Where its numbers have gaps, no window spans them, unless all frames
    are equally far apart. Rows of one frame are several labels of it; one without target, box or position only adds its
    frame, and one that is repeated counts once. A DataError if the file is missing, not CSV, or lacks a column.
    """
    path = Path(data.path)
    faults: list[str] = []
    hint = f"set data.path to a CSV file with the columns {', '.join(REQUIRED_COLUMNS)}"
    table = read_csv_table(path, required=REQUIRED_COLUMNS, hint=hint, faults=faults)
    if not table.rows and not faults:
        raise DataError(f"{path}: no rows", expected="one row per frame", got="only a header", hint=f"edit {path}")
    rows: dict[str, list[CsvRow]] = defaultdict(list)
    for row in table.rows:
        if row.cells["sequence"]:
            rows[row.cells["sequence"]].append(row)
        else:
            add_fault(faults, f"{row.where}: no sequence", "a name", "an empty cell")
    columns = target_columns(table.columns, *REQUIRED_COLUMNS, "fps", "time")
    targets = tuple(c for c in columns if any(math.isfinite(finite_number(row.cells[c])) for row in table.rows))
    for column in data.columns:
        if column in columns and column not in targets and (filled := [row for row in table.rows if row.cells[column]]):
            expected, got = "a finite number, or an empty cell for unknown", repr(filled[0].cells[column][:40])
            raise DataError(
                f"{filled[0].where}: {column} has no number", expected=expected, got=got, hint=f"edit {path}"
            )
    if ignored := [c for c in columns if c not in targets and any(row.cells[c] for row in table.rows)]:
        logger.info(f"{path}: ignored {', '.join(ignored)}, which has no number")
    return [_clip_spec(id, clip_rows, path.parent, targets, data.fps) for id, clip_rows in rows.items()], faults


def _clip_spec(id: str, rows: list[CsvRow], root: Path, targets: tuple[str, ...], fps: float) -> ClipSpec:
    faults: list[str] = []
    spec = ClipSpec(id, _split(rows, faults), _fps(rows, fps, faults), faults=faults)
    numbered: list[tuple[float, CsvRow]] = []
    known_rows: set[tuple[str, ...]] = set()
    first_rows: dict[float, CsvRow] = {}  # of each frame
    for row in rows:
        number = read_number(row, "frame", faults)
        if not row.cells["frame"] or not row.cells["path"]:
            column = "path" if row.cells["frame"] else "frame"
            add_fault(faults, f"{row.where}: no {column}", f"a {column}", "an empty cell")
        elif math.isfinite(number) and (values := tuple(row.cells.values())) not in known_rows:
            known_rows.add(values)
            first = first_rows.setdefault(number, row)
            if first.cells["path"] != row.cells["path"]:
                what = f"{row.where}: two files for frame {row.cells['frame']} of {id}"
                add_fault(faults, what, first.cells["path"], row.cells["path"])
            numbered.append((number, row))
    order = {number: index for index, number in enumerate(sorted(first_rows))}
    spec.files = tuple(_find(root, first_rows[number].cells["path"]) for number in order)
    if len(known_rows) < len(rows) and not faults:
        logger.warning(f"{id}: {len(rows) - len(known_rows)} rows of the manifest are repeated, and count once")
    spec.fps, spec.times = _timing(sorted(first_rows.items()), spec.fps, faults)
    labels = [read_label(row, order[n], targets, faults) for n, row in sorted(numbered, key=lambda pair: pair[0])]
    spec.labels = tuple(label for label in labels if label is not None)
    return spec


def _find(root: Path, name: str) -> Path:
    """The path that a manifest in the folder `root` names; backslashes of Windows separate folders everywhere."""
    path = root / expand_user(name)
    return root / name.replace("\\", "/") if "\\" in name and not path.exists() else path


def _split(rows: list[CsvRow], faults: list[str]) -> str:
    split = rows[0].cells["split"]
    for row in rows:
        if row.cells["split"] not in SPLITS:
            expected = f"one of {', '.join(SPLITS)}"
            add_fault(faults, f"{row.where}: unknown split", expected, repr(row.cells["split"]))
        elif row.cells["split"] != split:
            # frames of one sequence in two splits would make all results too good
            what = f"{row.where}: sequence {row.cells['sequence']} is in two splits"
            add_fault(faults, what, split, row.cells["split"])
    return split


def _fps(rows: list[CsvRow], default: float, faults: list[str]) -> float:
    values = [(row, value) for row in rows if math.isfinite(value := read_number(row, "fps", faults))]
    fps = values[0][1] if values else default
    for row, value in values:
        if not SLOWEST_RATE <= value <= FASTEST_RATE or value != fps:
            expected = (
                f"{fps}, as above" if SLOWEST_RATE <= fps <= FASTEST_RATE else f"{SLOWEST_RATE:g} to {FASTEST_RATE:g}"
            )
            add_fault(faults, f"{row.where}: wrong fps", expected, value)
    return fps


def _timing(rows: list[tuple[float, CsvRow]], fps: float, faults: list[str]) -> tuple[float, tuple[float, ...] | None]:
    """The frame rate and, if uneven, the times of frames, by the column `time` or else by their numbers."""
    if len(rows) < 2:
        return fps, None
    if not any(row.cells.get("time") for _, row in rows):
        numbers = np.array([number for number, _ in rows])
        if not np.ptp(numbers) <= VIDEO_FRAMES * np.diff(numbers).min():
            got = f"from {numbers[0]:g} to {numbers[-1]:g}, some as close as {np.diff(numbers).min():.3g}"
            add_fault(
                faults, f"{rows[0][1].where}: frame numbers too far apart", f"within {VIDEO_FRAMES:,} frames", got
            )
        if faults:
            return fps, None
        return fps, frame_timing(numbers / np.diff(numbers).min() / fps, fps)[1]
    seconds = [read_number(row, "time", faults) for _, row in rows]
    for (before, _), (time, row) in pairwise(zip(seconds, (row for _, row in rows), strict=True)):
        if not time > before and not math.isnan(before):
            what = f"{row.where}: time is missing" if math.isnan(time) else f"{row.where}: time does not increase"
            add_fault(faults, what, f"more than {before} s", repr(row.cells["time"]))
    if math.isnan(seconds[0]) and not faults:
        add_fault(faults, f"{rows[0][1].where}: time is missing", "seconds", "an empty cell")
    rate = (len(seconds) - 1) / max(seconds[-1] - seconds[0], 1 / LARGEST_NUMBER)
    if not faults and not SLOWEST_RATE <= rate <= FASTEST_RATE:
        expected = f"{SLOWEST_RATE:g} to {FASTEST_RATE:g} frames per second"
        add_fault(faults, f"{rows[0][1].where}: times too close or too far apart", expected, f"{rate:.3g}")
    if faults:
        return fps, None
    if rate < SUSPICIOUS_RATE:
        first = rows[0][1]
        apart = f"{1 / rate:.3g} s between frames of {first.cells['sequence']}"
        logger.warning(f"{first.where}: {apart}; the column time is in seconds")
    return frame_timing(np.array(seconds))
