"""Read the frames of a store's windows from the data set that the store was made from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from features._common.types import Image
from features.config import Config
from features.errors import BadInputs
from features.store import Store
from features.windows import Examples
from stage1_extract.datasets import scan
from stage1_extract.frame_loader import resize_frame

ReadWindow = Callable[[int], Image]  # an example's index → its frames (T, height, width, 3) uint8


def window_reader(store: Store, examples: Examples, indices: NDArray[np.int64], config: Config) -> ReadWindow:
    """Return a function that decodes and resizes the frames of an example's window, and no others.

    The sequences of the examples that will be read, `indices`, are checked now.

    Raises:
        BadInputs: names all sequences that are missing from the data set or differ from those in the store.
    """
    clips = {clip.sequence.id: clip for clip in scan(config.data).clips}
    faults = []
    for s in np.unique(examples.sequence[indices]):
        sequence = store.sequences[s]
        clip = clips.get(sequence.id)
        if clip is None or clip.sequence.digest != sequence.digest:
            problem = "missing or damaged" if clip is None else "not the one in the store"
            faults.append(f"{config.data.path}: sequence {sequence.id} is {problem}.")
    if faults:
        hint = "framebank extract, or --data.path FOLDER with the images the store was made from"
        raise BadInputs(f"{len(faults)} sequences cannot be read", faults, hint=hint)

    def read(index: int) -> Image:
        s = examples.sequence[index]
        source, frames = clips[store.sequences[s].id].source, examples.rows[index] - store.first[s]
        runs = np.split(frames, np.flatnonzero(np.diff(frames) != 1) + 1)
        images = [i for run in runs for i in source.read(int(run[0]), int(run[-1]) + 1, config.frames.min_size)]
        return np.stack([resize_frame(image, config.frames) for image in images])

    return read
