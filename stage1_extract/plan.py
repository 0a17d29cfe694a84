"""What is to be extracted: the data set's sequences minus what is stored, per stream. Pure: touches no files."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from features.frame_ranges import (
    FrameRange,
    StoredRange,
    by_sequence,
    full_range,
    missing_ranges,
    sequence_ranges,
    split_into_groups,
)
from features.sequences import FrameSequence
from features.tracks import track_keys

StoredStreams = Mapping[str, Sequence[StoredRange]]  # stream → its stored ranges
RangesBySequence = Mapping[tuple[str, str], list[StoredRange]]  # sequence's id and digest → its stored ranges


@dataclass(frozen=True)
class Group:
    """The content of one shard: frame ranges, and the streams to extract for all of them."""

    streams: tuple[str, ...]
    ranges: tuple[FrameRange, ...]

    def __len__(self) -> int:
        return sum(map(len, self.ranges))


def plan_extraction(sequences: Sequence[FrameSequence], stored: StoredStreams, group_size: int) -> list[Group]:
    """Find the frames and streams that are not stored yet, in groups of at most `group_size` frames.

    Sequences of up to `group_size` frames are never split, so that their vehicles can be tracked while decoding.

    Args:
        stored: stream → ranges in the store and in finished shards; its keys are the streams to extract.
    """
    tables = {name: by_sequence(ranges) for name, ranges in stored.items()}
    missing = [part for s in sequences for part in _missing(full_range(s), tables)]
    groups = []
    for streams in dict.fromkeys(streams for streams, _ in missing):
        ranges = [r for names, r in missing if names == streams]
        groups += [Group(streams, tuple(group)) for group in split_into_groups(ranges, group_size)]
    return groups


def missing_frames(groups: Iterable[Group], stream: str) -> int:
    """Frames whose entry of a stream is to be extracted."""
    return sum(len(g) for g in groups if stream in g.streams)


def complete_sequences(
    sequences: Sequence[FrameSequence], stored: StoredStreams
) -> tuple[list[FrameSequence], dict[str, list[list[StoredRange]]]]:
    """The sequences with all frames stored in every stream, and by stream, for each, the ranges that make it up."""
    ranges = {name: sequence_ranges(sequences, stored_ranges) for name, stored_ranges in stored.items()}
    complete = [i for i, _ in enumerate(sequences) if all(parts[i] for parts in ranges.values())]
    return [sequences[i] for i in complete], {name: [parts[i] for i in complete] for name, parts in ranges.items()}


def vehicles_without_tracks(sequences: Sequence[FrameSequence], stored_keys: Collection[str]) -> dict[str, int]:
    """Return sequence id → its number of vehicles, for sequences with a missing track.

    All vehicles of such a sequence are tracked again, since one may hide another.
    """
    keys = {s.id: track_keys(s) for s in sequences}
    return {id: len(vehicles) for id, vehicles in keys.items() if not all(key in stored_keys for key in vehicles)}


def _missing(
    frame_range: FrameRange, stored: Mapping[str, RangesBySequence]
) -> Iterator[tuple[tuple[str, ...], FrameRange]]:
    """Split what is missing of a range into parts that lack the same streams, in order: (streams, part) each."""
    sequence = frame_range.sequence, frame_range.digest
    gaps = {name: missing_ranges(frame_range, table.get(sequence, ())) for name, table in stored.items()}
    edges = sorted({edge for ranges in gaps.values() for gap in ranges for edge in (gap.start, gap.stop)})
    for start, stop in pairwise(edges):
        streams = tuple(n for n, ranges in gaps.items() if any(g.start <= start and stop <= g.stop for g in ranges))
        if streams:
            yield streams, replace(frame_range, start=start, stop=stop)
