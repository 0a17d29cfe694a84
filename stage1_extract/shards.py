"""Shards: files beside the store with what a run has extracted so far; and the frames for them, in batches."""

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
from features.frame_ranges import FrameRange
from features.recipe import Recipe, json_digest
from features.store import StreamInfo
from features.store_writer import ShardWriter, shard_ranges, shard_tracks
from features.tracks import Track
from stage1_extract.existing_store import with_fingerprint
from stage1_extract.frame_loader import LoadedFrames
from stage1_extract.plan import StoredStreams


@dataclass(frozen=True)
class Shards:
    """The finished shards in a folder that were made with a recipe."""

    folder: Path
    recipe: Recipe

    def stored_ranges(self, streams: Mapping[str, StreamInfo]) -> StoredStreams:
        """Return stream → its ranges in the shards."""
        stored = [r for path in self._files() for r in shard_ranges(path, self.recipe.fingerprint)]
        return with_fingerprint(dict.fromkeys(streams, stored), streams)

    def tracks(self) -> dict[str, Track]:
        """Return all tracks in the shards, by their keys, which identify the frames whatever the recipe."""
        return {key: track for path in self._files() for key, track in shard_tracks(path).items()}

    def write_tracks(self, tracks: Mapping[str, Track]) -> None:
        """Write a shard with tracks only."""
        with self.new_shard([], {}, sorted(tracks)) as writer:
            writer.finish(tracks=tracks)

    @contextmanager
    def new_shard(
        self, ranges: Sequence[FrameRange], streams: Mapping[str, StreamInfo], tracks: Sequence[str] = ()
    ) -> Iterator[ShardWriter]:
        """Write a new shard, which appears in the folder once the block ends without an error."""
        content = [sorted(streams), [[r.sequence, r.digest, r.start, r.stop] for r in ranges], tracks]
        with atomic_write(self.folder / f"{json_digest(content)[:24]}.h5") as temporary:
            writer = ShardWriter(temporary, self.recipe, ranges, streams)
            try:
                yield writer
            finally:
                writer.close()

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.h5"))


FrameBatch = tuple[Image, list[bytes], NDArray[Any] | None]  # frames, their thumbnails and entries of the motion stream


def regroup_batches(loaded: Iterator[LoadedFrames], size: int) -> Iterator[FrameBatch]:
    """Regroup loaded frames into batches of `size`; frames that already come as such are not copied."""
    parts: list[Image] = []
    thumbnails: list[bytes] = []
    flows: list[NDArray[Any]] = []
    for part in loaded:
        parts.append(part.frames)
        thumbnails.extend(part.thumbnails)
        if part.motion is not None:
            flows.extend(part.motion)
        if len(thumbnails) >= size:
            frames = parts[0] if len(parts) == 1 else np.concatenate(parts)
            while len(frames) >= size:
                yield frames[:size], thumbnails[:size], np.stack(flows[:size]) if flows else None
                frames, thumbnails, flows = frames[size:], thumbnails[size:], flows[size:]
            parts = [frames] if len(frames) else []
    if thumbnails:
        yield np.concatenate(parts), thumbnails, np.stack(flows) if flows else None
