"""Crafted defects of stores: each changes an open store, or one of its shards, in one place.

A store that a stranger made passes every checksum, so only what the numbers say can show that it is none.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from features.frame_files import shard_folder
from features.sequences import Camera, FrameSequence, Label
from features.store import Store
from features.store_tables import StreamInfo, TopRecord
from features.store_writer import StreamContent, extend_store
from features.tracks import Track, track_keys
from tests.helpers import write_store

CLIPS = [
    FrameSequence(
        f"Train/{i}", ("train", "validation", "test")[i % 3], 8, 20.0, (64, 48), f"{i:064x}",
        (Label(7, {"vx": i / 2, "vy": -1.0}, (1.0, 2.0, 13.0, 14.0), (20.0, -0.5)),),
        Camera(50.0, 50.0, 32.0, 24.0, 1.5, 20.0), None, tuple((k + 0.1 * (k % 2)) / 20 for k in range(8)),
    )
    for i in range(6)
]  # fmt: skip
FRAMES = 48
CASES: dict[str, tuple[str, Callable[[Any], object]]] = {}


def make_store(path: Path, packed: bool) -> Path:
    """A store with everything that one can have."""
    rng = np.random.default_rng(0)
    maps = {"appearance": rng.normal(size=(FRAMES, 3, 4, 5)).astype("f2"), "motion": rng.normal(size=(FRAMES, 6))}
    tracks = {key: Track(rng.uniform(0, 40, (8, 4)), np.linspace(0, 1, 8)) for c in CLIPS for key in track_keys(c)}
    top = TopRecord(json.dumps({"class_name": "Functional"}), [rng.normal(size=(5, 3)).astype("f4"), np.ones(3, "f4")])
    facts = {"parameters": 7, "cut": "after x", "relative_error": {"tensorflow": 0.0}}
    write_store(path, CLIPS, maps, top=top, trunk=facts, tracks=tracks, packed=packed)
    cells = rng.normal(size=(FRAMES, 2)).astype("f4")
    info = StreamInfo((2,), "float32", {"source": "appearance"})
    extend_store(path, {"cells": StreamContent(info, batches=[cells], arrays={"mean": np.ones(3, "f4")})})
    return path


def damage(path: Path, name: str) -> None:
    """Change a store as the case says."""
    kind, change = CASES[name]
    target = (
        path if kind in ("any", "packed", "index") else sorted(shard_folder(path).glob("[!.]*.h5"), key=_has_maps)[-1]
    )
    with h5py.File(target, "r+", libver=("v110", "v110")) as f:
        change(f)
    if kind == "shard":
        with h5py.File(path, "r+", libver=("v110", "v110")) as f:  # a stranger's index would state the changed size
            sizes = {name.decode(): i for i, name in enumerate(f["shards/name"][:])}
            f["shards/size"][sizes[target.name]] = target.stat().st_size


def read_all(path: Path) -> None:
    """Read whatever a store has."""
    with Store(path) as store:
        store.track_keys, store.frame_times, store.frame_intervals  # noqa: B018
        for i, sequence in enumerate(store.sequences):
            for label in range(len(sequence.labels)):
                store.track(i, label)
        for name in store.streams:
            store.read(name, range(store.frames))
            store.basis(name)
        for row in range(store.frames):
            store.thumbnail(row)
        store.top()
        store.tracks()


def _has_maps(path: Path) -> bool:
    with h5py.File(path) as f:
        return "appearance" in f["frames"]


def _add(name: str, change: Callable[[Any], object], kind: str = "any") -> None:
    CASES[name] = kind, change


def _put(part: str, values: Any, **options: Any) -> Callable[[Any], object]:
    """Replace a dataset; a function gets the old values."""

    def change(f: Any) -> None:
        new = values(f[part][()]) if callable(values) else values
        if part in f:
            del f[part]
        f.create_dataset(part, data=new, **options)

    return change


def _edit(part: str, at: Any, value: Any) -> Callable[[Any], object]:
    """Set some numbers of a dataset."""

    def change(f: Any) -> None:
        f[part][at] = value

    return change


def _declare(part: str, shape: tuple[int, ...], kind: Any = "f8", **options: Any) -> Callable[[Any], object]:
    """Replace a dataset by one that declares a size, of which nothing is stored."""

    def change(f: Any) -> None:
        if part in f:
            del f[part]
        f.create_dataset(part, shape, kind, **options)

    return change


def _delete(part: str) -> Callable[[Any], object]:
    def change(f: Any) -> None:
        del f[part]

    return change


def _header(**changes: Any) -> Callable[[Any], object]:
    def change(f: Any) -> None:
        value = json.loads(f["header"][:].tobytes())
        recipe = json.loads(value["recipe"])
        recipe |= {name: new for name, new in changes.items() if name in recipe}
        value["recipe"] = json.dumps(recipe)
        value |= {name: new for name, new in changes.items() if name in value}
        _json("header", json.dumps(value))(f)

    return change


def _json(part: str, text: str) -> Callable[[Any], object]:
    return _put(part, np.frombuffer(text.encode(), np.uint8))


def _attribute(part: str, name: str, value: Any) -> Callable[[Any], object]:
    def change(f: Any) -> None:
        f[part].attrs[name] = value

    return change


def _info(**changes: Any) -> Callable[[Any], object]:
    def change(f: Any) -> None:
        attributes = f["runs/appearance"].attrs
        attributes["info"] = json.dumps(json.loads(attributes["info"]) | changes)

    return change


def _text(*values: str | bytes) -> Any:
    return np.array([v if isinstance(v, bytes) else v.encode() for v in values], h5py.string_dtype("utf-8", 80))


def _soft_links(f: Any) -> None:
    f["bases/a"], f["bases/b"] = h5py.SoftLink("/bases/b"), h5py.SoftLink("/bases/a")


def _nest(f: Any) -> None:
    """Groups that share their only child under two names, 40 deep: 2⁴⁰ paths."""
    group = f.create_group("z0")
    for i in range(1, 41):
        f.create_group(f"z{i}")
        group["a"] = group["b"] = f[f"z{i}"]
        group = f[f"z{i}"]


def _cycle(f: Any) -> None:
    f["bases/cells/loop"] = f["bases"]


def _many_groups(f: Any) -> None:
    for i in range(10_001):
        f.create_group(f"g/{i}")


_add("soft links in a circle", _soft_links)
_add("a soft link", lambda f: f.__setitem__("bases/x", h5py.SoftLink("/frames")))
_add("an external link", lambda f: f.__setitem__("top/weights/2", h5py.ExternalLink("/etc/passwd", "/")))
_add("groups with 2 to the 40 paths", _nest)
_add("a group inside itself", _cycle)
_add("two names for a dataset", lambda f: f.__setitem__("bases/cells/other", f["sequences/fps"]))
_add("10,001 groups", _many_groups)
_add("a compound type", _put("sequences/fps", np.zeros(6, [("a", "f8"), ("b", "i4")])))
_add("complex numbers", _put("labels/targets", np.zeros((6, 2), "c16")))
_add("a named type", lambda f: f.__setitem__("bases/type", np.dtype("f8")))
_add("references", lambda f: f.create_dataset("bases/r", data=f.ref, dtype=h5py.ref_dtype))
_add("a compressed bomb of 16 GB", _declare("top/weights/0", (1 << 31,), chunks=(1 << 20,), compression="gzip"))
_add("weights of 16 GB", _declare("top/weights/0", (1 << 31,), chunks=(1 << 20,)))
_add("a basis of a terabyte", _declare("bases/cells/mean", (1 << 37,), chunks=(1 << 20,)))
_add("targets of 8 TB", _declare("labels/targets", (1 << 20, 1 << 20), chunks=(1024, 1024)))
_add("a column of 10 to the 12", _declare("sequences/fps", (10**12,), chunks=(1 << 16,)))
_add("text of 6 GB", _declare("sequences/digest", (6,), h5py.string_dtype("utf-8", 1 << 30), chunks=(1,)))
_add("a header of a terabyte", _declare("header", (1 << 40,), "u1", chunks=(1 << 20,)))
_add("no header", _delete("header"))
_add("a header that is no JSON", _json("header", "{"))
_add("a header of another type", _json("header", "[1]"))
_add("a header nested 30,000 deep", _json("header", "[" * 30_000 + "]" * 30_000))
_add("a header with infinity", _json("header", '{"recipe": 1e400}'))
_add("a header with a key twice", _json("header", '{"complete": true, "complete": false}'))
_add("a header as floats", _put("header", np.zeros(9)))
_add("complete as text", _header(complete="no"))
_add("a trunk that is a list", _header(trunk=[]))
_add("parameters as text", _header(trunk={"parameters": "many"}))
_add("a relative error as text", _header(trunk={"relative_error": {"x": "y"}}))
_add("versions that are numbers", _header(versions={"numpy": 2}))
_add("a recipe that is a list", _header(recipe="[]"))
_add("a recipe without a size", _header(recipe='{"decode": "cv2"}'))
_add("a size of zero", _header(size=[0, 18]))
_add("a size of text", _header(size=["32", "18"]))
_add("a backbone that is a number", _header(backbone=5))
_add("a grid of three", _header(grid=[1, 2, 3]))
_add("format as a list", _attribute("/", "format", np.arange(4)))
_add("version as text", _attribute("/", "version", "abc"))
_add("version 9", _attribute("/", "version", 9))
_add("no sequences", _delete("sequences"))
_add("no labels", _delete("labels"))
_add("sequences that are a dataset", _put("labels", np.zeros(3)))
_add("a missing column", _delete("sequences/split"))
_add("a short column", _put("sequences/fps", np.full(5, 20.0)))
_add("lengths as text", _put("sequences/length", _text(*"888888")))
_add("lengths as NaN", _put("sequences/length", np.full(6, np.nan)))
_add("lengths of 2 to the 50", _put("sequences/length", np.full(6, 1 << 50)))
_add("a negative length", _edit("sequences/length", 1, -8))
_add("lengths that end early", _put("sequences/length", np.full(6, 7)))
_add("rows that overlap", _put("sequences/first", np.zeros(6, np.int64)))
_add("rows in another order", _put("sequences/first", np.roll(np.arange(6) * 8, 1)))
_add("rows with an offset", _put("sequences/first", np.arange(6) * 8 + 1000))
_add("the same id twice", _put("sequences/id", _text(*["Train/1"] * 6)))
_add("ids that are no UTF-8", _put("sequences/id", _text(*[b"\xff\xfe%d" % i for i in range(6)])))
_add("an id that controls the terminal", _put("sequences/id", _text("\x1b[2J", *"12345")))
_add("an empty id", _put("sequences/id", _text("", *"12345")))
_add("another split", _put("sequences/split", _text(*["holdout"] * 6)))
_add("a rate of zero", _edit("sequences/fps", 2, 0.0))
_add("a negative rate", _edit("sequences/fps", 2, -20.0))
_add("a rate of NaN", _edit("sequences/fps", 2, np.nan))
_add("a rate of 1e300", _edit("sequences/fps", 2, 1e300))
_add("a width of zero", _edit("sequences/width", 0, 0))
_add("a height of 2 to the 40", _edit("sequences/height", 0, 1 << 40))
_add("a camera of infinity", _edit("sequences/camera", (0, 1), np.inf))
_add("a negative focal length", _edit("sequences/camera", (0, 0), -5.0))
_add("a camera without a centre", _edit("sequences/camera", (0, 2), np.nan))
_add("a camera below the road", _edit("sequences/camera", (0, 4), -1.0))
_add("a camera of seven numbers", _put("sequences/camera", np.ones((6, 7))))
_add("a region of no width", _put("sequences/region", np.zeros((6, 4), np.int64)))
_add("times that descend", _edit("sequences/times", 5, 0.01))
_add("a time of infinity", _edit("sequences/times", 47, np.inf))
_add("times that stop early", _put("sequences/times_stop", np.arange(1, 7) * 7))
_add("times that stop in disorder", _put("sequences/times_stop", np.arange(6)[::-1] * 8))
_add("labels of another sequence", _put("labels/sequence", np.arange(6) + 7))
_add("labels of a sequence before the first", _edit("labels/sequence", 0, -1))
_add("a label's frame of 2 to the 62", _edit("labels/frame", 0, 1 << 62))
_add("a label of infinity", _edit("labels/targets", (0, 0), np.inf))
_add("a label of 1e308", _edit("labels/targets", (0, 0), 1e308))
_add("a box of infinity", _edit("labels/box", (0, 3), np.inf))
_add("a position of infinity", _edit("labels/position", (0, 0), -np.inf))
_add("boxes of three numbers", _put("labels/box", np.ones((6, 3))))
_add("truth values as numbers", _put("labels/named", np.ones((6, 2))))
_add("columns that are a number", _attribute("labels", "columns", "5"))
_add("columns nested 10,000 deep", _attribute("labels", "columns", "[" * 10_000 + "]" * 10_000))
_add("a column name twice", _attribute("labels", "columns", '["vx","vx"]'))
_add("more column names than columns", _attribute("labels", "columns", '["vx","vy","ego_speed"]'))
_add("no column names", lambda f: f["labels"].attrs.__delitem__("columns"))
_add("tracks of negative length", _put("tracks/length", np.full(6, -8)))
_add("tracks that are too short", _put("tracks/length", np.full(6, 3)))
_add("tracks that overlap", _put("tracks/first", np.zeros(6, np.int64)))
_add("a track's box of infinity", _edit("tracks/box", (3, 1), np.inf))
_add("tracks as text", _put("tracks/box", _text(*["a"] * 48)))
_add("a confidence of 2", _edit("tracks/confidence", 3, 2.0))
_add("a key twice", _put("tracks/key", lambda old: np.repeat(old[:1], 6)))
_add("a weight of NaN", _edit("top/weights/1", 2, np.nan))
_add("a weight that is no number", lambda f: f.create_dataset("top/weights/abc", data=np.zeros(3)))
_add("weights as text", _put("top/weights/0", _text("a")))
_add("weights with a gap", lambda f: f.move("top/weights/1", "top/weights/2"))
_add("an architecture that is a list", _json("top/architecture", "[1]"))
_add("no architecture", _delete("top/architecture"))
_add("a basis of infinity", _edit("bases/cells/mean", 1, np.inf))
_add("a basis that is no group", _put("bases/cells", np.zeros(3)))

for _kind in ("packed", "shard"):
    _in = f", {_kind}"
    _maps = "frames/appearance"
    _options = {"chunks": (1, 3, 4, 5), "fletcher32": True}
    _add("NaN in a map" + _in, _edit(_maps, (5, 0, 0, 0), np.nan), _kind)
    _add("infinity in a map" + _in, _edit(_maps, (FRAMES - 1, 2, 3, 4), -np.inf), _kind)
    _add("maps as text" + _in, _put(_maps, _text(*["x"] * FRAMES)), _kind)
    _add("maps of another shape" + _in, _put(_maps, np.zeros((FRAMES, 4), "f2"), chunks=(2, 4)), _kind)
    _add("a map of one number" + _in, _put(_maps, np.float16(1)), _kind)
    _add(
        "maps as a group" + _in,
        lambda f: (f.__delitem__("frames/appearance"), f.create_group("frames/appearance")),
        _kind,
    )
    _add("too few maps" + _in, _put(_maps, lambda old: old[:40], **_options), _kind)
    _add("maps of 10 to the 12 frames" + _in, _declare(_maps, (10**12, 3, 4, 5), "f2", chunks=(1, 3, 4, 5)), _kind)
    _add("maps of integers" + _in, _put(_maps, np.zeros((FRAMES, 3, 4, 5), "i2"), **_options), _kind)
    _add("no maps" + _in, _delete("frames"), _kind)
    _add("no thumbnails' offsets" + _in, _delete("thumbnails/offset"), _kind)
    _add("offsets of 8 GB" + _in, _declare("thumbnails/offset", (1 << 30,), "i8", chunks=(1 << 16,)), _kind)
    _add("offsets that descend" + _in, _put("thumbnails/offset", lambda old: old[::-1].copy()), _kind)
    _add("offsets beyond the thumbnails" + _in, _put("thumbnails/offset", lambda old: old * 1000), _kind)
    _add("too few offsets" + _in, _put("thumbnails/offset", lambda old: old[:-1]), _kind)

_add(
    "maps of single precision, shard",
    _put("frames/appearance", lambda old: old.astype("f4"), chunks=(1, 3, 4, 5)),
    "shard",
)
_add("maps of another type, packed", _put("frames/appearance", np.zeros((FRAMES, 3, 4, 5), "c8")), "packed")
_add("an origin that is a list", _attribute("frames/cells", "origin", "[1,2]"), "packed")
_add(
    "an origin nested 10,000 deep", _attribute("frames/cells", "origin", '{"a":' * 5_000 + "1" + "}" * 5_000), "packed"
)
_add("no runs", _delete("runs"), "index")
_add("no run of a stream", _put("runs/appearance/start", np.zeros(0, np.int64)), "index")
_add("runs that begin late", _edit("runs/appearance/start", 0, 3), "index")
_add("runs of a shard that is not listed", _edit("runs/appearance/shard", 0, 9), "index")
_add("rows before a shard's first", _edit("runs/appearance/shard_row", 0, -5), "index")
_add("rows beyond a shard", _edit("runs/appearance/shard_row", 0, 1), "index")
_add("a shard's negative size", _put("shards/size", lambda old: -old), "index")
_add("a shard twice", _put("shards/name", lambda old: np.repeat(old[:1], len(old))), "index")
_add("a shard outside the folder", _put("shards/name", lambda old: _text(*[b"../" + n for n in old])), "index")
_add("no shape of a stream", _attribute("runs/appearance", "info", "{}"), "index")
_add("a shape of 10 to the 12", _info(shape=[10**6, 10**6]), "index")
_add("a negative shape", _info(shape=[-3, 4, 5]), "index")
_add("a type that is an object", _info(dtype="object"), "index")
_add("an origin that is text", _info(origin="x"), "index")
_add("2 to the 26 frames", lambda f: (_edit("sequences/length", 5, 1 << 26)(f),), "index")


def cases(form: str) -> list[str]:
    """The cases that suit a packed store or an index."""
    kinds = ("any", "packed") if form == "packed" else ("any", "index", "shard")
    return [name for name, (kind, _) in CASES.items() if kind in kinds]
