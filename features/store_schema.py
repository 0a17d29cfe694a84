"""What the tables of a store must look like, in both formats, whether it is packed or an index.

`table_faults` checks each part once, when a store is opened. A store comes from elsewhere or from a damaged disk: what
would be read as a wrong number later, or make later code fail, is named here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features._common.plain_text import is_plain_name
from features._common.strict_json import parse_json
from features.errors import DamagedStoreError
from features.hdf5 import damage_as_store_error, read_attribute, read_json, read_text
from features.limits import LARGEST_NUMBER
from features.sequences import SPLITS
from features.store_tables import Header, read_header

MAX_STORED_FRAMES = 1 << 27  # of a store: 50 days at 30 frames per second
MAX_PIXELS = 1 << 20  # width or height of a frame
STREAM_TYPES = ("float16", "float32", "float64")


@dataclass(frozen=True)
class Column:
    """A dataset with a row per sequence, label, track or run."""

    kind: str  # `text`, or the NumPy name of its type
    entry: tuple[int, ...] = ()  # shape of a row
    low: float = -LARGEST_NUMBER
    high: float = LARGEST_NUMBER
    may_be_unknown: bool = False  # NaN
    is_unique: bool = False


NUMBER = Column("float64")

ROW = Column("int64", low=0, high=MAX_STORED_FRAMES)
NAME = Column("text", is_unique=True)

SEQUENCE_COLUMNS = {
    "id": NAME,
    "split": Column("text"),
    "digest": Column("text"),
    "first": ROW,
    "length": Column("int64", low=1, high=MAX_STORED_FRAMES),
    "fps": Column("float64", low=1e-6, high=1e6),
    "width": Column("int64", low=1, high=MAX_PIXELS),
    "height": Column("int64", low=1, high=MAX_PIXELS),
}
REGION = Column("int64", (4,), -MAX_PIXELS, MAX_PIXELS)
LABEL_COLUMNS = {
    "sequence": ROW,
    "frame": Column("int64", low=-(1 << 31), high=1 << 31),  # may lie outside the sequence
    "box": Column("float64", (4,), may_be_unknown=True),
    "position": Column("float64", (2,), may_be_unknown=True),
}
TRACK_COLUMNS = {"key": NAME, "first": ROW, "length": Column("int64", low=1, high=MAX_STORED_FRAMES)}
TRACK_ROWS = {
    "box": Column("float64", (4,), may_be_unknown=True),
    "confidence": Column("float64", low=-1e-6, high=1 + 1e-6),
}
SHARD_COLUMNS = {"name": NAME, "size": Column("int64", low=1, high=1 << 62)}
RUN_COLUMNS = {
    "start": ROW,
    "shard": Column("int64", low=-1, high=1 << 31),
    "shard_row": Column("int64", low=0, high=MAX_STORED_FRAMES),
}
PIECE_COLUMNS = {
    "sequence": Column("text"),
    "digest": Column("text"),
    "start": ROW,
    "stop": Column("int64", low=1, high=MAX_STORED_FRAMES),
    "row": ROW,
}


@dataclass
class _Known:
    """What the parts checked so far say about the others; None if they are damaged."""

    sequences: int | None = None
    frames: int | None = None


def table_faults(f: Any, path: Path) -> Iterator[tuple[str, DamagedStoreError]]:
    """Check all tables of an open store; yield each damaged part and what is wrong with it."""
    known = _Known()
    for part, check in CHECKS.items():
        try:
            with damage_as_store_error(path):
                check(f, known)
        except DamagedStoreError as e:
            yield part, e


def check_pieces(f: Any) -> None:
    """Check the table of frame ranges in an open shard; a DamagedStoreError names what is wrong."""
    group = _group(f, "pieces")
    columns = _columns(group, PIECE_COLUMNS)
    lengths = columns["stop"] - columns["start"]
    _require((lengths > 0).all(), group, "start and stop that ascend")
    streams = list(_group(f, "frames").values())
    for data in streams:
        check_stream(data, len(streams[0]))
    rows = len(streams[0]) if streams else 0
    _require((columns["row"] + lengths <= rows).all(), group, f"rows among the {rows} stored ones")
    check_thumbnails(f, rows, required=False)


def check_thumbnails(f: Any, frames: int, required: bool = True) -> None:
    """Check the offsets of the thumbnails of a file with so many frames."""
    if "thumbnails" not in f and not required:
        return
    group = _group(f, "thumbnails")
    data = _dataset(group, "data")
    _require(data.dtype == np.uint8 and data.ndim == 1, data, "bytes")
    offsets = _column(group, "offset", Column("int64", low=0, high=data.size), frames + 1)
    _require((np.diff(offsets) >= 0).all(), f["thumbnails/offset"], "offsets that ascend")


def check_stream(data: Any, frames: int | None = None) -> None:
    """Check the declared shape and type of a stream's frames, without reading them."""
    _require(hasattr(data, "shape"), data, "frames, not a group")
    _require(data.dtype.name in STREAM_TYPES, data, " or ".join(STREAM_TYPES), data.dtype.name)
    _require(data.ndim > 1 and min(data.shape[1:]) > 0, data, "a frame in each row", data.shape)
    _require(data.chunks == (1, *data.shape[1:]), data, "one frame in each chunk", data.chunks)
    _require(frames is None or len(data) == frames, data, f"{frames} frames", len(data))


def check_stream_info(info: Any, where: Any) -> None:
    """Check what an index says about a stream."""
    _require(isinstance(info, dict) and info.keys() == {"shape", "dtype", "origin"}, where, "shape, dtype and origin")
    shape = info["shape"]
    _require(
        isinstance(shape, list) and len(shape) > 0 and all(type(n) is int and 0 < n < 1 << 31 for n in shape),
        where, "a shape of positive numbers", shape,
    )  # fmt: skip
    _require(math.prod(shape) < 1 << 31, where, "a shape of fewer than 2³¹ numbers", shape)
    _require(info["dtype"] in STREAM_TYPES, where, " or ".join(STREAM_TYPES), info["dtype"])
    _require(isinstance(info["origin"], dict), where, "an origin with names", info["origin"])


def check_header(f: Any) -> Header:
    """Read a header and check it; a ValueError or DamagedStoreError says what is wrong with it."""
    header = read_header(f)
    trunk, where = header.trunk, f.get("header", f)
    for name in ("versions", "missing"):
        texts = getattr(header, name)
        _require(_is_dict(texts, str), where, f"texts in {name}", texts)
    kinds = {"parameters": int, "backbone_layers": int, "cut": str, "request": str, "relative_error": dict}
    _require(_is_dict(trunk, object), where, "names in trunk", trunk)
    for name, kind in kinds.items():
        _require(name not in trunk or type(trunk[name]) is kind, where, f"{kind.__name__} in {name}", trunk.get(name))
    for name in ("relative_error", "quantisation_error"):
        errors = trunk.get(name, {})
        _require(_is_dict(errors, (int, float)), where, f"numbers in {name}", errors)
    if "header" not in f and "fingerprint" in f.attrs:
        stored, computed = read_attribute(f, "fingerprint"), header.recipe.fingerprint
        _require(stored == computed, f, f"the recipe's fingerprint {computed}", stored)
    return header


def _check_header(f: Any, known: _Known) -> None:
    check_header(f)


def _check_sequences(f: Any, known: _Known) -> None:
    group = _group(f, "sequences")
    columns = _columns(group, SEQUENCE_COLUMNS)
    _require(len(columns["id"]) > 0, group, "at least one sequence")
    _require(set(columns["split"]) <= set(SPLITS), group["split"], f"one of {', '.join(SPLITS)}")
    lengths = columns["length"]
    frames = sum(lengths.tolist())
    _require(frames <= MAX_STORED_FRAMES, group["length"], f"at most {MAX_STORED_FRAMES:,} frames", f"{frames:,}")
    ascending = np.array_equal(columns["first"], np.cumsum(lengths) - lengths)
    _require(ascending, group["first"], "rows of sequences one after another, without gaps")
    if "camera" in group:
        width = 5 if group["camera"].shape[1:] == (5,) else 6  # older stores have no horizon
        camera = _column(group, "camera", Column("float64", (width,), may_be_unknown=True), len(lengths))
        lens = camera[~np.isnan(camera[:, 0]), :4]
        _require(np.isfinite(lens).all() and (lens[:, :2] > 0).all(), group["camera"], "positive focal lengths")
        _require(not (camera[:, 4] <= 0).any(), group["camera"], "positive heights")
    if "region" in group:
        region = _column(group, "region", REGION, len(lengths))
        _require((region[:, :2] < region[:, 2:]).all(), group["region"], "left < right and top < bottom")
    if "times" in group:
        _check_times(group, lengths)
    known.sequences, known.frames = len(lengths), frames


def _check_times(group: Any, lengths: NDArray[np.int64]) -> None:
    times = _column(group, "times", NUMBER)
    stops = _column(group, "times_stop", ROW, len(lengths))
    counts = np.diff(stops, prepend=0)
    _require(((counts == 0) | (counts == lengths)).all(), group["times_stop"], "a time for each frame, or none")
    _require(stops[-1] == len(times), group["times_stop"], f"{len(times)} times", stops[-1])
    within = np.ones(len(times), bool)
    within[stops[stops < len(times)]] = False  # the first of a sequence
    within[:1] = False
    _require((np.diff(times, prepend=0)[within] > 0).all(), group["times"], "times that ascend")


def _check_labels(f: Any, known: _Known) -> None:
    group = _group(f, "labels")
    names = parse_json(read_attribute(group, "columns"))
    is_list = isinstance(names, list) and all(isinstance(n, str) for n in names) and len(set(names)) == len(names)
    _require(is_list, group, "different names in columns")
    columns = _columns(group, LABEL_COLUMNS)
    count = len(columns["sequence"])
    _column(group, "targets", Column("float64", (len(names),), may_be_unknown=True), count)
    _column(group, "named", Column("bool", (len(names),)), count)
    if known.sequences is not None and count:
        last = int(columns["sequence"].max())
        _require(last < known.sequences, group["sequence"], f"one of {known.sequences} sequences", last)


def _check_tracks(f: Any, known: _Known) -> None:
    if "tracks" not in f:
        return
    group = _group(f, "tracks")
    columns = _columns(group, TRACK_COLUMNS)
    lengths = columns["length"]
    ascending = np.array_equal(columns["first"], np.cumsum(lengths) - lengths)
    _require(ascending, group["first"], "rows of tracks one after another, without gaps")
    _columns(group, TRACK_ROWS, sum(lengths.tolist()))


def _check_top(f: Any, known: _Known) -> None:
    if "top" not in f:
        return
    group = _group(f, "top")
    if "architecture" in group:
        _require(isinstance(read_json(group["architecture"]), str), group, "text in architecture")
    else:
        _require(isinstance(read_attribute(group, "architecture"), str), group, "text in architecture")
    weights = _group(group, "weights") if "weights" in group else {}
    _require(set(weights) == {str(i) for i in range(len(weights))}, group, f"weights 0 to {len(weights) - 1}")
    for data in weights.values():
        _require(getattr(data, "dtype", np.dtype("O")).kind == "f", data, "weights, as numbers")


def _check_bases(f: Any, known: _Known) -> None:
    for stream in _group(f, "bases").values() if "bases" in f else ():
        _require(not hasattr(stream, "shape"), stream, "arrays in a group")
        for data in stream.values():
            _require(getattr(data, "dtype", np.dtype("O")).kind == "f", data, "numbers")


def _check_frames(f: Any, known: _Known) -> None:
    if "shards" in f:
        _check_runs(f, known)
        return
    frames = _group(f, "frames")
    _require(len(frames) > 0, frames, "at least one stream")
    for data in frames.values():
        check_stream(data, known.frames)
        origin = parse_json(read_attribute(data, "origin") or "{}")
        _require(isinstance(origin, dict), data, "an origin with names", origin)


def _check_runs(f: Any, known: _Known) -> None:
    shards = len(_columns(_group(f, "shards"), SHARD_COLUMNS)["name"])
    runs = _group(f, "runs")
    _require(len(runs) > 0, runs, "at least one stream")
    complete = 0
    for group in runs.values():
        _require(not hasattr(group, "shape"), group, "columns in a group")
        check_stream_info(parse_json(read_attribute(group, "info")), group)
        columns = _columns(group, RUN_COLUMNS)
        start, shard = columns["start"], columns["shard"]
        _require(len(start) > 0 and start[0] == 0 and (np.diff(start) > 0).all(), group["start"], "rows that ascend")
        _require(int(shard.max()) < shards, group["shard"], f"one of {shards} shards", int(shard.max()))
        _require(known.frames is None or start[-1] < known.frames, group["start"], f"rows below {known.frames}")
        complete += bool((shard >= 0).all())
    _require(complete > 0, runs, "at least one stream with all frames")


def _check_thumbnails(f: Any, known: _Known) -> None:
    if "shards" not in f:
        frames = len(_dataset(_group(f, "thumbnails"), "offset")) - 1 if known.frames is None else known.frames
        check_thumbnails(f, frames)


CHECKS: dict[str, Callable[[Any, _Known], None]] = {
    "header": _check_header,
    "sequences": _check_sequences,
    "labels": _check_labels,
    "tracks": _check_tracks,
    "top": _check_top,
    "bases": _check_bases,
    "frames": _check_frames,
    "thumbnails": _check_thumbnails,
}


def _columns(group: Any, columns: dict[str, Column], rows: int | None = None) -> dict[str, Any]:
    """Read and check columns of as many rows as each other."""
    values: dict[str, Any] = {}
    for name, column in columns.items():
        values[name] = _column(group, name, column, rows)
        rows = len(values[name])
    return values


def _column(group: Any, name: str, column: Column, rows: int | None = None) -> Any:
    """Read a column and check its shape, type and range."""
    data = _dataset(group, name)
    if column.kind == "text":
        _require(data.dtype.kind in "SO" and data.ndim == 1, data, "a column of text", data.dtype)
        text = read_text(data)
        _require(rows is None or len(text) == rows, data, f"{rows} rows", len(text))
        _require(not column.is_unique or len(set(text)) == len(text), data, "different names")
        _require(all(text), data, "no empty text")
        _require(all(map(is_plain_name, text)), data, "text without control characters")
        return text
    _require(data.dtype.name == column.kind, data, column.kind, data.dtype)
    _require(data.ndim > 0, data, "a column", "a single value")
    shape = (len(data) if rows is None else rows, *column.entry)
    _require(data.shape == shape, data, f"shape {shape}", data.shape)
    values = data[...]
    if column.kind != "bool" and values.size:
        bad = ~((values >= column.low) & (values <= column.high))
        if column.may_be_unknown:
            bad &= ~np.isnan(values)
        if bad.any():
            at = np.argwhere(bad)[0]
            got = f"{values[tuple(at)]} in row {at[0]}"
            _require(False, data, f"numbers from {column.low:.7g} to {column.high:.7g}", got)
    return values


def _group(parent: Any, name: str) -> Any:
    group = parent.get(name)
    _require(group is not None, parent, f"a group {name}", "none")
    _require(not hasattr(group, "shape"), group, "a group")
    return group


def _dataset(group: Any, name: str) -> Any:
    data = group.get(name)
    _require(data is not None, group, f"a dataset {name}", "none")
    _require(hasattr(data, "shape"), data, "a dataset")
    return data


def _is_dict(value: object, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, dict) and all(isinstance(v, kind) and not isinstance(v, bool) for v in value.values())


def _require(condition: Any, node: Any, expected: str, got: object = None) -> None:
    """Raise a DamagedStoreError that names a group or dataset, unless the condition holds."""
    if not condition:
        name, path = node.name.strip("/") or "attributes", node.file.filename
        shown = None if got is None else str(got)[:200]
        hint = f"framebank verify --store {path}, then repair; or use another copy"
        raise DamagedStoreError(f"{path}: {name}: damaged", expected=expected, got=shown, hint=hint)
