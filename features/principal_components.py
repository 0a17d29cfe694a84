"""Principal components of maps: a basis fitted to training frames, on which all frames are projected."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from features._common.atomic import atomic_write
from features._common.bounded_file import open_regular
from features._common.plain_text import one_line
from features._common.zip_limits import ZIP_ERRORS, check_archive
from features.errors import ConfigError, DataError, raise_refusal

FIT_BATCH = 256  # maps per step; a fit takes as many as it has components, if these are more
MAX_FIT_FRAMES = 4096  # a fit uses a random sample of this many, drawn with PCA_SEED
PCA_SEED = 0
RUN_FILE = "bases.npz"  # in the folder of a run whose head reads components in place of maps
MIN_RELATIVE_DEVIATION = 1e-6  # components that vary less, relative to a map's length, are rounding errors


@dataclass(frozen=True)
class PCABasis:
    """The basis that maps are projected on; a store keeps its fields."""

    mean: NDArray[np.float32]  # (F,) the mean map, flattened
    components: NDArray[np.float32]  # (N, F) unit vectors

    @property
    def weights(self) -> list[NDArray[np.float32]]:
        """The projection as a Dense layer's kernel (F, N) and bias (N,)."""
        bias = -(self.components.astype(np.float64) @ self.mean.astype(np.float64))
        return [np.ascontiguousarray(self.components.T), bias.astype(np.float32)]

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over its numbers."""
        digest = hashlib.sha256(repr(self.components.shape).encode())
        for values in (self.mean, self.components):
            digest.update(np.ascontiguousarray(values, np.float32).tobytes())
        return digest.hexdigest()


class IncrementalFit(Protocol):
    """What is used of scikit-learn's `IncrementalPCA`."""

    n_components: int
    mean_: NDArray[Any]
    var_: NDArray[Any]
    components_: NDArray[Any]
    explained_variance_: NDArray[Any]

    def partial_fit(self, X: NDArray[Any]) -> Any: ...


def sample_rows(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The rows that a fit of `count` components takes: all or, of more than `MAX_FIT_FRAMES`, a random sample."""
    if len(rows) <= MAX_FIT_FRAMES:
        return rows
    return np.sort(np.random.default_rng(PCA_SEED).choice(rows, max(MAX_FIT_FRAMES, count + 1), replace=False))


def fit_pca(
    pca: IncrementalFit, read: Callable[[NDArray[np.int64]], NDArray[Any]], rows: NDArray[np.int64]
) -> PCABasis:
    """Fit principal components of the maps (n, …) that `read` returns of `rows`, see `sample_rows`.

    Within one batch it is exact. `pca` is scikit-learn's `IncrementalPCA`, which this package does not depend on.
    """
    count = pca.n_components
    rows = sample_rows(rows, count)
    edges = [*range(0, len(rows), max(FIT_BATCH, count)), len(rows)]
    if len(edges) > 2 and edges[-1] - edges[-2] < count:  # too few for a step of their own
        del edges[-2]
    for start, stop in pairwise(edges):
        maps = read(rows[start:stop])
        pca.partial_fit(maps.reshape(len(maps), -1).astype(np.float64))
    length = math.sqrt(float(np.square(pca.mean_).sum() + pca.var_.sum()))
    # directions without variance are arbitrary; zeros are the same however they are computed
    varies = np.sqrt(pca.explained_variance_) > MIN_RELATIVE_DEVIATION * length
    components = pca.components_ * varies[:, None]
    return PCABasis(pca.mean_.astype(np.float32), components.astype(np.float32))


def check_count(count: int, frames: int, numbers: int, what: str, hint: str = "") -> None:
    """Raise a ConfigError, about `what`, if `frames` maps of so many `numbers` have fewer than `count` components."""
    most = max(0, min(frames - 1, numbers))
    if count > most:
        options = f"--head.components {most}, or --stream pca{most}" if most else "--head.components 0"
        raise ConfigError(
            f"{what}: more principal components than the training frames have",
            expected=f"at most {most} ({frames} frames of {numbers} numbers)",
            got=count,
            hint=hint.format(most=most) or options,
        )


def save_bases(path: Path, bases: Mapping[str, PCABasis]) -> None:
    """Write bases by the names of their streams into an .npz file, which appears once it is complete."""
    arrays = {f"{name}/{key}": values for name, basis in bases.items() for key, values in vars(basis).items()}
    with atomic_write(path) as temporary, temporary.open("wb") as f:
        np.savez(f, **arrays)


def load_bases(path: Path) -> dict[str, PCABasis]:
    """Read what `save_bases` wrote; none if there is no such file. A DataError if it is damaged."""
    if not path.exists():
        return {}
    try:
        check_archive(path)
        with open_regular(path) as f, np.load(f, allow_pickle=False) as arrays:
            names = dict.fromkeys(key.rpartition("/")[0] for key in arrays)
            bases = {name: PCABasis(arrays[f"{name}/mean"], arrays[f"{name}/components"]) for name in names}
        for basis in bases.values():
            _check_basis(basis)
        return bases
    except (*ZIP_ERRORS, DataError, LookupError, TypeError, SyntaxError) as e:
        raise_refusal(e, path)
        got = one_line(str(e))[:200]
        raise DataError(f"{path}: damaged", expected="principal components", got=got, hint=f"delete {path}") from None


def _check_basis(basis: PCABasis) -> None:
    """Raise a ValueError unless the arrays are a basis."""
    for values, axes in ((basis.mean, 1), (basis.components, 2)):
        if not isinstance(values, np.ndarray):  # NumPy reads an entry that is no array as bytes
            raise ValueError("an entry that is no array")
        if values.dtype != np.float32 or values.ndim != axes or not np.isfinite(values).all():
            raise ValueError(f"numbers of type {values.dtype} and shape {values.shape}, or infinite ones")
    if basis.components.shape[1:] != basis.mean.shape:
        raise ValueError(f"components of shape {basis.components.shape} and a mean of shape {basis.mean.shape}")
