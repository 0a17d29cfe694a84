"""Submission files, for data sets that have their own evaluation."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from features._common.atomic import atomic_write
from features._common.csv_table import format_number, write_csv_table
from features._common.types import Floats
from features.sequences import FrameSequence
from features.windows import Examples


def write_submission_files(
    folder: Path, layout: str, examples: Examples, predicted: Floats, sequences: Sequence[FrameSequence]
) -> list[Path]:
    """Write the test split's velocities in the format of the data set's evaluation, if it has one; return the files.

    `competition`: `submission.csv` with the columns `ID,speed`. `tusimple`: `submission.json`, one list of vehicles
    per clip; the benchmark scores positions too, which `data.target = "velocity+position"` predicts.
    Predictions from crops, whose sequences are not the data set's, have none.
    `predicted` is (n, K) for `examples.columns`; `sequences` are all of the data set.
    """
    test = np.flatnonzero(examples.split == "test")
    name = {"competition": "submission.csv", "tusimple": "submission.json"}.get(layout)
    if len(test) == 0 or name is None or any(s.region for s in sequences) or not {"vx", "vy"} <= set(examples.columns):
        return []
    with atomic_write(path := folder / name) as temporary:
        if layout == "tusimple":
            clips = _tusimple_clips(examples, predicted, sequences)
            temporary.write_text(json.dumps(clips) + "\n", encoding="utf-8")
        else:
            # one speed per clip, from its first prediction, by the number that ids such as `Test/12` end in
            speeds: dict[int, float] = {}
            velocity = predicted[test][:, [examples.columns.index(c) for c in ("vx", "vy")]]
            for i, (vx, vy) in zip(examples.sequence[test], velocity.tolist(), strict=True):
                if number := re.search(r"\d+$", sequences[i].id):
                    speeds.setdefault(int(number[0]), math.hypot(vx, vy))
            rows = ([clip, format_number(speed)] for clip, speed in sorted(speeds.items()))
            write_csv_table(temporary, ["ID", "speed"], rows)
    return [path]


def _tusimple_clips(
    examples: Examples, predicted: Floats, sequences: Sequence[FrameSequence]
) -> list[list[dict[str, Any]]]:
    """One list of vehicles per clip of the test split, in numeric order; vehicles without a box are left out."""
    clips: dict[int, list[dict[str, Any]]] = {i: [] for i, s in enumerate(sequences) if s.split == "test"}
    column = {name: k for k, name in enumerate(examples.columns)}
    for i in np.flatnonzero(np.isfinite(examples.box).all(axis=1) & (examples.split == "test")):
        left, top, right, bottom = examples.box[i].tolist()
        vehicle: dict[str, Any] = {"bbox": {"top": top, "left": left, "bottom": bottom, "right": right}}
        for key, names in (("velocity", ("vx", "vy")), ("position", ("x", "y"))):
            if all(name in column for name in names):
                vehicle[key] = [float(predicted[i, column[name]]) for name in names]
        clips[int(examples.sequence[i])].append(vehicle)
    # ids differ only in their number, so the shorter id has the smaller one
    return [clips[i] for i in sorted(clips, key=lambda i: (len(sequences[i].id), sequences[i].id))]
