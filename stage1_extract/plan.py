"""What is to be extracted: the data set's sequences minus what is stored, per stream. Pure: touches no files."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from features.frame_ranges import FrameRange, StoredRange, by_sequence, covering_ranges, full_range, missing_ranges
from features.sequences import FrameSequence
from features.tracks import TrackedVehicle, track_keys, tracked_vehicles

StoredStreams = Mapping[str, Sequence[StoredRange]]  # stream → its stored ranges
RangesBySequence = Mapping[tuple[str, str], list[StoredRange]]  # sequence's id and digest → its stored ranges


@dataclass(frozen=True)
class Group:
    """The content of one shard: frame ranges, and the streams to extract for all of them."""

    streams: tuple[str, ...]
    ranges: tuple[FrameRange, ...]

    def __len__(self) -> int:
        return sum(map(len, self.ranges))


@dataclass(frozen=True)
class ExtractionPlan:
    """What to extract: a shard for each group."""

    groups: tuple[Group, ...]
    total_frames: int  # of all sequences, stored or not

    @property
    def frames(self) -> int:
        """Frames of all groups."""
        return sum(map(len, self.groups))

    def missing_frames(self, stream: str) -> int:
        """Frames whose entry of a stream is to be extracted."""
        return sum(len(g) for g in self.groups if stream in g.streams)


def plan_extraction(
    sequences: Sequence[FrameSequence], stored: StoredStreams, shards: StoredStreams, group_size: int
) -> ExtractionPlan:
    """Find the frames and streams that are not stored yet, in groups of at most `group_size` frames.

    Sequences of up to `group_size` frames are never split. The groups are formed as if there were no shards, so a
    resumed run puts the same frames into the same batches as an uninterrupted one.

    Args:
        stored: stream → ranges in the store; its keys are the streams to extract.
        shards: stream → ranges in finished shards.
    """
    in_store = {name: by_sequence(ranges) for name, ranges in stored.items()}
    in_any_file = {name: by_sequence([*ranges, *shards.get(name, ())]) for name, ranges in stored.items()}
    missing = [gap for s in sequences for gap in _missing(full_range(s), in_store)]
    groups = []
    for streams in dict.fromkeys(streams for streams, _ in missing):
        for ranges in _split_into_groups([r for names, r in missing if names == streams], group_size):
            left = [gap for r in ranges for gap in _missing(r, {n: in_any_file[n] for n in streams})]
            kinds = dict.fromkeys(names for names, _ in left)
            groups += [Group(kind, tuple(r for names, r in left if names == kind)) for kind in kinds]
    return ExtractionPlan(tuple(groups), sum(s.length for s in sequences))


def complete_sequences(
    sequences: Sequence[FrameSequence], stored: StoredStreams
) -> tuple[list[FrameSequence], dict[str, list[list[StoredRange]]]]:
    """Find the sequences whose frames are all stored in every stream.

    Returns:
        These sequences, in order; and stream → for each of them, the stored ranges that make it up.
    """
    tables = {name: by_sequence(ranges) for name, ranges in stored.items()}
    complete: list[FrameSequence] = []
    ranges_by_stream: dict[str, list[list[StoredRange]]] = {name: [] for name in stored}
    for s in sequences:
        covering = {name: covering_ranges(full_range(s), table[s.id, s.digest]) for name, table in tables.items()}
        if all(sum(len(r.frame_range) for r in ranges) == s.length for ranges in covering.values()):
            complete.append(s)
            for name, ranges in covering.items():
                ranges_by_stream[name].append(ranges)
    return complete, ranges_by_stream


def vehicles_without_tracks(
    sequences: Sequence[FrameSequence], stored_keys: Collection[str]
) -> dict[str, tuple[TrackedVehicle, ...]]:
    """Return sequence id → its vehicles, for sequences with a missing track.

    All vehicles of such a sequence are tracked again, since one may hide another.
    """
    return {s.id: tuple(tracked_vehicles(s)) for s in sequences if not all(k in stored_keys for k in track_keys(s))}


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


def _split_into_groups(ranges: Sequence[FrameRange], size: int) -> list[list[FrameRange]]:
    """Put ranges, in order, into groups of at most `size` frames; only ranges longer than that are split."""
    parts: list[tuple[int, FrameRange]] = []  # the number of its group, and the part
    position = 0  # frames so far, counting what a group leaves unused
    for r in ranges:
        space = size - position % size
        if space < len(r) <= size:
            position += space
        start = r.start
        while start < r.stop:
            stop = min(r.stop, start + size - position % size)
            parts.append((position // size, replace(r, start=start, stop=stop)))
            position += stop - start
            start = stop
    return [[part for _, part in group] for _, group in groupby(parts, key=lambda pair: pair[0])]
