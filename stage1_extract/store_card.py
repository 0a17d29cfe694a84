"""A store's card, a Markdown file beside it: what it holds, how it was made, its limits, and how to load it."""

from __future__ import annotations

import json
from pathlib import Path

from features._common.atomic import atomic_write
from features.backbone_names import is_imported
from features.store import Store
from stage1_extract.info import describe_store

STORE_TAGS = ("framebank", "dash-cam", "video", "features", "hdf5")


def write_store_card(store: Store) -> Path:
    """Write the card of an open store: `sample.md` beside `sample.h5`; return its path."""
    path = card_path(store.path)
    with atomic_write(path) as temporary:
        temporary.write_text(store_card(store), encoding="utf-8")
    return path


def card_path(store: Path) -> Path:
    """The path of a store's card."""
    return store.with_suffix(".md")


def has_current_card(store: Path) -> bool:
    """Whether a store has a card that was written since it last changed."""
    card = card_path(store)
    return card.is_file() and card.stat().st_mtime_ns >= store.stat().st_mtime_ns


def store_card(store: Store) -> str:
    """The card of a store; its head is YAML with the keys that hubs of data sets read."""
    name = store.path.stem
    head = {"pretty_name": name, "tags": [*STORE_TAGS, store.recipe.backbone]}
    lines = ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()), "---", ""]
    frames = f"{store.frames:,} frames of {len(store.sequences):,} sequences"
    lines += [f"# {store.path.name}", "", f"A store of framebank: features of {frames}, with their labels.", ""]
    lines += ["## Content and recipe", "", *(f"    {line}".rstrip() for line in describe_store(store).splitlines()), ""]
    lines += ["## Limits", "", *(f"- {line}" for line in _limits(store)), ""]
    lines += ["## How to load it", "", "```python", "import framebank as fb", ""]
    lines += [f"with fb.Store({json.dumps(store.path.name, ensure_ascii=False)}) as store:"]
    lines += [f"    features = store.read({next(iter(store.streams))!r}, range(store.sequences[0].length))"]
    lines += ["    print(store.sequences[0].labels, features.shape)", "```"]
    return "\n".join(lines) + "\n"


def _limits(store: Store) -> list[str]:
    lines = []
    if store.recipe.weights == "random":
        lines.append("**The backbone's weights are random (UNTRAINED): this store is only for tests.**")
    if not store.complete:
        lines.append(f"Incomplete: {len(store.missing):,} sequences are missing, as listed above.")
    if is_imported(store.recipe.backbone):
        lines.append("The features were computed by another tool; framebank cannot compute them for other images.")
    else:
        lines.append("It contains small pictures of every frame: publish it only if you may publish the images.")
    return [*lines, "The features are those of the recipe above only; another recipe needs a store of its own."]
