"""The frames of clips as one stream of batches, each decoded once: pixels for the trunk, flow, and tracks beside them.

What is made of a frame is made by extraction's own code, so that predictions equal those from a store.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from features._common.progress import progress_bar
from features.config import Config
from features.errors import DataError
from features.frame_ranges import FrameRange
from features.sequences import FrameSequence
from features.streams import APPEARANCE, MOTION
from features.tracks import Track
from stage1_extract.datasets.clip import Clip
from stage1_extract.frame_loader import DecodeOptions, LoadedFrames, load_frames
from stage2_temporal.sliding.sliding_window import StreamBatch

Rows = NDArray[np.int64]


class FrameStream:
    """The needed frames of clips, numbered through all clips laid end to end.

    Args:
        clips: a data set's; or one, whose damage is raised.
        needed: (m,) ascending.
        wanted: the streams that the head looks at.
        followed: ids of sequences whose vehicles are to be followed, of at most `SHORT` frames each.
        tracks: where their tracks are put, there when their clip's frames are.
        faults: where a line is put for each damaged sequence of a data set, whose frames are blank.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        needed: Rows,
        config: Config,
        wanted: Sequence[str],
        followed: Collection[str] = (),
        tracks: dict[str, Track] | None = None,
        faults: dict[str, str] | None = None,
    ) -> None:
        self._clips, self._needed, self._config, self._wanted = clips, needed, config, wanted
        self._followed = followed
        self._tracks = {} if tracks is None else tracks
        self._faults = {} if faults is None else faults

    def batches(self, size: int) -> Iterator[StreamBatch]:
        """By stream, `size` frames at most; decoded ahead of the network.

        Raises:
            DataError: the one clip there is cannot be decoded.
        """
        waiting: list[dict[str, NDArray[np.generic]]] = []
        with progress_bar(len(self._needed), "predict", "frames") as progress:
            for part in self._parts():
                waiting.append(part)
                while sum(len(p[self._wanted[0]]) for p in waiting) >= size:
                    together = {n: np.concatenate([p[n] for p in waiting]) for n in self._wanted}
                    yield {n: values[:size] for n, values in together.items()}
                    progress.update(size)
                    waiting = [{n: values[size:] for n, values in together.items()}]
            rest = {n: np.concatenate([p[n] for p in waiting]) for n in self._wanted}
            if count := len(rest[self._wanted[0]]):
                yield rest
                progress.update(count)

    def _parts(self) -> Iterator[dict[str, NDArray[np.generic]]]:
        read = self._read()
        pieces = needed_ranges([clip.sequence for clip in self._clips], read)
        named = {clip.sequence.id: clip for clip in self._clips}
        frames, flow = self._config.frames, MOTION in self._wanted
        if APPEARANCE not in self._wanted:  # its pixels are not looked at: nothing is decoded for them alone
            frames = frames.model_copy(update={"decode": "full"})
        threads, at = self._config.extract.threads or os.cpu_count() or 1, 0
        for part in load_frames(pieces, named, frames, threads, DecodeOptions(flow, self._followed)):
            self._note(part, pieces[part.range_index].sequence)
            chosen = np.isin(read[at : at + len(part.frames)], self._needed)
            at += len(part.frames)
            found: dict[str, NDArray[np.generic]] = {APPEARANCE: part.frames[chosen]}
            if part.motion is not None:
                found[MOTION] = part.motion[chosen]
            yield {n: found[n] for n in self._wanted}

    def _note(self, part: LoadedFrames, name: str) -> None:
        self._tracks.update(part.tracks)
        if part.fault is not None:
            if len(self._clips) == 1:
                raise DataError(part.fault.rstrip("."), hint="--input another video, or convert it")
            self._faults.setdefault(name, part.fault)

    def _read(self) -> Rows:
        """The needed frames and what is read besides: clips whose vehicles are followed, and what flow begins with."""
        more = [self._needed]
        first = np.cumsum([0, *(clip.sequence.length for clip in self._clips)])
        begun = np.isin(first[:-1], self._needed)
        for clip, start, stop, begins in zip(self._clips, first, first[1:], begun, strict=False):
            if clip.sequence.id in self._followed:
                more.append(np.arange(start, stop))
            elif MOTION in self._wanted and begins:
                more.append(np.arange(start, min(start + 2, stop)))  # the first frame has the second's flow
        return np.unique(np.concatenate(more))


def needed_ranges(sequences: Sequence[FrameSequence], needed: Rows) -> list[FrameRange]:
    """Runs of needed frames, `needed` numbering the frames of all sequences laid end to end, ascending."""
    pieces: list[FrameRange] = []
    start = 0
    for s in sequences:
        own = needed[(needed >= start) & (needed < start + s.length)] - start
        runs = np.split(own, np.flatnonzero(np.diff(own) != 1) + 1)
        pieces += [FrameRange(s.id, s.digest, int(run[0]), int(run[-1]) + 1) for run in runs if len(run)]
        start += s.length
    return pieces
