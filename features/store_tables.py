"""What a store, its index and its shards hold besides frames: header, sequences, labels, tracks and top."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features._common.strict_json import parse_json
from features.hdf5 import (
    create_group,
    read_attribute,
    read_json,
    read_text,
    write_array,
    write_attribute,
    write_columns,
    write_json,
)
from features.recipe import Recipe, canonical_json, json_digest
from features.sequences import Camera, FrameSequence, Label
from features.tracks import Track


@dataclass(frozen=True)
class StreamInfo:
    """Shape and type of one frame's entry in a stream, and what determines its numbers.

    The trunk's stream is determined by the recipe, and has an empty `origin`.
    """

    shape: tuple[int, ...]
    dtype: str
    origin: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over shape, dtype and origin."""
        return json_digest([self.shape, self.dtype, self.origin])

    @property
    def is_derived(self) -> bool:
        """Whether it was computed from another stream of the store."""
        return "source" in self.origin

    @property
    def frame_bytes(self) -> int:
        """Bytes per frame."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class TopRecord:
    """The unfrozen layers, from the map at the cut to the backbone's output: Keras JSON and pretrained weights."""

    architecture: str
    weights: list[NDArray[Any]]


@dataclass(frozen=True)
class Header:
    """How a store was made, and whether it is complete."""

    recipe: Recipe
    # facts about the frozen part: `parameters`, `cut` in words, `relative_error` per engine
    trunk: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)  # library name → version that wrote the file
    missing: Mapping[str, str] = field(default_factory=dict)  # sequence id → why it is not in the store
    complete: bool = True  # all sequences of the data set are stored, or the user chose to skip the missing ones


def write_header(f: Any, header: Header) -> None:
    """Write the header into a new file."""
    parts = {name: dict(getattr(header, name)) for name in ("trunk", "versions", "missing")}
    write_json(f, "header", {"recipe": header.recipe.to_json(), "complete": header.complete, **parts})


def read_header(f: Any) -> Header:
    """Read the header; format 1 has it in attributes."""
    if "header" in f:
        value = read_json(f["header"])
        recipe, complete = value["recipe"], value["complete"]
    else:
        recipe, complete = read_attribute(f, "recipe"), read_attribute(f, "complete")
        complete = bool(complete) if isinstance(complete, np.bool_) else complete
        value = {name: parse_json(read_attribute(f, name)) for name in ("trunk", "versions", "missing")}
    if not isinstance(complete, bool):
        raise ValueError(f"header: complete is {complete!r}")
    return Header(Recipe.from_json(recipe), value["trunk"], value["versions"], value["missing"], complete)


def write_sequences(f: Any, sequences: Sequence[FrameSequence]) -> None:
    """Write sequences, without their labels."""
    lengths = np.array([s.length for s in sequences], np.int64)
    cameras = [astuple(s.camera) if s.camera else (None,) * 6 for s in sequences]
    columns = {
        "id": [s.id for s in sequences],
        "split": [s.split for s in sequences],
        "digest": [s.digest for s in sequences],
        "first": np.cumsum(lengths) - lengths,
        "length": lengths,
        "fps": np.array([s.fps for s in sequences], np.float64),
        "width": np.array([s.size[0] for s in sequences], np.int64),
        "height": np.array([s.size[1] for s in sequences], np.int64),
        "camera": np.array(cameras, np.float64).reshape(-1, 6),  # None becomes NaN
    }
    if any(s.region for s in sequences):
        columns["region"] = np.array([s.visible_region for s in sequences], np.int64)
    if any(s.times for s in sequences):
        counts = np.array([len(s.times or ()) for s in sequences], np.int64)
        columns["times_stop"] = np.cumsum(counts)
        columns["times"] = np.concatenate([np.array(s.times or (), np.float64) for s in sequences])
    write_columns(create_group(f, "sequences"), columns)


def read_sequences(f: Any, with_labels: bool = True) -> tuple[tuple[FrameSequence, ...], NDArray[np.int64]]:
    """Read the sequences with their labels, and (sequences,) the row of each one's first frame."""
    labels = _read_labels(f["labels"]) if with_labels else {}
    group = f["sequences"]
    text = [read_text(group[n]) for n in ("id", "split", "digest")]
    numbers = [group[n][:].tolist() for n in ("length", "fps", "width", "height")]
    cameras = group["camera"][:].tolist() if "camera" in group else [[math.nan] * 6] * len(text[0])
    regions = map(tuple, group["region"][:].tolist()) if "region" in group else [None] * len(text[0])
    rows = zip(*text, *numbers, map(_camera, cameras), regions, _times(group), strict=True)
    sequences = tuple(
        FrameSequence(name, split, length, fps, (width, height), digest, tuple(labels.get(i, ())), *optional)
        for i, (name, split, digest, length, fps, width, height, *optional) in enumerate(rows)
    )
    return sequences, group["first"][:]


def _times(group: Any) -> list[tuple[float, ...] | None]:
    """Read each sequence's times; None where its frames are evenly spaced."""
    if "times" not in group:
        return [None] * len(group["id"])
    times, stops = group["times"][:].tolist(), group["times_stop"][:].tolist()
    return [tuple(times[a:b]) or None for a, b in itertools.pairwise([0, *stops])]


def _camera(values: list[float]) -> Camera | None:
    fx, fy, cx, cy, *road = values  # older stores have no horizon
    return None if math.isnan(fx) else Camera(fx, fy, cx, cy, *(None if math.isnan(v) else v for v in road))


def write_labels(f: Any, sequences: Sequence[FrameSequence]) -> None:
    """Write the labels of all sequences."""
    rows = [(i, label) for i, s in enumerate(sequences) for label in s.labels]
    columns = sorted({c for _, label in rows for c in label.targets})
    # a label may have a column without a value, which differs from not having the column
    named = [[c in label.targets for c in columns] for _, label in rows]
    targets = [[label.targets.get(c, math.nan) for c in columns] for _, label in rows]
    group = create_group(f, "labels")
    write_attribute(group, "columns", canonical_json(columns))
    values = {
        "sequence": np.array([i for i, _ in rows], np.int64),
        "frame": np.array([label.frame for _, label in rows], np.int64),
        "targets": np.array(targets, np.float64).reshape(len(rows), len(columns)),
        "named": np.array(named, bool).reshape(len(rows), len(columns)),
        "box": np.array([label.box or (math.nan,) * 4 for _, label in rows], np.float64).reshape(-1, 4),
        "position": np.array([label.position or (math.nan,) * 2 for _, label in rows], np.float64).reshape(-1, 2),
    }
    write_columns(group, values)


def _read_labels(group: Any) -> dict[int, list[Label]]:
    """Read the labels, by the index of their sequence."""
    names = parse_json(read_attribute(group, "columns"))
    columns = [group[n][:].tolist() for n in ("sequence", "frame", "targets", "named", "box", "position")]
    labels: dict[int, list[Label]] = {}
    for sequence, frame, targets, named, box, position in zip(*columns, strict=True):
        values = {name: v for name, v, has_column in zip(names, targets, named, strict=True) if has_column}
        known_box = None if math.isnan(box[0]) else tuple(box)
        known_position = None if math.isnan(position[0]) else tuple(position)
        labels.setdefault(sequence, []).append(Label(frame, values, known_box, known_position))
    return labels


def write_tracks(f: Any, tracks: Mapping[str, Track]) -> None:
    """Write tracks by their keys, see `features.tracks.track_keys`."""
    if not tracks:
        return
    lengths = np.array([len(t.boxes) for t in tracks.values()], np.int64)
    columns = {
        "key": list(tracks),
        "first": np.cumsum(lengths) - lengths,
        "length": lengths,
        "box": np.concatenate([t.boxes for t in tracks.values()]),
        "confidence": np.concatenate([t.confidence for t in tracks.values()]),
    }
    write_columns(create_group(f, "tracks"), columns)


def track_index(f: Any) -> dict[str, tuple[int, int]]:
    """Return where the tracks are in a file: key → first row and number of rows."""
    if "tracks" not in f:
        return {}
    group = f["tracks"]
    columns = read_text(group["key"]), group["first"][:].tolist(), group["length"][:].tolist()
    return {key: (first, length) for key, first, length in zip(*columns, strict=True)}


def read_tracks(f: Any) -> dict[str, Track]:
    """Read all tracks of a file, by their keys."""
    if "tracks" not in f:
        return {}
    boxes, confidence = f["tracks/box"][:], f["tracks/confidence"][:]
    return {
        key: Track(boxes[first : first + length], confidence[first : first + length])
        for key, (first, length) in track_index(f).items()
    }


def read_track(f: Any, first: int, length: int) -> Track:
    """Read a track from a file."""
    rows = np.s_[first : first + length]
    return Track(f["tracks/box"][rows], f["tracks/confidence"][rows])


def write_top(f: Any, top: TopRecord) -> None:
    """Write the unfrozen layers."""
    write_json(f, "top/architecture", top.architecture)
    for i, weight in enumerate(top.weights):
        write_array(f, f"top/weights/{i}", weight)


def read_top(f: Any) -> TopRecord | None:
    """Read the unfrozen layers; None if there are none. In format 1 their architecture is an attribute."""
    if "top" not in f:
        return None
    group = f["top"]
    weights = [group["weights"][k][()] for k in sorted(group.get("weights", ()), key=int)]
    for i, weight in enumerate(weights):
        check_finite(weight, f"top/weights/{i}")
    in_dataset = "architecture" in group
    architecture = read_json(group["architecture"]) if in_dataset else read_attribute(group, "architecture")
    return TopRecord(architecture, weights)


def check_finite(values: NDArray[Any], where: str) -> None:
    """Raise a ValueError that names the first number that is NaN or infinite."""
    finite = np.isfinite(values)
    if not finite.all():
        first = tuple(np.argwhere(~finite)[0].tolist())
        raise ValueError(f"{where}: {values[first]} at {first}")


def first_not_finite(values: NDArray[Any]) -> int | None:
    """Return the index, along the first axis, of the first entry with NaN or infinity; None if all are finite."""
    if not values.size or values.dtype.kind != "f":
        return None
    # as integers, the two infinities are below every NaN of their sign and above every number: the maxima show whether
    # there is one, in a tenth of the time that halves take in NumPy's isfinite
    size = values.dtype.itemsize
    infinity = int(np.array(np.inf, values.dtype).view(f"i{size}"))
    negative_infinity = int(np.array(-np.inf, values.dtype).view(f"u{size}"))
    bits = np.ascontiguousarray(values)
    if bits.view(f"i{size}").max() < infinity and bits.view(f"u{size}").max() < negative_infinity:
        return None
    return int(np.argwhere(~np.isfinite(values))[0][0])
