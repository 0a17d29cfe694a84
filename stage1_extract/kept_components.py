"""Principal components in place of maps: fitted to a sample of the training split before the first group is extracted.

A pass over all training frames would double the network's work, and the first shard's frames would know only the first
clips: the sample is drawn from all of them. The basis belongs to the recipe. The store keeps it, and until there is
one, a file beside the shards does, so that an extraction that goes on, or adds clips, has the same basis.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from joblib import cpu_count
from numpy.typing import NDArray

from features._common.console import logger
from features._common.types import Image
from features.config import Config
from features.errors import BadInputs, StoreError
from features.frame_files import shard_folder
from features.frame_ranges import FrameRange
from features.hdf5 import damage_as_store_error, open_file
from features.principal_components import PCABasis, check_count, fit_pca, load_bases, sample_rows, save_bases
from stage1_extract.datasets.clip import Clip
from stage1_extract.frame_loader import load_frames

if TYPE_CHECKING:
    from stage1_extract.backbone.onnx_trunk import OnnxTrunk
    from stage1_extract.backbone.trunk import Trunk
    from stage1_extract.engines.engine import Engine


def bases_file(config: Config, store: Path, request: str) -> Path | None:
    """The file with an extraction's principal components, with those of the store if it has them; None: it needs none.

    `request` is a digest of all that determines the recipe.
    """
    if not config.components:
        return None
    path = _file(store, request)
    path.parent.mkdir(parents=True, exist_ok=True)
    if stored := _stored_bases(config, store):
        save_bases(path, stored)
    return path


def known_bases(config: Config, store: Path, request: str) -> dict[str, PCABasis]:
    """The bases of a store or of an extraction that was interrupted; none if there are none yet."""
    return _stored_bases(config, store) or load_bases(_file(store, request))


def _file(store: Path, request: str) -> Path:
    return shard_folder(store) / f".bases-{request[:16]}.npz"


def fit_bases(config: Config, clips: Sequence[Clip], engine: Engine, path: Path) -> dict[str, PCABasis]:
    """Fit the components of each stream that the config keeps some of to maps of training frames, and save them."""
    from sklearn.decomposition import IncrementalPCA  # here, because importing it takes a second

    frames = _TrainingFrames(config, clips)
    shapes = {name: info.shape for name, info in engine.trunk.streams.items()}
    bases = {}
    for name, count in config.components.items():
        numbers = int(np.prod(shapes[name]))
        check_count(count, len(frames.rows), numbers, f"extract.keep of {name}", "--extract.keep 'pca {most}'")
        rows = sample_rows(frames.rows, count)
        logger.info(f"{name}: {count} principal components of {len(rows)} training frames")
        bases[name] = fit_pca(IncrementalPCA(count, copy=False), partial(frames.maps, engine, name, count), rows)
    save_bases(path, bases)
    return bases


def sampled_clips(clips: Sequence[Clip]) -> list[Clip]:
    """The clips of the training split, which `fit_bases` needs."""
    return [clip for clip in clips if clip.sequence.split == "train"]


class _TrainingFrames:
    """The frames of the training split, numbered by `rows`."""

    def __init__(self, config: Config, clips: Sequence[Clip]) -> None:
        self._config, self._clips = config, sampled_clips(clips)
        self._first = [0, *accumulate(clip.sequence.length for clip in self._clips)]
        self.rows = np.arange(self._first[-1])

    def maps(self, engine: Engine, stream: str, least: int, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The maps of a stream in those of some frames that can be decoded, (n, …); a DataError if n < `least`."""
        faults: list[str] = []
        images = list(self._images(rows, faults))
        if len(images) < least:
            raise BadInputs("too few training frames can be decoded for principal components", faults)
        return engine(np.stack(images))[stream]

    def _images(self, rows: NDArray[np.int64], faults: list[str]) -> Iterator[Image]:
        """Decode frames by ascending numbers; extraction names those that cannot be decoded."""
        chosen = set(rows.tolist())
        ranges = list(self._ranges(rows))
        clips = {clip.sequence.id: clip for clip in self._clips}
        firsts = {clip.sequence.id: first for clip, first in zip(self._clips, self._first, strict=False)}
        at, index = 0, -1
        for part in load_frames(ranges, clips, self._config.frames, self._config.extract.threads or cpu_count()):
            if part.range_index != index:
                index = part.range_index
                at = firsts[ranges[index].sequence] + ranges[index].start
            if part.fault is not None:
                faults.append(part.fault)
            else:
                yield from (image for row, image in enumerate(part.frames, at) if row in chosen)
            at += len(part.frames)

    def _ranges(self, rows: NDArray[np.int64]) -> Iterator[FrameRange]:
        """What is to be decoded for some rows: runs of frames, or a video from the first to the last of them."""
        clips = np.searchsorted(self._first, rows, "right") - 1
        for i in np.unique(clips):
            sequence, frames = self._clips[i].sequence, rows[clips == i] - self._first[i]
            runs = np.split(frames, np.flatnonzero(np.diff(frames) != 1) + 1)
            for run in runs if self._clips[i].source.parallel else [frames]:
                yield FrameRange(sequence.id, sequence.digest, int(run[0]), int(run[-1]) + 1)


def _stored_bases(config: Config, store: Path) -> dict[str, PCABasis]:
    """The store's bases of all streams that the config keeps components of; none if one is missing or damaged."""
    if not store.exists():
        return {}
    try:
        with open_file(store) as f, damage_as_store_error(store):
            groups = {name: f[f"bases/{name}"] for name in config.components if f"bases/{name}" in f}
            bases = {name: PCABasis(group["mean"][()], group["components"][()]) for name, group in groups.items()}
    except StoreError:
        return {}
    complete = bases.keys() == config.components.keys()
    return bases if complete and all(len(bases[n].components) == k for n, k in config.components.items()) else {}


def placeholder_bases(config: Config, trunk: Trunk | OnnxTrunk) -> dict[str, PCABasis]:
    """Bases of the right size, to measure with before there are others."""
    sizes = {name: int(np.prod(info.shape)) for name, info in trunk.streams.items()}
    return {
        name: PCABasis(np.zeros(sizes[name], np.float32), np.zeros((count, sizes[name]), np.float32))
        for name, count in config.components.items()
    }
