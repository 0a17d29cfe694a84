"""Heads, backbones and data sets that other packages provide, found by their entry points.

A package declares them in its pyproject.toml, and framebank finds them by name once it is installed:

    [project.entry-points."framebank.heads"]
    my_head = "my_package.heads:MyHead"
"""

from __future__ import annotations

import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from features._common.console import quiet_imports
from features.errors import ConfigError

HEADS, BACKBONES, DATASETS = "framebank.heads", "framebank.backbones", "framebank.datasets"


def plugin_names(group: str) -> dict[str, str]:
    """The name of each plugin of a group and the package that provides it, without importing any."""
    return {name: _package(entry) for name, entry in sorted(_entries(group).items())}


def load_plugin(group: str, name: str) -> Any:
    """Import a plugin; None if no package provides the name, a ConfigError with the package if the import fails."""
    entry = _entries(group).get(name)
    if entry is None:
        return None
    try:
        with quiet_imports():  # most plugins import TensorFlow
            return entry.load()
    except Exception as e:  # the package's code may raise anything
        raise plugin_error(group, name, f"cannot be imported ({type(e).__name__}: {e})") from e


def plugin_error(group: str, name: str, what: str) -> ConfigError:
    """The error for a plugin that does not meet the requirements of its group."""
    entry = _entries(group)[name]
    return ConfigError(
        f"{group.removeprefix('framebank.').removesuffix('s')} {name!r} of the package {_package(entry)}: {what}",
        hint=f"correct {entry.value} in that package, or uninstall it",
    )


def _entries(group: str) -> dict[str, EntryPoint]:
    return _entries_on(tuple(sys.path), group)


@cache
def _entries_on(path: tuple[str, ...], group: str) -> dict[str, EntryPoint]:
    """The entries of a group; finding them reads a file of every package, and each config asks."""
    return {entry.name: entry for entry in entry_points(group=group)}


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.module
