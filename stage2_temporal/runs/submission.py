"""What a data set's own judge wants to be given, where its layout has one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from features._common.atomic import atomic_write
from features.sequences import FrameSequence
from features.windows import Examples
from stage2_temporal.evaluation import tusimple
from stage2_temporal.runs import tables


def write_submission_files(
    folder: Path, layout: str, examples: Examples, predicted: NDArray[np.float64], sequences: Sequence[FrameSequence]
) -> list[Path]:
    """Write the test split's velocities as the layout's judge wants them; the files written.

    `competition`: `submission.csv`, `ID,speed`. `tusimple`: `submission.json`, the benchmark's list of vehicles a clip
    (it asks for positions too: `data.target = "velocity+position"`).

    Args:
        examples: of any splits, as the data set has them.
        predicted: (n, K) for `examples.columns`.
        sequences: all sequences of the data set.
    """
    test = np.flatnonzero(examples.split == "test")
    if len(test) == 0 or not {"vx", "vy"} <= set(examples.columns):
        return []
    if layout == "competition":
        velocity = predicted[test][:, [examples.columns.index(c) for c in ("vx", "vy")]]
        ids = [sequences[i].id for i in examples.sequence[test]]
        with atomic_write(folder / "submission.csv") as temporary:
            tables.write_submission(temporary, ids, velocity)
        return [folder / "submission.csv"]
    if layout == "tusimple":
        clips = tusimple.submission(examples, predicted, sequences)
        with atomic_write(folder / "submission.json") as temporary:
            temporary.write_text(json.dumps(clips) + "\n", encoding="utf-8")
        return [folder / "submission.json"]
    return []
