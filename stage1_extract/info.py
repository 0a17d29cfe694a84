"""A summary of a store, as text."""

from __future__ import annotations

from collections import Counter

import numpy as np

from features.backbone_names import is_imported
from features.sequences import SPLITS
from features.store import Store
from features.store_tables import StreamInfo
from features.tracks import track_keys
from features.windows import target_value
from stage1_extract.tracking.sequence_tracks import empty_track_notes, found_in_frame, missing_frame_notes


def describe_store(store: Store) -> str:
    """Describe a store in several lines: how it was made, what it holds, what is missing."""
    r = store.recipe
    form = "" if store.is_packed else f" in {len(store.files.paths):,} shards and an index"
    lines = [
        f"{store.path}  {store.size / 1e6:,.1f} MB{form}  {'complete' if store.complete else 'INCOMPLETE'}",
        f"fingerprint  {store.fingerprint[:16]}",
        f"backbone     {r.backbone}, weights {r.weights} ({r.weights_digest[:12]})"
        + (", UNTRAINED" if r.weights == "random" else ""),
        *([] if is_imported(r.backbone) else _computing(store)),
        f"written by   {', '.join(f'{name} {v}' for name, v in sorted(store.versions.items()))}",
        "",
    ]
    for name, info in [*store.streams.items(), *store.partial_streams.items()]:
        shape = "x".join(map(str, info.shape))
        kind = _kind(info)
        lacking = ", lacks new frames, which the next training adds" if name in store.partial_streams else ""
        lines.append(
            f"stream       {name}: {shape} {info.dtype}, {info.frame_bytes / 1e3:,.1f} kB per frame{kind}{lacking}"
        )
    lines += _tracks(store)
    top = store.top()
    if top is None:
        lines.append("top          none: the map at the cut is the feature")
    else:
        lines.append(f"top          {sum(w.size for w in top.weights):,} pretrained weights, trainable in stage two")
    lines += ["", f"{'split':<12}{'sequences':>10}{'frames':>10}{'labels':>10}"]
    for split in SPLITS:
        sequences = [s for s in store.sequences if s.split == split]
        if sequences:
            frames, labels = sum(s.length for s in sequences), sum(len(s.labels) for s in sequences)
            lines.append(f"{split:<12}{len(sequences):>10,}{frames:>10,}{labels:>10,}")
    lines += ["", *_targets(store)]
    rates = Counter(f"{s.fps:.4g} fps{' on average, uneven' if s.times else ''}" for s in store.sequences)
    lines.append("frame rate   " + ", ".join(f"{rate} ({n} sequences)" for rate, n in rates.most_common(4)))
    lines += [f"missing      {why}" for why in store.missing.values()]
    return "\n".join(lines)


def _computing(store: Store) -> list[str]:
    """How the maps were computed from the frames."""
    r, errors = store.recipe, sorted(store.header.trunk.get("relative_error", {}).items())
    engines = "".join(f", {name} (relative error {error:.1e})" for name, error in errors)
    network = f", quantised network {r.quantised[:12]}" if r.quantised else ""
    return [
        f"cut          {store.header.trunk.get('cut', '?')}, {r.top_layers} layers above",
        f"frames       {r.size[0]}x{r.size[1]} {r.colour}, {r.interpolation}, {r.decode}, preprocessing {r.preprocess}",
        f"computed in  {r.precision}{network}{engines}",
    ]


def _kind(info: StreamInfo) -> str:
    origin = info.origin
    if info.is_derived:
        return f", derived from {origin['source'][1]}"
    if "tap" in origin:
        return f", a tap averaged over {origin['pooling']}x{origin['pooling']}" if origin["pooling"] > 1 else ", a tap"
    kinds = {"flow": ", optical flow", "road": ", the road's speed curve"}
    return kinds.get(origin.get("kind", ""), "")


def _tracks(store: Store) -> list[str]:
    tracks = store.tracks()
    keys = {key for s in store.sequences for key in track_keys(s)}
    notes = missing_frame_notes(store.sequences)
    if not keys and not tracks:
        return ["tracks       none: no label has a box on one of the stored frames", *notes]
    shares = [found_in_frame(t).mean() for t in tracks.values()]
    mean = f", found in {np.mean(shares):.1%} of their frames on average" if shares else ""
    notes = [*empty_track_notes(store.sequences, tracks), *notes]
    return [
        f"tracks       {len(tracks):,} of {len(keys):,} vehicles tracked{mean}",
        *(f"             {note}" for note in notes),
    ]


def _targets(store: Store) -> list[str]:
    labels = [label for s in store.sequences for label in s.labels]
    columns = sorted({c for label in labels for c in label.targets})
    if any(label.position for label in labels):
        columns += ["x", "y"]
    lines = []
    for column in columns:
        values = np.array([target_value(label, column) for label in labels])
        values = values[np.isfinite(values)]
        statistics = "all values unknown"
        if len(values):
            statistics = f"{len(values):,} values, mean {values.mean():.3f}, standard deviation {values.std():.3f}"
        lines.append(f"target       {column}: {statistics}")
    return lines
