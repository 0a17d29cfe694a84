"""Shards: files beside the store with what a run has extracted so far."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from features._common.atomic import atomic_write
from features.frame_ranges import FrameRange, StoredRange
from features.recipe import Recipe, json_digest
from features.store import StreamInfo
from features.store_writer import ShardWriter, shard_ranges, shard_tracks
from features.tracks import Track


@dataclass(frozen=True)
class Shards:
    """The finished shards in a folder that were made with a recipe."""

    folder: Path
    recipe: Recipe

    def ranges(self) -> list[StoredRange]:
        """Return the ranges in all shards."""
        return [r for path in self._files() for r in shard_ranges(path, self.recipe.fingerprint)]

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
