"""`framebank import`: per-frame features of another tool, and a table of sequences and labels, as a store.

The table is a CSV file with the columns `sequence` and `split`, and optionally `frame` (the label's, from 0; default:
the last one), `fps`, `first` and `length` (which rows of the features are the sequence's), `x`, `y`; other columns are
targets. A sequence has a row for each of its labels.
"""

from __future__ import annotations

import hashlib
import io
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from features._common.atomic import exclusive_write_lock
from features._common.console import progress_bar
from features._common.csv_table import CsvRow, read_csv_table
from features._common.leftovers import abandoned_files
from features.backbone_names import IMPORTED
from features.errors import BadInputs, ConfigError, DataError, StoreError
from features.frame_files import shard_folder
from features.frame_ranges import full_range, sequence_ranges, split_into_groups
from features.recipe import Recipe, json_digest
from features.sequences import SPLITS, FrameSequence
from features.shard_folder import delete_unused_shards
from features.shards import new_shard, shard_ranges
from features.store import Store
from features.store_tables import Header, StreamInfo
from features.store_writer import StoreContent, StreamContent, save_store
from features.streams import APPEARANCE
from features.strict_model import LONGEST_SHOWN, did_you_mean
from stage1_extract.datasets.clip import add_fault
from stage1_extract.datasets.label_csv import read_label, read_number, target_columns
from stage1_extract.feature_files import FEATURE_FORMATS, Rows, open_features

BYTES_PER_SHARD = 1 << 28
ROWS_PER_READ = 256
UNKNOWN_SIZE = (16, 9)  # of frames that nobody has: their shape in the report
RESERVED = ("sequence", "split", "frame", "fps", "first", "length")


@dataclass(frozen=True)
class ImportOptions:
    """How features are imported."""

    name: str  # of what computed them
    fps: float = 20.0  # where the table has no column fps
    dtype: str = "float16"
    packed_gb: float = 2.0  # see `extract.packed_gb`


@dataclass(frozen=True)
class _Source:
    """Where a sequence's features are: rows of an array of a file."""

    path: Path
    array: str
    first: int
    length: int


def import_features(features: Path, table: Path, store: Path, options: ImportOptions) -> str:
    """Write a store of imported features, which replaces one of the same features; return a line that sums it up.

    Args:
        features: a file with the arrays of all sequences, or a folder with a file for each, named after it.
        table: the CSV file of sequences and labels.

    Raises:
        BadInputs, DataError: a file or the table is not what it should be; all faults that show without reading rows
            are collected first.
        StoreError: there is a store of other features at `store`.
    """
    if not options.name or not options.name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise ConfigError("--name must be a word", expected="letters, digits, - _ .", got=options.name)
    with ExitStack() as stack:
        files = _FeatureFiles(features, stack)
        sequences, sources, shape = _read_table(table, files, options)
        digests = {path.name: digest for path, digest in files.digests.items()}
        digest = next(iter(digests.values())) if len(digests) == 1 else json_digest(sorted(digests.items()))
        recipe = Recipe(
            *("none", (1, 1), "none", "none", "none", IMPORTED + options.name),
            weights=features.name,
            weights_digest=digest,
            dtype=options.dtype,
        )
        info = StreamInfo(shape, options.dtype)
        with exclusive_write_lock(store):
            _check_target(store, recipe, info, sequences)
            header = Header(
                recipe,
                trunk={"parameters": 0, "cut": "none, the features were imported", "asked": {}, "files": digests},
                versions={name: version(name) for name in ("h5py", "numpy")},
            )
            _write(store, header, info, sequences, sources, files, options)
    frames = sum(s.length for s in sequences)
    text = "x".join(map(str, shape))
    return f"{store}: {frames:,} frames of {len(sequences):,} sequences, {text} {options.dtype} each"


class _FeatureFiles:
    """The arrays of a file, or of a folder of files, opened when needed."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path, self._stack = path, stack
        self.digests: dict[Path, str] = {}
        self._arrays: dict[Path, Mapping[str, Rows]] = {}
        self.by_sequence: dict[str, Path] = {}
        if path.is_dir():
            listed = sorted(p for p in path.rglob("*") if p.suffix in FEATURE_FORMATS and p.is_file())
            self.by_sequence = {p.relative_to(path).with_suffix("").as_posix(): p for p in listed}
            if not listed:
                raise DataError(
                    f"{path}: no file of features in this folder", expected=f"e.g. NAME{FEATURE_FORMATS[0]}"
                )

    def locate(self, sequence: str) -> tuple[Path, str, Rows]:
        """The file, the array's name and the array of a sequence; a DataError if there is none."""
        path = self.by_sequence.get(sequence) if self.by_sequence else self.path
        if path is None:
            nearest = did_you_mean(sequence, self.by_sequence)
            raise DataError(f"{self.path}: no file for the sequence {sequence[:LONGEST_SHOWN]}{nearest}")
        arrays = self.arrays(path)
        name = next((n for n in (sequence, "", "features") if n in arrays), None)
        if name is None:
            known, shown = f"one of {', '.join(n[:LONGEST_SHOWN] for n in list(arrays)[:8])}", sequence[:LONGEST_SHOWN]
            raise DataError(f"{path}: no array for the sequence {shown}", expected=known, got=shown)
        return path, name, arrays[name]

    def arrays(self, path: Path) -> Mapping[str, Rows]:
        """The arrays of a file."""
        if path not in self._arrays:
            if len(self._arrays) > 64 and self.by_sequence:  # not more open files than a process may have
                self._stack.close()
                self._arrays.clear()
            self._arrays[path] = self._stack.enter_context(open_features(path))
            if path not in self.digests:
                with path.open("rb") as file:
                    self.digests[path] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._arrays[path]


def _read_table(
    table: Path, files: _FeatureFiles, options: ImportOptions
) -> tuple[list[FrameSequence], list[_Source], tuple[int, ...]]:
    """The sequences with their labels, where the features of each are, and the shape of one frame's."""
    faults: list[str] = []
    csv = read_csv_table(table, required=("sequence", "split"), faults=faults)
    rows: dict[str, list[CsvRow]] = {}
    for row in csv.rows:
        rows.setdefault(row.cells["sequence"], []).append(row)
    targets = target_columns(csv.columns, *RESERVED)
    sequences, sources, shapes = [], [], dict[tuple[int, ...], str]()
    for name, of_sequence in rows.items():
        first = of_sequence[0]
        if not name:
            add_fault(faults, f"{first.where}: no sequence", "a name", "an empty cell")
            continue
        for row in of_sequence:
            if row.cells["split"] not in SPLITS or row.cells["split"] != first.cells["split"]:
                add_fault(faults, f"{row.where}: wrong split", f"one, of {', '.join(SPLITS)}", row.cells["split"])
        try:
            path, array, values = files.locate(name)
        except DataError as e:
            faults.append(str(e))
            continue
        start, length = _row_range(
            first, values.shape[0], len(rows) > 1 and array == "", bool(files.by_sequence), faults
        )
        fps = read_number(first, "fps", faults)
        fps = options.fps if math.isnan(fps) else fps
        if fps <= 0:
            add_fault(faults, f"{first.where}: wrong fps", "more than 0", fps)
        labels = [read_label(row, _label_frame(row, length, faults), targets, faults) for row in of_sequence]
        shape = tuple(int(n) for n in values.shape[1:])
        shapes.setdefault((shape[0], 1, shape[1]) if len(shape) == 2 else shape, name)
        digest = json_digest([files.digests[path], array, start, length])
        sources.append(_Source(path, array, start, length))
        sequences.append(
            FrameSequence(
                name, first.cells["split"], length, fps, UNKNOWN_SIZE, digest, tuple(x for x in labels if x is not None)
            )
        )
    if len(shapes) > 1:
        got = "; ".join(f"{'x'.join(map(str, shape))} in {name}" for shape, name in list(shapes.items())[:4])
        faults.append(f"{files.path}: features of several shapes; got {got}.")
    if not rows and not faults:
        faults.append(f"{table}: no rows.")
    if faults:
        raise BadInputs(
            f"{len(faults)} errors; nothing was imported", faults, hint=f"edit {table} or write the features again"
        )
    return sequences, sources, next(iter(shapes))


def _row_range(row: CsvRow, count: int, shared: bool, own_file: bool, faults: list[str]) -> tuple[int, int]:
    """The first row and the number of rows of a sequence in an array of `count` rows."""
    start, length = read_number(row, "first", faults), read_number(row, "length", faults)
    if shared and not own_file and (math.isnan(start) or math.isnan(length)):
        expected = "the columns first and length, since all sequences share one array"
        add_fault(faults, f"{row.where}: which rows?", expected, "none")
        return 0, 1
    start = 0 if math.isnan(start) else start
    length = count - start if math.isnan(length) else length
    if start < 0 or length < 1 or start + length > count or start % 1 or length % 1:
        got = f"first {start:g}, length {length:g}"
        add_fault(faults, f"{row.where}: rows that are not there", f"rows 0 to {count - 1}", got)
        return 0, 1
    return int(start), int(length)


def _label_frame(row: CsvRow, length: int, faults: list[str]) -> int:
    frame = read_number(row, "frame", faults)
    if math.isnan(frame):
        return length - 1
    if frame % 1 or frame < 0:
        add_fault(faults, f"{row.where}: not a frame's number", "0 or more", row.cells["frame"])
        return 0
    return int(frame)


def _check_target(store: Path, recipe: Recipe, info: StreamInfo, sequences: Sequence[FrameSequence]) -> None:
    if store.exists():
        with Store(store) as existing:
            if existing.recipe.backbone != recipe.backbone:
                raise StoreError(
                    f"{store}: a store of other features",
                    expected=recipe.backbone,
                    got=existing.recipe.backbone,
                    hint=f"--store OTHER.h5, or move {store} away",
                )
    store.parent.mkdir(parents=True, exist_ok=True)
    required = 2 * sum(s.length for s in sequences) * info.frame_bytes
    if required > (free := shutil.disk_usage(store.parent).free):
        expected = f"{required / 1e9:.3g} GB free, for shards and store"
        raise DataError(f"{store}: not enough disk space", expected=expected, got=f"{free / 1e9:.3g} GB")


def _write(
    store: Path,
    header: Header,
    info: StreamInfo,
    sequences: Sequence[FrameSequence],
    sources: Sequence[_Source],
    files: _FeatureFiles,
    options: ImportOptions,
) -> None:
    folder, picture = shard_folder(store), _blank_picture()
    for left in abandoned_files([*store.parent.glob(f".{store.name}.*.tmp"), *folder.glob(".*.tmp")]):
        left.unlink(missing_ok=True)  # of an import that was killed
    folder.mkdir(parents=True, exist_ok=True)
    source_of = {s.id: source for s, source in zip(sequences, sources, strict=True)}
    stored = []
    with progress_bar(sum(s.length for s in sequences), "import", "frames") as progress:
        for group in split_into_groups(map(full_range, sequences), max(1, BYTES_PER_SHARD // info.frame_bytes)):
            with new_shard(folder, header.recipe, group, {APPEARANCE: info}) as (writer, path):
                for part in group:
                    for values in _batches(source_of[part.sequence], part.start, part.stop, files, info):
                        writer.write({APPEARANCE: values}, [picture] * len(values))
                        progress.update(len(values))
                writer.finish()
            stored += shard_ranges(path, header.recipe.fingerprint)
    stream = StreamContent(info, sequence_ranges(sequences, stored))
    packed = sum(s.length for s in sequences) * info.frame_bytes <= options.packed_gb * 1e9
    save_store(store, StoreContent(header, sequences, {APPEARANCE: stream}), packed)
    delete_unused_shards(store)


def _batches(source: _Source, start: int, stop: int, files: _FeatureFiles, info: StreamInfo) -> Iterator[NDArray[Any]]:
    """Read rows of a sequence in the stored type and shape; a DataError if one is no finite number in that type."""
    rows = files.arrays(source.path)[source.array]
    for row in range(source.first + start, source.first + stop, ROWS_PER_READ):
        end = min(row + ROWS_PER_READ, source.first + stop)
        try:
            values = np.asarray(rows[row:end])
        except (OSError, RuntimeError, ValueError) as e:
            raise DataError(f"{source.path}: rows {row} to {end - 1} cannot be read ({e})") from None
        with np.errstate(over="ignore"):
            cast = values.astype(info.dtype).reshape(len(values), *info.shape)
        if not np.isfinite(cast).all():
            overflow = bool(np.isfinite(values).all())
            what = "exceeds the range of half precision (65504)" if overflow else "is NaN or infinite"
            hint = "--dtype float32" if overflow else "write the features again"
            raise DataError(f"{source.path}: a number in rows {row} to {end - 1} {what}", hint=hint)
        yield cast


def _blank_picture() -> bytes:
    """The picture of each frame in the report, since the images are not known."""
    buffer = io.BytesIO()
    PillowImage.new("RGB", (160, 90), (128, 128, 128)).save(buffer, "JPEG", quality=50)
    return buffer.getvalue()
