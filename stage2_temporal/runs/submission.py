"""Submission files, for data sets that have their own evaluation."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from features._common.atomic import atomic_write
from features._common.csv_table import format_number, write_csv_table
from features._common.types import Floats
from features.sequences import FrameSequence
from features.windows import Examples
from stage2_temporal.evaluation import tusimple


def write_submission_files(
    folder: Path, layout: str, examples: Examples, predicted: Floats, sequences: Sequence[FrameSequence]
) -> list[Path]:
    """Write the test split's velocities in the format of the data set's evaluation, if it has one.

    `competition`: `submission.csv` with the columns `ID,speed`. `tusimple`: `submission.json`, one list of vehicles
    per clip; the benchmark scores positions too, which `data.target = "velocity+position"` predicts.

    Args:
        predicted: (n, K) for `examples.columns`.
        sequences: all sequences of the data set.

    Returns:
        The files written.
    """
    test = np.flatnonzero(examples.split == "test")
    if len(test) == 0 or not {"vx", "vy"} <= set(examples.columns):
        return []
    if layout == "competition":
        path = folder / "submission.csv"
        velocity = predicted[test][:, [examples.columns.index(c) for c in ("vx", "vy")]]
        ids = [sequences[i].id for i in examples.sequence[test]]
        with atomic_write(path) as temporary:
            _write_speeds(temporary, ids, velocity)
        return [path]
    if layout == "tusimple":
        path = folder / "submission.json"
        clips = tusimple.submission(examples, predicted, sequences)
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(clips) + "\n", encoding="utf-8")
        return [path]
    return []


def _write_speeds(path: Path, ids: Sequence[str], velocity: Floats) -> None:
    """Write each clip's speed, from its first prediction, ordered by the number that ids such as `Test/12` end in."""
    speeds: dict[int, float] = {}
    for name, (vx, vy) in zip(ids, velocity.tolist(), strict=True):
        if number := re.search(r"(\d+)$", name):
            speeds.setdefault(int(number[1]), math.hypot(vx, vy))
    write_csv_table(path, ["ID", "speed"], ([clip, format_number(speed)] for clip, speed in sorted(speeds.items())))
