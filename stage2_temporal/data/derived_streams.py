"""Derived streams: what pooled heads look at, computed once from a stream of the store and kept in it.

They are the first part of a head's graph, with the same numbers, so that most heads train in seconds without reading a
map. A stream's name says what it is: `grid3x4` (cells' means), `pooled` (one cell), `change3x4` (mean |map − map of the
frame before| of each cell), `change3x4lag2` (of two frames before), `pca64` (64 principal components of the whole map).
Of another stream than the appearance: `motion.grid3x4`.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence as Listed
from contextlib import ExitStack
from pathlib import Path

from features._common.lock import only_writer
from features.errors import ConfigError, StoreError
from features.store import Store
from features.store_writer import extend
from stage2_temporal.data.examples import APPEARANCE
from stage2_temporal.data.grid_pooling import Cells
from stage2_temporal.data.pca_projection import Components

PATIENCE = 120.0  # seconds to wait for another process that writes into the store
CELLS = r"(?P<pooled>pooled)|(?P<kind>grid|change)(?P<rows>\d+)x(?P<columns>\d+)(?:lag(?P<lag>\d+))?"
NAME = re.compile(rf"(?:(?P<source>\w+)\.)?(?:{CELLS}|pca(?P<components>[1-9]\d*))")
Derived = Cells | Components


def named(name: str) -> Derived:
    """The derived stream of that name.

    Raises:
        ConfigError: no such kind of stream.
    """
    found = NAME.fullmatch(name)
    if found is None or (found["kind"] == "grid" and found["lag"]):
        raise ConfigError(
            f"{name}: no stream that can be derived",
            expected="pooled, gridRxC, changeRxC, changeRxClagN or pcaN",
            got=name,
            mend="--stream grid3x4",
        )
    source = found["source"] or APPEARANCE
    if found["components"]:
        return Components(source, int(found["components"]))
    if found["pooled"]:
        return Cells(source, (1, 1))
    lag = int(found["lag"] or 1) if found["kind"] == "change" else 0
    return Cells(source, (int(found["rows"]), int(found["columns"])), lag)


def present(store: Store, wanted: Derived) -> bool:
    """Whether the store has the stream, derived from what its source is now, with its basis where it has one."""
    there, info = store.streams.get(wanted.name), wanted.info(store)
    return there == info and (isinstance(wanted, Cells) or bool(store.basis(wanted.name)))


def derive(path: Path, wanted: Listed[Derived]) -> list[str]:
    """Put streams into a store where they are lacking; the names of those that were.

    Raises:
        StoreError: another process writes into the store and does not come to an end.
        ConfigError: see the streams' `info`.
        OSError: the store cannot be written.
    """
    with Store(path) as store:
        if not _lacking(store, wanted):
            return []
    with ExitStack() as held:
        _wait(held, path)
        with Store(path) as store:
            lacking = _lacking(store, wanted)
            if lacking:
                extend(path, {d.name: d.stream(store) for d in lacking})
    return [d.name for d in lacking]


def provide(path: Path, wanted: Listed[Derived]) -> bool:
    """`derive`, or a line that says why not: whether the streams are there."""
    try:
        made = derive(path, wanted)
    except (OSError, StoreError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        names = ", ".join(d.name for d in wanted)
        print(f"{path}: {names} are not kept in the store ({reason}), but computed anew each time", file=sys.stderr)
        return False
    if made:
        print(f"{path}: {', '.join(made)} derived, for this head and others", file=sys.stderr)
    return True


def _lacking(store: Store, wanted: Listed[Derived]) -> list[Derived]:
    return [d for d in dict.fromkeys(wanted) if not present(store, d)]


def _wait(held: ExitStack, path: Path) -> None:
    """Take the store's lock, when a sweep's other process has derived its streams."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            held.enter_context(only_writer(path))
            return
        except StoreError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
