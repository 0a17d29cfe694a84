"""Tensors out of a PyTorch state dict (.pth, the legacy format), without torch and without running anything it says.

A legacy file is five pickles in a row (magic number, protocol, system information, state dict, storage keys), then the
storages: for each key the number of elements (little-endian int64) and the elements. The state dict's pickle only
*describes* its tensors; the unpickler below admits those descriptions and nothing else.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeGuard

import numpy as np
from numpy.typing import NDArray

from features.errors import DataError

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
MAX_DIMENSIONS = 32
DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


def read_tensors(path: Path | str) -> dict[str, NDArray[Any]]:
    """The tensors of a legacy-format PyTorch state dict, by name, in the file's order.

    The arrays are read-only views of the file's bytes, of the tensors' own shapes and types.

    Raises:
        DataError: no such file; another format; a truncated file; a pickle that asks for anything but tensors (the
            message names what it asked for; nothing of it was run); a tensor that reaches outside its storage.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as e:
        raise DataError(f"{path}: cannot be read: {e.strerror}") from None
    if data.startswith(b"PK"):
        raise DataError(
            f"{path}: wrong format",
            expected="PyTorch's legacy format",
            got="its zip format",
            hint="torch.save(state_dict, path, _use_new_zipfile_serialization=False)",
        )
    try:
        return _read(path, data)
    except DataError:
        raise
    except Exception as e:  # hostile bytes make the unpickler raise nearly anything
        raise DataError(
            f"{path}: not a sound PyTorch file: {type(e).__name__}: {e}", hint="fetch the file again from its source"
        ) from None


def _read(path: Path, data: bytes) -> dict[str, NDArray[Any]]:
    stream = io.BytesIO(data)
    storages: dict[str, Storage] = {}

    def load() -> Any:
        return StateDictUnpickler(stream, path, storages).load()

    _expect(path, "magic number", MAGIC, load())
    _expect(path, "protocol", PROTOCOL, load())
    system = load()
    _expect(path, "little_endian", True, system.get("little_endian") if isinstance(system, dict) else system)
    tensors = _tensors(path, load())
    offsets = _storage_offsets(path, data, load(), stream.tell(), storages)
    return {name: _view(data, offsets[tensor.storage.key], tensor) for name, tensor in tensors.items()}


# What the unpickler hands out. A pickle can change the attributes of any object it got hold of (opcode BUILD), so all
# of these are immutable: tuples, or without settable attributes.


class StorageType(NamedTuple):
    """The class of a storage, by name."""

    name: str


class Storage(NamedTuple):
    """Where a tensor's elements lie: key in the file, type, number of elements."""

    key: str
    dtype: str
    elements: int


class Tensor(NamedTuple):
    """A tensor's description; offset and strides in elements. It lies inside its storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class StateDict(dict[Any, Any]):
    """Stands for `OrderedDict`: dicts keep their order, and what torch hangs on it (`_metadata`) is dropped."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Ignore the attributes."""


class RebuildTensor:
    """Stands for `torch._utils._rebuild_tensor_v2`: checks a tensor's description."""

    __slots__ = ()

    def __call__(self, storage: object, offset: object, shape: object, strides: object, *ignored: object) -> Tensor:
        """The description, once it is known to lie inside its storage."""
        if not isinstance(storage, Storage):
            raise ValueError(f"a tensor's storage is {type(storage).__name__}")
        if not (_is_size(offset) and _is_sizes(shape) and _is_sizes(strides) and len(shape) == len(strides)):
            raise ValueError(f"a tensor's layout is offset {offset!r}, shape {shape!r}, strides {strides!r}")
        elements = math.prod(shape)
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if elements else offset - 1
        # no tensor of a state dict has more elements than its storage: one that repeats them (stride 0) is a trap,
        # small here and larger than the memory once copied
        if last >= storage.elements or elements > storage.elements:
            raise ValueError(
                f"a tensor reaches outside its storage of {storage.elements} elements: "
                f"offset {offset}, shape {shape}, strides {strides}"
            )
        # the stride of an axis that is never stepped along is any number whatever
        return Tensor(
            storage, offset, shape, tuple(s if n > 1 and elements else 0 for n, s in zip(shape, strides, strict=True))
        )


class StateDictUnpickler(pickle.Unpickler):
    """Admits what a state dict of tensors is made of; anything else is refused by name before it is imported."""

    def __init__(self, stream: io.BytesIO, path: Path, storages: dict[str, Storage]) -> None:
        super().__init__(stream)
        self.path = path
        self.storages = storages

    def find_class(self, module: str, name: str) -> Any:
        """What stands for the three kinds of global that are admitted."""
        if (module, name) == ("collections", "OrderedDict"):
            return StateDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return RebuildTensor()
        if module == "torch" and name in DTYPES:
            return StorageType(name)
        return self._refuse(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Storage:
        """The storage that a persistent id `("storage", type, key, device, count, None)` names."""
        match pid:
            case ("storage", StorageType(name), str(key), str(), int(elements), None) if _is_size(elements):
                storage = Storage(key, DTYPES[name], elements)
                if self.storages.setdefault(key, storage) == storage:
                    return storage
        return self._refuse(f"persistent id {pid!r:.200}")

    def _refuse(self, name: str) -> NoReturn:
        raise DataError(
            f"{self.path}: refused {name}, nothing was run",
            expected="a state dict of tensors only",
            hint="torch.save(model.state_dict(), path), and only files you trust",
        )


def _is_size(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 2**63


def _is_sizes(value: object) -> TypeGuard[tuple[int, ...]]:
    return type(value) is tuple and len(value) <= MAX_DIMENSIONS and all(map(_is_size, value))


def _expect(path: Path, what: str, expected: object, got: object) -> None:
    if type(got) is not type(expected) or got != expected:
        raise DataError(f"{path}: not PyTorch's legacy format: {what}", expected=expected, got=f"{got!r:.80}")


def _tensors(path: Path, state: object) -> dict[str, Tensor]:
    """The state dict, once it is known to map names to tensors."""
    if not isinstance(state, dict):
        raise DataError(f"{path}: holds no state dict", expected="names and tensors", got=type(state).__name__)
    for name, tensor in state.items():
        if type(name) is not str:
            raise DataError(f"{path}: a key is no name", expected="str", got=f"{type(name).__name__} {name!r:.80}")
        if not isinstance(tensor, Tensor):
            raise DataError(f"{path}: {name} is no tensor", expected="tensors only", got=type(tensor).__name__)
    return dict(state)


def _storage_offsets(path: Path, data: bytes, keys: object, at: int, storages: dict[str, Storage]) -> dict[str, int]:
    """Where in `data` each storage's elements begin; the first one's header stands at `at`."""
    if not isinstance(keys, list) or not all(type(k) is str for k in keys) or sorted(keys) != sorted(storages):
        raise DataError(f"{path}: the list of storages is not that of the tensors")
    offsets = {}
    for key in keys:
        storage = storages[key]
        end = at + 8 + storage.elements * np.dtype(storage.dtype).itemsize
        if end > len(data):
            raise DataError(
                f"{path}: truncated",
                expected=f"at least {end} bytes",
                got=f"{len(data)} bytes",
                hint="fetch the file again",
            )
        (count,) = struct.unpack_from("<q", data, at)
        if count != storage.elements:
            raise DataError(f"{path}: storage {key} has another length", expected=storage.elements, got=count)
        offsets[key] = at + 8
        at = end
    return offsets


def _view(data: bytes, at: int, tensor: Tensor) -> NDArray[Any]:
    """The tensor as a read-only view of the file's bytes."""
    dtype = np.dtype(tensor.storage.dtype)
    # ndarray's own constructor checks once more that the view stays inside the buffer
    return np.ndarray(
        tensor.shape,
        dtype,
        buffer=memoryview(data)[at : at + tensor.storage.elements * dtype.itemsize],
        offset=tensor.offset * dtype.itemsize,
        strides=tuple(s * dtype.itemsize for s in tensor.strides),
    )
