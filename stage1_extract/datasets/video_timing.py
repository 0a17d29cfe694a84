"""Timestamps of a video's frames, and whether it is as long as its header says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import av
import numpy as np

from features._common.types import Floats

MP4 = "mov,mp4,m4a,3gp,3g2,mj2"  # as FFmpeg names it
MOST_REPAIRED = 0.1  # of the timestamps; where more do not increase, none is trusted


class LengthCheck:
    """Compares what was read of a container with the length that its header promises.

    Attributes:
        seconds: the time at which the video ends, by the header; 0.0 if unknown.
    """

    def __init__(self, container: av.container.InputContainer, stream: av.VideoStream) -> None:
        self._container, self._stream, self._count, self._others_end = container, stream, 0, 0.0
        self._streams: list[av.stream.Stream] = [stream]
        self.seconds = 0.0
        if stream.duration and stream.time_base:
            self.seconds = float((stream.start_time or 0) + stream.duration) * float(stream.time_base)
        elif container.duration:
            self.seconds = container.duration / av.time_base  # Matroska counts it from 0 on
            self._streams = list(container.streams)  # of which the longest is meant

    def read_packets(self) -> Iterator[av.Packet[av.VideoStream]]:
        """Read the video's packets, and whatever else tells how far the container goes."""
        for packet in self._container.demux(self._streams):
            if packet.stream.index == self._stream.index:
                self._count += packet.size > 0
                yield cast("av.Packet[av.VideoStream]", packet)
            elif packet.pts is not None and packet.time_base:
                self._others_end = max(
                    self._others_end, float((packet.pts + (packet.duration or 0)) * packet.time_base)
                )

    def missing_seconds(self, frames: int, start: float, duration: float) -> float:
        """By how many seconds the video ends early; at most 0 if it does not.

        Args:
            frames: number of frames that were read.
            start: of the last frame, in s.
            duration: of the last frame, in s; 0.0 if unknown.
        """
        # an MP4 lists all frames, and where it was trimmed, its end by the header is not that of a frame
        listed = len(self._stream.index_entries) if self._stream.frames and self._container.format.name == MP4 else 0
        if 0 < listed <= self._count:
            return 0.0
        interval = start / (frames - 1) if frames > 1 else self.seconds
        end = max(start + max(duration, interval), self._others_end)
        return self.seconds - end - interval / 2


def repair_timestamps(seconds: Floats) -> Floats | None:
    """Make a few timestamps increase that do not.

    Frames with the timestamp of the one before are spread evenly up to the next one, as writers with a coarse clock
    leave them. Behind a step backwards, as between two recordings in one file, time goes on after a usual interval.

    Args:
        seconds: (n,) in the order of the frames.

    Returns:
        (n,) increasing; None if more than `MOST_REPAIRED` of the steps are not positive, so that none can be trusted.
    """
    steps = np.diff(seconds)
    wrong = steps <= 0
    if wrong.sum() > MOST_REPAIRED * len(steps):
        return None
    usual = np.median(steps[~wrong])
    steps[steps < 0] = usual
    times = seconds[0] + np.concatenate([[0.0], np.cumsum(steps)])
    first = np.flatnonzero(np.append(True, steps > 0))  # the frames whose timestamps are their own
    if first[-1] < len(times) - 1:  # nothing follows the last ones
        first, times[-1] = np.append(first, len(times) - 1), times[-1] + usual * (len(times) - 1 - first[-1])
    repaired: Floats = np.interp(np.arange(len(times)), first, times[first])
    return repaired
