"""The folder of shards beside a store: which shards are in use, and deleting those that are not.

When an index is replaced, the old one is kept in the folder as `.replaced-…`, so that a program that has it open can
read its shards to the end. HDF5 locks the files that it reads, which shows whether such a program is left.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from features._common.atomic import atomic_write, exclusive_write_lock, sweep
from features._common.bounded_file import read_bounded
from features._common.leftovers import HOLDER
from features._common.strict_json import parse_json
from features.errors import DamagedStoreError, DataError, StoreError
from features.frame_files import shard_folder, shard_names
from features.hdf5 import damage_as_store_error, is_open_elsewhere, open_file
from features.limits import JSON_BYTES

REPLACED = ".replaced-"
SHARD_NAME = re.compile(r"(packed-)?[0-9a-f]{24}\.h5")
OBSOLETE = ".obsolete.json"  # names the shards that are to be deleted


def keep_replaced_index(store: Path) -> None:
    """Keep the index that is about to be replaced, for its readers."""
    try:
        if not store.exists() or not _shards_of(store):
            return
    except DamagedStoreError:  # it is being repaired, and nobody can read it
        return
    stat = store.stat()
    kept = shard_folder(store) / f"{REPLACED}{stat.st_ino:x}-{stat.st_mtime_ns:x}.h5"
    kept.unlink(missing_ok=True)
    try:
        os.link(store, kept)
    except OSError:  # a file system without hard links; who reads the original is not seen in a copy
        shutil.copyfile(store, kept)


def sweep_store(store: Path) -> None:
    """Delete what killed commands have left beside a store and among its shards; a reader may call it."""
    folder = shard_folder(store)
    sweep(store.parent, folder)
    lock = store.with_name(f"{store.name}.lock")
    with contextlib.suppress(OSError, StoreError):
        if lock.exists() and not store.with_name(f"{store.name}{HOLDER}").exists():
            with exclusive_write_lock(store):  # of a command that was killed before it wrote its name
                pass
        if (folder / OBSOLETE).exists() or any(index.samefile(store) for index in folder.glob(f"{REPLACED}*.h5")):
            with exclusive_write_lock(store):
                forget_kept_index(store)
                _finish_deletion(store)


def forget_kept_index(store: Path) -> None:
    """Delete the copy of an index that has not been replaced after all. The caller holds the store's lock."""
    for index in shard_folder(store).glob(f"{REPLACED}*.h5"):
        if store.exists() and index.samefile(store):
            index.unlink()


def delete_replaced_shards(store: Path) -> None:
    """Delete the shards that only replaced indexes without readers refer to. The caller holds the store's lock."""
    folder = shard_folder(store)
    unused: set[str] = set()
    forget_kept_index(store)
    for index in folder.glob(f"{REPLACED}*.h5"):
        if not is_open_elsewhere(index):
            unused |= _shards_of(index)
            index.unlink()
    _delete(folder, unused - used_shards(store))


@contextmanager
def shards_deleted_afterwards(store: Path) -> Iterator[None]:
    """Replace the store in the block; afterwards all shards but its own are deleted, if need be by the next command."""
    try:
        if (folder := shard_folder(store)).exists():
            with atomic_write(folder / OBSOLETE) as temporary:
                temporary.write_text(json.dumps([_identity(store), sorted(_shards_in(folder))]), encoding="utf-8")
        yield
        delete_unused_shards(store)
    except BaseException:
        with contextlib.suppress(OSError, StoreError):
            _finish_deletion(store)
        raise


def delete_unused_shards(store: Path) -> None:
    """Delete all shards but those of the store and of replaced indexes with readers, and the folder if it is empty."""
    folder = shard_folder(store)
    delete_replaced_shards(store)
    _delete(folder, _shards_in(folder) - used_shards(store))
    (folder / OBSOLETE).unlink(missing_ok=True)
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()


def _finish_deletion(store: Path) -> None:
    """Delete the shards that a killed command was to delete, if it had replaced the store; an extraction may go on."""
    folder = shard_folder(store)
    try:
        identity, names = parse_json(read_bounded(folder / OBSOLETE, JSON_BYTES).decode())
        names = {name for name in names if isinstance(name, str)}
    except FileNotFoundError:
        return
    except (ValueError, TypeError, DataError):  # not a list of ours, which `delete_unused_shards` does without
        identity, names = _identity(store), set()
    if _identity(store) != identity:
        _delete(folder, names - used_shards(store))
    (folder / OBSOLETE).unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def _identity(store: Path) -> list[int]:
    """What tells a store from the one that replaces it; empty if there is none."""
    return [store.stat().st_ino, store.stat().st_mtime_ns] if store.exists() else []


def _shards_in(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.h5") if not path.name.startswith(".")}


def used_shards(store: Path) -> set[str]:
    """Return the names of the shards of the store and of the replaced indexes that still exist."""
    kept = shard_folder(store).glob(f"{REPLACED}*.h5")
    return set().union(*map(_shards_of, [*([store] if store.exists() else []), *kept]))


def _shards_of(index: Path) -> set[str]:
    try:
        with open_file(index) as f, damage_as_store_error(index):
            return set(shard_names(f, index))
    except StoreError:
        if index.name.startswith(REPLACED):
            return set()
        raise


def _delete(folder: Path, names: Iterable[str]) -> None:
    for name in filter(SHARD_NAME.fullmatch, names):  # the folder may be a link to one with other files
        (folder / name).unlink(missing_ok=True)
