"""Shards: what a run has finished so far, each a file of its own beside the store; and frames in batches for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features._common.atomic import atomic_write
from features._common.types import Image
from features.frame_ranges import FrameRange, StoredRange
from features.recipe import Recipe, json_digest
from features.store import StreamInfo
from features.store_writer import ShardWriter, shard_pieces, shard_tracks
from features.tracks import Track
from stage1_extract.existing_store import with_fingerprint
from stage1_extract.frame_loader import LoadedFrames
from stage1_extract.plan import StoredStreams


@dataclass(frozen=True)
class Shards:
    """The finished shards in a folder that were made by a recipe."""

    folder: Path
    recipe: Recipe

    def held(self, streams: Mapping[str, StreamInfo]) -> StoredStreams:
        """Per wanted stream the pieces that lie in them."""
        every = [held for path in self._files() for held in shard_pieces(path, self.recipe.fingerprint)]
        table: dict[str, list[StoredRange]] = {name: [h for h in every if name in h.streams] for name in streams}
        return with_fingerprint(table, streams)

    def tracks(self) -> dict[str, Track]:
        """Every track in them, by its key; the keys name the frames, so that no recipe need be compared."""
        found: dict[str, Track] = {}
        for path in self._files():
            found |= shard_tracks(path)
        return found

    @contextmanager
    def writing(self, pieces: Sequence[FrameRange], streams: Mapping[str, StreamInfo]) -> Iterator[ShardWriter]:
        """A writer of a new shard, which appears when the block ends well."""
        names = [[p.sequence, p.digest, p.start, p.stop] for p in pieces]
        with atomic_write(self._path([sorted(streams), names])) as temporary:
            writer = ShardWriter(temporary, self.recipe, pieces, streams)
            try:
                yield writer
            finally:
                writer.abandon()

    def write_tracks(self, tracks: Mapping[str, Track]) -> None:
        """A shard that holds tracks alone."""
        with atomic_write(self._path(sorted(tracks))) as temporary:
            writer = ShardWriter(temporary, self.recipe, [], {})
            try:
                writer.close(tracks=tracks)
            finally:
                writer.abandon()

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.h5"))

    def _path(self, content: object) -> Path:
        return self.folder / f"{json_digest(content)[:24]}.h5"


@dataclass(frozen=True)
class FrameBatch:
    """Frames, (n, height, width, 3), and what belongs to them."""

    frames: Image
    thumbnails: list[bytes]
    motion: NDArray[Any] | None


def record_faults(
    decoded: Iterator[LoadedFrames],
    pieces: Sequence[FrameRange],
    sound: dict[int, bool],
    tracks: dict[str, Track],
    faults: dict[str, str],
) -> Iterator[LoadedFrames]:
    """Pass decoded frames on; note their tracks, and which pieces have a fault.

    A fault's frames are blank, so that the others keep their places.
    """
    for part in decoded:
        if part.fault is not None:
            sound[part.range_index] = False
            faults.setdefault(pieces[part.range_index].sequence, part.fault)
        tracks |= part.tracks
        yield part


def regroup_batches(decoded: Iterator[LoadedFrames], size: int) -> Iterator[FrameBatch]:
    """Decoded frames in batches of `size`; those that come in as many already are passed on without a copy."""
    buffer, count = np.empty(0, np.uint8), 0
    thumbnails: list[bytes] = []
    flows: list[NDArray[Any]] = []
    for part in decoded:
        thumbnails.extend(part.thumbnails)
        if part.motion is not None:
            flows.extend(part.motion)
        left = part.frames
        while len(left):
            taken = min(size - count, len(left))
            if taken == size:
                buffer = left[:size]
            else:
                if not count:  # the batch before may still be on its way through the network
                    buffer = np.empty((size, *left.shape[1:]), np.uint8)
                buffer[count : count + taken] = left[:taken]
            left, count = left[taken:], count + taken
            if count == size:
                yield FrameBatch(buffer, thumbnails[:size], np.stack(flows[:size]) if flows else None)
                thumbnails, flows, count = thumbnails[size:], flows[size:], 0
    if count:
        yield FrameBatch(buffer[:count], thumbnails, np.stack(flows) if flows else None)
