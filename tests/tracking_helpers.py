"""What the tests of tracking share: tracking one box, and measures of a track."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from features._common.types import Floats, Image
from features.sequences import Box
from features.tracks import Track
from stage1_extract.tracking.tracker import track_known_boxes


def track_box(frames: Sequence[Image], box: Box, at: int) -> Track:
    """Track a box that is known in one frame."""
    return track_known_boxes(frames, {at: box})


def relative_widths(track: Track, at: int) -> Floats:
    """The width of the box in each frame, relative to frame `at`."""
    width = track.boxes[:, 2] - track.boxes[:, 0]
    return width / width[at]


def centres(track: Track) -> Floats:
    """The centre of the box in each frame, (T, 2) px."""
    return (track.boxes[:, :2] + track.boxes[:, 2:]) / 2


def lost_frames(track: Track) -> list[int]:
    """The frames in which the vehicle was not found, which have neither a box nor confidence."""
    missing = np.isnan(track.boxes)
    assert (missing.all(axis=1) == missing.any(axis=1)).all()
    np.testing.assert_array_equal(missing.all(axis=1), track.confidence == 0)
    return [int(i) for i in np.flatnonzero(missing.all(axis=1))]
