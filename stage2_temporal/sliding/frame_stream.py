"""Decode the frames that windows need, once each, as one stream of batches: pixels, optical flow and vehicle tracks.

Everything is computed by extraction's own code, so predictions from images equal those from a store.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from joblib import cpu_count
from numpy.typing import NDArray

from features._common.console import logger, progress_bar
from features.config import Config
from features.errors import DataError
from features.frame_ranges import FrameRange
from features.normalised_flow import normalise_flow, unknown_horizons
from features.streams import FRAMES, MOTION, scale_flow
from stage1_extract.datasets.clip import Clip
from stage1_extract.frame_loader import load_frames
from stage2_temporal.sliding.frame_log import FrameLog
from stage2_temporal.sliding.sliding_window import RunModels, StreamBatch
from stage2_temporal.sliding.vehicle_prediction import VehicleTracks


class FrameStream:
    """The needed frames of one clip, or of all clips of a data set laid end to end.

    `frame_log` notes every needed frame. `faults` has one line per sequence that could not be decoded, by id; the
    frames of such a sequence are black. A single clip raises its fault instead.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        needed: NDArray[np.int64],
        config: Config,
        models: RunModels,
        vehicles: VehicleTracks | None = None,
    ) -> None:
        """Plan the stream of `needed` (n,) frames, ascending over all clips; `vehicles` gets the tracks in them."""
        self.frame_log = FrameLog()
        self._clips, self._needed, self._config = clips, needed, config
        self._streams, self._frame_interval, self._vehicles = models.image_streams, models.frame_interval, vehicles
        self._pair_streams = models.pair_streams
        if config.head.normalises_flow and (text := unknown_horizons([clip.sequence for clip in clips])):
            logger.warning(text)
        self.faults: dict[str, str] = {} if vehicles is None else vehicles.faults

    def batches(self, size: int) -> Iterator[StreamBatch]:
        """Yield batches of at most `size` frames, decoded ahead in threads; a DataError if the only clip is damaged."""
        frames = self._decoded()
        with progress_bar(len(self._needed), "predict", "frames") as progress:
            while batch := list(islice(frames, size)):
                yield {name: np.stack([frame[name] for frame in batch]) for name in self._streams}
                progress.update(len(batch))

    def _decoded(self) -> Iterator[StreamBatch]:
        """The needed frames one by one, by stream."""
        ranges, is_needed = self._plan()
        clips = {clip.sequence.id: clip for clip in self._clips}
        frames = self._config.frames
        if FRAMES not in self._streams:  # the resized pixels are not needed
            frames = frames.model_copy(update={"decode": "full"})
        threads = self._config.extract.threads or cpu_count()
        tracked = self._vehicles.pending if self._vehicles else ()
        done, starts = 0, np.cumsum([0, *map(len, ranges)])
        for loaded in load_frames(ranges, clips, frames, threads, pair_streams=self._pair_streams, tracked=tracked):
            if self._vehicles is not None:
                self._vehicles.tracks |= loaded.tracks
            if loaded.fault is not None:
                if len(self._clips) == 1:
                    raise DataError(loaded.fault.rstrip("."), hint="--input another video, or convert this one")
                self.faults.setdefault(ranges[loaded.range_index].sequence, loaded.fault)
            r, count = ranges[loaded.range_index], len(loaded.frames)
            streams: dict[str, Any] = {FRAMES: loaded.frames}
            streams |= loaded.pairs
            if MOTION in streams:
                start = done - int(starts[loaded.range_index]) + r.start
                intervals = clips[r.sequence].sequence.frame_intervals[start : start + count]
                streams[MOTION] = scale_flow(streams[MOTION], intervals, self._frame_interval)
                if self._config.head.normalises_flow:
                    streams[MOTION] = normalise_flow(streams[MOTION], clips[r.sequence].sequence)
            for i in np.flatnonzero(is_needed[done : done + len(loaded.frames)]):
                self.frame_log.add(loaded.thumbnails[i])
                yield {name: streams[name][i] for name in self._streams}
            done += len(loaded.frames)

    def _plan(self) -> tuple[list[FrameRange], NDArray[np.bool_]]:
        """The frames to decode, as runs of consecutive ones, and whether each is needed.

        Other frames are decoded for tracks, or because a first frame has the second one's entry in streams of
        pairs.
        """
        ranges, is_needed, start = [], [], 0
        for clip in self._clips:
            s = clip.sequence
            needed = self._needed[(self._needed >= start) & (self._needed < start + s.length)] - start
            start += s.length
            frames = needed
            if self._vehicles is not None and s.id in self._vehicles.pending:
                frames = np.arange(s.length)
            elif self._pair_streams and 0 in needed:
                frames = np.union1d(needed, np.arange(min(2, s.length)))
            runs = np.split(frames, np.flatnonzero(np.diff(frames) != 1) + 1)
            ranges += [FrameRange(s.id, s.digest, int(run[0]), int(run[-1]) + 1) for run in runs if len(run)]
            is_needed.append(np.isin(frames, needed))
        return ranges, np.concatenate(is_needed)
