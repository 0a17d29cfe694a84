"""Streams that are computed from each frame and the one before it: optical flow, and the road's match at each speed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features._common.types import Image
from features.sequences import FrameSequence
from features.store_tables import StreamInfo
from features.streams import GROUND_FLOW, MOTION
from stage1_extract import optical_flow
from stage1_extract.ground_flow import speed_curve
from stage1_extract.ground_flow.ground_flow import road_image

PairInputs = Mapping[str, Image]  # by stream: what it needs of a frame
SHAPES = {MOTION: optical_flow.FLOW_INFO.shape, GROUND_FLOW: speed_curve.SHAPE}  # of an entry


def stream_info(stream: str, sequences: Iterable[FrameSequence]) -> StreamInfo:
    """The shape, type and origin of a stream in a store of these sequences."""
    return optical_flow.FLOW_INFO if stream == MOTION else speed_curve.curve_info(sequences)


def pair_inputs(streams: Iterable[str], image: Image) -> dict[str, Image]:
    """What each stream needs of a frame."""
    functions = {MOTION: optical_flow.flow_strip, GROUND_FLOW: road_image}
    return {stream: functions[stream](image) for stream in streams}


def needed_frames(streams: Collection[str], sequence: FrameSequence, start: int, stop: int) -> tuple[int, int]:
    """The first frame, and the one after the last, that the entries of frames `start` … `stop` − 1 need."""
    if GROUND_FLOW in streams:
        return speed_curve.curve_frames(sequence, start, stop)
    return (max(start - 1, 0), min(max(stop, 2), sequence.length)) if streams else (start, stop)


def pair_entries(
    streams: Iterable[str], inputs: Sequence[PairInputs], first: int, sequence: FrameSequence, start: int, stop: int
) -> dict[str, NDArray[np.float16]]:
    """Compute the entries of frames `start` … `stop` − 1 of a sequence, by stream.

    The entry of a sequence's first frame is that of the second, or zero if there is none.

    Args:
        inputs: `pair_inputs` of frame `first` and those after it, see `needed_frames`.
    """
    entries = {}
    for stream in streams:
        images = [by_stream[stream] for by_stream in inputs]
        if stream == MOTION:
            strips = images[max(start - 1, 0) - first : max(stop, 2) - first]
            entries[stream] = optical_flow.flow_entries(strips, starts_sequence=start == 0)[: stop - start]
        else:
            entries[stream] = speed_curve.curve_entries(images, first, sequence, start, stop)
    return entries


def blank_entries(streams: Iterable[str], count: int) -> dict[str, NDArray[Any]]:
    """Entries for frames that could not be decoded."""
    return {stream: np.zeros((count, *SHAPES[stream]), np.float16) for stream in streams}
