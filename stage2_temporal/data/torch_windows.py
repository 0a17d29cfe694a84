"""A map-style data set of PyTorch over a store's examples. The one module that imports PyTorch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from features._common.types import Floats
from stage2_temporal.data.examples import StoreExamples, read_windows


class TorchWindows(Dataset):  # type: ignore[misc]
    """Examples as dictionaries of tensors; see `torch_dataset`, which makes it.

    Args:
        X: n examples.
        y: (n, K) their targets.
        names: the streams to read.
    """

    def __init__(self, X: StoreExamples, y: Floats, names: Sequence[str]) -> None:
        self._X, self._names, self._process = X, tuple(names), os.getpid()
        self._targets, self._groups = torch.from_numpy(y.astype(np.float32)), torch.from_numpy(X.groups.copy())
        if len(X):
            read_windows(X[:1], names)  # into memory, if they fit, before worker processes are forked

    def __len__(self) -> int:
        return len(self._X)

    def __getitem__(self, index: Any) -> dict[str, Any]:
        """An example by its index, or a batch by a list, an array or a slice of indices."""
        if isinstance(index, int | np.integer):
            if not -len(self) <= index < len(self):
                raise IndexError(f"{index} of {len(self)} examples")
            batch = self[[index % len(self)]]
            return {name: _first(values) for name, values in batch.items()}
        X = self._examples[index]
        windows = read_windows(X, self._names)
        if isinstance(windows, dict):
            tensors: Any = {name: torch.from_numpy(values) for name, values in windows.items()}
        else:
            tensors = torch.from_numpy(windows)
        return {"windows": tensors, "targets": self._targets[index], "groups": self._groups[index]}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Several examples, read at once; a `DataLoader` calls this."""
        batch = self[list(indices)]
        parts = {name: values if isinstance(values, dict) else values.unbind() for name, values in batch.items()}
        if isinstance(parts["windows"], dict):
            streams = {name: values.unbind() for name, values in parts["windows"].items()}
            parts["windows"] = [{name: values[i] for name, values in streams.items()} for i in range(len(indices))]
        return [{name: values[i] for name, values in parts.items()} for i in range(len(indices))]

    @property
    def _examples(self) -> StoreExamples:
        """The examples; a forked process opens the store again, since it must not share an open HDF5 file."""
        if self._process != os.getpid():
            self._X, self._process = StoreExamples(self._X.source.reopened(), self._X.examples), os.getpid()
        return self._X


def _first(values: Any) -> Any:
    return {name: v[0] for name, v in values.items()} if isinstance(values, dict) else values[0]
