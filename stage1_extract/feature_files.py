"""Files of per-frame features that other tools wrote: .npy, HDF5 and parquet, read by rows and never executed.

Headers are not trusted: types, shapes and sizes are checked before anything is read, and only some rows are in memory
at a time.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features._common.plain_text import one_line
from features.errors import ConfigError, DataError, raise_refusal
from features.hdf5 import open_arrays

NPY, HDF5, PARQUET = (".npy",), (".h5", ".hdf5", ".hdf"), (".parquet", ".pq")
FEATURE_FORMATS = (*NPY, *HDF5, *PARQUET)
MAX_FRAME_BYTES = 1 << 28  # of one frame's features
MAX_ROW_GROUP = 1 << 31  # bytes of a part of a parquet file that is read at once
INDEX_COLUMNS = ("sequence", "frame")  # of a parquet file; all other columns of numbers are features
Rows = Any  # with `shape`, `dtype` and slices of rows: a memory-mapped array, a dataset or `ParquetRows`


@contextmanager
def open_features(path: Path) -> Iterator[Mapping[str, Rows]]:
    """Yield the arrays of a file by name, (frames, …) each; a file with a single one, whatever its name, has it as "".

    Raises:
        DataError: no such file, another format, or not what its format says.
        ConfigError: the package that reads parquet files is not installed.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file", hint="framebank import FILE --table TABLE.csv")
    if path.suffix in NPY:
        yield {"": _checked(_memory_map(path), str(path))}
    elif path.suffix in HDF5:
        with open_arrays(path) as arrays:
            if not arrays:
                raise DataError(f"{path}: no dataset of numbers in this file")
            named = {name: _checked(rows, f"{path}: {name}") for name, rows in arrays.items()}
            yield {"": next(iter(named.values()))} | named if len(named) == 1 else named
    elif path.suffix in PARQUET:
        yield _parquet_rows(path)
    else:
        raise DataError(
            f"{path}: not a file of features", expected=f"one of {', '.join(FEATURE_FORMATS)}", got=path.suffix
        )


def _memory_map(path: Path) -> Rows:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as e:  # NumPy raises what its parser of headers happens to
        raise_refusal(e, path)
        line = one_line(" ".join(str(e).split())[:200])
        hint = "write it with numpy.save, as an array of numbers"
        raise DataError(f"{path}: not an array of numbers ({line})", hint=hint) from None


def _checked(rows: Rows, where: str) -> Rows:
    """Check the type and shape of an array."""
    if rows.dtype.kind not in "fiu" or rows.dtype.itemsize > 8:
        raise DataError(f"{where}: not numbers", expected="float or integer", got=rows.dtype)
    if not 2 <= len(rows.shape) <= 4 or 0 in rows.shape:
        expected = "(frames, features), (frames, tokens, features) or (frames, rows, columns, channels)"
        raise DataError(f"{where}: not features of frames", expected=expected, got=tuple(rows.shape))
    if (size := math.prod(rows.shape[1:]) * 8) > MAX_FRAME_BYTES:
        expected = f"at most {MAX_FRAME_BYTES // 8:,} numbers"
        raise DataError(f"{where}: the features of a frame are too large", expected=expected, got=f"{size // 8:,}")
    return rows


class ParquetRows:
    """Some rows of a parquet file as an array (frames, features), read one row group at a time."""

    dtype = np.dtype(np.float32)

    def __init__(self, file: Any, columns: list[str], first: int, count: int, width: int, path: Path) -> None:
        self._file, self._columns, self._first, self._path = file, columns, first, path
        self.shape = (count, width)
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        self._starts = list(accumulate(sizes, initial=0))
        self._group, self._values = -1, np.empty((0, width), np.float32)

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        start, stop, _ = rows.indices(self.shape[0])
        parts, row, end = [], self._first + start, self._first + stop
        while row < end:
            group = bisect_right(self._starts, row) - 1
            if group != self._group:
                self._values, self._group = self._read(group), group
            offset = row - self._starts[group]
            part = self._values[offset : offset + end - row]
            if not len(part):
                raise DataError(f"{self._path}: fewer rows than it declares")
            parts.append(part)
            row += len(part)
        return np.concatenate(parts) if parts else self._values[:0]

    def _read(self, group: int) -> NDArray[np.float32]:
        with _parquet_errors(self._path):
            table = self._file.read_row_group(group, columns=self._columns)
            values = [_column_values(table.column(name), self._path) for name in self._columns]
            array = np.concatenate(values, axis=1)
        if array.shape[1] != self.shape[1]:
            got = f"{array.shape[1]} and {self.shape[1]}"
            raise DataError(f"{self._path}: lists of features differ in length", expected="the same length", got=got)
        return array


def _column_values(column: Any, path: Path) -> NDArray[np.float32]:
    """A column of numbers, or of lists of equally many numbers, as (rows, width)."""
    flat, rows = column.combine_chunks(), len(column)
    if column.null_count:
        raise DataError(f"{path}: empty cells in the features", expected="a number in each")
    if hasattr(flat, "flatten") and flat.type.num_fields == 1:
        lengths = np.asarray(flat.value_lengths().to_numpy(zero_copy_only=False))
        if len({*lengths.tolist()}) > 1:
            raise DataError(f"{path}: lists of features differ in length", expected="the same length")
        flat = flat.flatten()
    values = np.asarray(flat.to_numpy(zero_copy_only=False), np.float32)
    return values.reshape(rows, -1)


def _parquet_rows(path: Path) -> Mapping[str, Rows]:
    """The rows of each sequence by its name, which must be consecutive; without a column `sequence`, all as ""."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError("the package pyarrow is not installed", hint='pip install "framebank[tables]"') from None
    with _parquet_errors(path):
        file = pyarrow.parquet.ParquetFile(path)
        for i in range(file.num_row_groups):
            if (size := file.metadata.row_group(i).total_byte_size) > MAX_ROW_GROUP:
                expected = f"row groups of at most {MAX_ROW_GROUP / 1e9:.1f} GB"
                raise DataError(f"{path}: too much to read at once", expected=expected, got=f"{size / 1e9:.1f} GB")
        columns = [f.name for f in file.schema_arrow if f.name not in INDEX_COLUMNS and _is_numeric(pyarrow, f.type)]
        if not columns or not file.metadata.num_rows:
            raise DataError(f"{path}: no features", expected="columns of numbers or of lists of numbers, and rows")
        width = sum(_width(file, name, path) for name in columns)
        names = [""] * file.metadata.num_rows
        if "sequence" in file.schema_arrow.names:
            names = [str(name) for name in file.read(columns=["sequence"]).column("sequence").to_pylist()]
    arrays: dict[str, Rows] = {}
    first = 0
    for i in range(1, len(names) + 1):
        if i == len(names) or names[i] != names[first]:
            if names[first] in arrays:
                hint = "sort it by the columns sequence and frame"
                raise DataError(f"{path}: the rows of {names[first]} are not consecutive", hint=hint)
            rows = ParquetRows(file, columns, first, i - first, width, path)
            arrays[names[first]] = _checked(rows, str(path))
            first = i
    return arrays


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises for a damaged file into a DataError."""
    try:
        yield
    except DataError:
        raise
    except Exception as e:
        raise_refusal(e, path)
        line = one_line(" ".join(str(e).split())[:200])
        raise DataError(f"{path}: not a parquet file, or damaged ({line})") from None


def _is_numeric(pyarrow: Any, kind: Any) -> bool:
    if pyarrow.types.is_list(kind) or pyarrow.types.is_fixed_size_list(kind) or pyarrow.types.is_large_list(kind):
        kind = kind.value_type
    return bool(pyarrow.types.is_floating(kind) or pyarrow.types.is_integer(kind))


def _width(file: Any, name: str, path: Path) -> int:
    first = next(file.iter_batches(batch_size=1, columns=[name])).column(0)
    value = first[0].as_py()
    if value is None or (isinstance(value, list) and not value):
        raise DataError(f"{path}: empty cells in {name}", expected="numbers")
    return len(value) if isinstance(value, list) else 1
