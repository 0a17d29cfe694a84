"""The shards that an extraction writes, and those that an interrupted one has left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from features._common.console import logger
from features.errors import StoreError
from features.frame_ranges import FrameRange, StoredRange
from features.recipe import Recipe
from features.shard_folder import SHARD_NAME
from features.shards import ShardContent, ShardWriter, new_shard, read_shard, shard_path
from features.store_tables import StreamInfo
from features.streams import APPEARANCE
from features.tracks import Track


@dataclass(frozen=True)
class NewShards:
    """The finished shards in a store's folder to which the store does not refer yet."""

    folder: Path
    recipe: Recipe
    stored: set[str]  # names of those to which it does
    written: set[str] = field(default_factory=set)  # names of those written by this extraction, maybe again

    _read: dict[Path, ShardContent] = field(default_factory=dict)  # a finished shard does not change

    def ranges(self) -> list[StoredRange]:
        """All ranges in the shards that were made with the recipe."""
        return [r for path in self.files() for r in self._content(path).ranges]

    def tracks(self) -> dict[str, Track]:
        """All tracks in the shards, by their keys, which identify the frames whatever the recipe."""
        return {key: track for path in self.files() for key, track in self._content(path).tracks.items()}

    def delete_damaged(self) -> None:
        """Delete those that cannot be read, so that their frames are extracted again."""
        for path in self.files():
            try:
                self._content(path)
            except StoreError as e:
                logger.warning(f"{path}: damaged shard, will be extracted again ({e.what})")
                path.unlink()

    def relative_errors(self, stored_too: bool) -> dict[str, float]:
        """The largest relative error in the shards, by engine; on request, also in those to which the store refers."""
        errors: dict[str, float] = {}
        for path in sorted(self.folder.glob("[!.]*.h5")) if stored_too else self.files():
            for engine, error in self._content(path).relative_error.items():
                errors[engine] = max(error, errors.get(engine, 0.0))
        return errors

    def _content(self, path: Path) -> ShardContent:
        if path not in self._read:
            self._read[path] = read_shard(path, self.recipe.fingerprint)
        return self._read[path]

    def write_tracks(self, tracks: Mapping[str, Track]) -> None:
        """Write a shard of tracks alone."""
        with new_shard(self.folder, self.recipe, [], {}, sorted(tracks)) as (writer, path):
            writer.finish(tracks=tracks)
        self.written.add(path.name)

    @contextmanager
    def new_group(self, ranges: Sequence[FrameRange], streams: Mapping[str, StreamInfo]) -> Iterator[GroupWriter]:
        """Write a shard for each stream; they appear once the block ends without an error."""
        with ExitStack() as shards:
            opened = {
                name: shards.enter_context(new_shard(self.folder, self.recipe, ranges, {name: info}))
                for name, info in streams.items()
            }
            yield GroupWriter({name: writer for name, (writer, _) in opened.items()})
        self.written.update(path.name for _, path in opened.values())

    def group_paths(self, ranges: Sequence[FrameRange], streams: Mapping[str, StreamInfo]) -> list[Path]:
        """The files that `new_group` writes."""
        return [shard_path(self.folder, self.recipe, ranges, {name: info}) for name, info in streams.items()]

    def files(self) -> list[Path]:
        """The files of the shards."""
        # a network file system may list a file that another machine wrote only seconds later
        names = {path.name for path in self.folder.glob("[!.]*.h5")} - self.stored | self.written
        return [self.folder / name for name in sorted(names) if SHARD_NAME.fullmatch(name)]


@dataclass(frozen=True)
class GroupWriter:
    """Writes the streams of the same frames, each into a shard of its own, and thumbnails beside the trunk's map."""

    shards: Mapping[str, ShardWriter]

    def write(self, entries: Mapping[str, NDArray[Any]], thumbnails: Sequence[bytes]) -> None:
        """Append n frames: stream → (n, …), and n JPEGs."""
        for name, values in entries.items():
            self.shards[name].write({name: values}, thumbnails if name == APPEARANCE else [b""] * len(thumbnails))

    def finish(
        self,
        valid: Sequence[int],
        tracks: Mapping[str, Track],
        relative_error: Mapping[str, float],
        digests: Mapping[str, str],
    ) -> None:
        """Complete the shards, see `ShardWriter.finish`; the first one gets the tracks."""
        for i, shard in enumerate(self.shards.values()):
            shard.finish(valid, tracks if i == 0 else {}, relative_error, digests)
