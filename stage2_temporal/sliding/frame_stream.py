"""Decode the frames that windows need, once each, as one stream of batches: pixels, optical flow and vehicle tracks.

Everything is computed by extraction's own code, so predictions from images equal those from a store.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from features._common.cpu import cpu_count
from features._common.progress import progress_bar
from features.config import Config
from features.errors import DataError
from features.frame_ranges import FrameRange
from features.streams import APPEARANCE, MOTION
from stage1_extract.datasets.clip import Clip
from stage1_extract.frame_loader import DecodeOptions, LoadedFrames, load_frames
from stage2_temporal.sliding.sliding_window import StreamBatch
from stage2_temporal.sliding.vehicle_prediction import VehicleTracks


class FrameStream:
    """The needed frames of one clip, or of all clips of a data set laid end to end.

    Attributes:
        faults: one line per sequence that could not be decoded, by id; the frames of such a sequence are black. A
            single clip raises its fault instead.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        needed: NDArray[np.int64],
        config: Config,
        streams: Sequence[str],
        vehicles: VehicleTracks | None = None,
    ) -> None:
        """Plan the stream.

        Args:
            clips: the clips.
            needed: (n,) numbers of the needed frames over all clips, ascending.
            config: the run's, with the clips' window.
            streams: names of the streams that the model takes.
            vehicles: gets the tracks that are followed while frames are decoded.
        """
        self._clips, self._needed, self._config, self._streams = clips, needed, config, streams
        self._vehicles = vehicles
        self.faults: dict[str, str] = {} if vehicles is None else vehicles.faults

    def batches(self, size: int) -> Iterator[StreamBatch]:
        """Yield batches of at most `size` frames; frames are decoded ahead in threads.

        Raises:
            DataError: the only clip cannot be decoded.
        """
        name = self._streams[0]
        waiting: list[StreamBatch] = []
        with progress_bar(len(self._needed), "predict", "frames") as progress:
            for batch in self._decoded():
                waiting.append(batch)
                while sum(len(b[name]) for b in waiting) >= size:
                    joined = _concatenate(waiting)
                    yield {n: values[:size] for n, values in joined.items()}
                    progress.update(size)
                    waiting = [{n: values[size:] for n, values in joined.items()}]
            rest = _concatenate(waiting)
            if len(rest[name]):
                yield rest
                progress.update(len(rest[name]))

    def _decoded(self) -> Iterator[StreamBatch]:
        """The needed frames as they are decoded."""
        numbers = self._decoded_numbers()
        ranges = self._ranges(numbers)
        clips = {clip.sequence.id: clip for clip in self._clips}
        frames = self._config.frames
        if APPEARANCE not in self._streams:  # nobody needs the resized pixels
            frames = frames.model_copy(update={"decode": "full"})
        followed = set() if self._vehicles is None else self._vehicles.pending
        options = DecodeOptions(MOTION in self._streams, followed)
        done = 0
        for loaded in load_frames(ranges, clips, frames, self._config.extract.threads or cpu_count(), options):
            self._take_notes(loaded, ranges[loaded.range_index].sequence)
            needed = np.isin(numbers[done : done + len(loaded.frames)], self._needed)
            done += len(loaded.frames)
            streams = {APPEARANCE: loaded.frames, MOTION: loaded.motion}
            yield {n: values[needed] for n, values in streams.items() if n in self._streams and values is not None}

    def _take_notes(self, loaded: LoadedFrames, sequence: str) -> None:
        if self._vehicles is not None:
            self._vehicles.tracks |= loaded.tracks
        if loaded.fault is not None:
            if len(self._clips) == 1:
                raise DataError(loaded.fault.rstrip("."), hint="--input another video, or convert this one")
            self.faults.setdefault(sequence, loaded.fault)

    def _decoded_numbers(self) -> NDArray[np.int64]:
        """Numbers of the needed frames and of those that are decoded only for tracks or for the first flow."""
        numbers = [self._needed]
        start = 0
        for clip in self._clips:
            stop = start + clip.sequence.length
            if self._vehicles is not None and clip.sequence.id in self._vehicles.pending:
                numbers.append(np.arange(start, stop))
            elif MOTION in self._streams and start in self._needed:
                numbers.append(np.arange(start, min(start + 2, stop)))  # the first frame has the second one's flow
            start = stop
        return np.unique(np.concatenate(numbers))

    def _ranges(self, numbers: NDArray[np.int64]) -> list[FrameRange]:
        """Runs of consecutive frames, by clip."""
        ranges: list[FrameRange] = []
        start = 0
        for clip in self._clips:
            s = clip.sequence
            inside = numbers[(numbers >= start) & (numbers < start + s.length)] - start
            runs = np.split(inside, np.flatnonzero(np.diff(inside) != 1) + 1)
            ranges += [FrameRange(s.id, s.digest, int(run[0]), int(run[-1]) + 1) for run in runs if len(run)]
            start += s.length
        return ranges


def _concatenate(batches: Sequence[StreamBatch]) -> dict[str, NDArray[np.generic]]:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
