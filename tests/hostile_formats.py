"""More kinds of fuzzed files: networks in ONNX and safetensors, features of other tools, and the journals of searches.

python -m tests.hostile_formats KIND FIRST [LAST]      the numbers of inputs, of all kinds; findings as lines of JSON
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import struct
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from features.config import Config
from features.principal_components import PCABasis, load_bases, save_bases
from features.store import Store
from stage1_extract.feature_import import ImportOptions, import_features
from tests.hostile_input import change_h5, keras_models, kind, main, patched_zip
from tests.mutations import mutate_bytes, mutate_csv, mutate_tree

FEATURES = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
TABLE = [
    ["sequence", "split", "frame", "first", "length", "fps", "speed"],
    *([f"t/{i}", "train", "3", str(4 * i), "4", "20", "1.5"] for i in range(3)),
]
SHAPES = ("(99999999999, 5)", "(12, 5, 0)", "(-12, 5)", "(12,)", "()", "(1 << 40,)", "12", "[" * 50)
TYPES = ("|O", "<U9", "<f16", "<c8", "[('a', '<f4')]", "<M8[s]", "|S0", "x", "<f4'" * 300)


@cache
def feature_files() -> dict[str, bytes]:
    """A small file of features in each format."""
    import h5py

    found, stream = {}, io.BytesIO()
    np.save(stream, FEATURES)
    found[".npy"] = stream.getvalue()
    with h5py.File(stream := io.BytesIO(), "w") as f:
        f["features"] = FEATURES
        f["other/more"] = FEATURES
    found[".h5"] = stream.getvalue()
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:  # an extra
        return found
    columns: dict[str, Any] = {f"x{i}": FEATURES[:, i] for i in range(5)}
    names = [f"t/{i // 4}" for i in range(12)]
    for table in (columns, {"features": FEATURES.tolist()}):
        pyarrow.parquet.write_table(pyarrow.table({"sequence": names} | table), stream := io.BytesIO())
        found[f".{'p' if table is columns else 'f'}.parquet"] = stream.getvalue()
    return found


@kind
def feature_file(rng: random.Random, folder: Path) -> None:
    ending, data = rng.choice(sorted(feature_files().items()))
    path, table, store = folder / f"a{ending}", folder / "a.csv", folder / "s" / "s.h5"
    table.write_bytes(mutate_csv(TABLE, rng) if rng.random() < 0.3 else "\n".join(map(",".join, TABLE)).encode())
    if ending == ".npy" and rng.random() < 0.5:
        header = f"{{'descr': '{rng.choice(('<f4', *TYPES))}', 'fortran_order': {rng.choice(('False', 'True', '1'))}, "
        header += f"'shape': {rng.choice(SHAPES)}, }}\n"
        data = b"\x93NUMPY\1\0" + struct.pack("<H", len(header) % 65536) + header.encode() + data[128:]
    elif rng.random() < 0.8:
        data = mutate_bytes(data, rng, [b"PAR1", b"\x93NUMPY\3\0", b"|O", b"OHDR", b"TREE"])
    path.write_bytes(data)
    if ending == ".h5" and rng.random() < 0.3:
        with contextlib.suppress(OSError, RuntimeError, KeyError, ValueError):  # damaged already
            change_h5(path, rng)
    for old in (folder / "s").rglob("*"):
        if old.is_file():
            old.unlink()
    import_features(path, table, store, ImportOptions("tool", dtype=rng.choice(("float16", "float32"))))
    with Store(store) as written:
        assert np.isfinite(written.read("appearance", range(written.frames)).astype(np.float32)).all()


@kind
def components_file(rng: random.Random, folder: Path) -> None:
    path = folder / "bases.npz"
    save_bases(path, {"appearance": PCABasis(np.ones(6, np.float32), np.eye(6, dtype=np.float32)[:2])})
    data = path.read_bytes()
    words = [b"|O", b"<f8", b"'shape': (9999999999,)", b"appearance/mean.npy"]
    path.write_bytes(patched_zip(data, rng) if rng.random() < 0.3 else mutate_bytes(data, rng, words))
    for basis in load_bases(path).values():
        assert basis.weights and basis.digest


@cache
def tensors_file() -> bytes:
    """The weights of a small model as safetensors."""
    import safetensors.numpy

    return bytes(safetensors.numpy.save({w.path: np.asarray(w) for w in keras_models()[0].weights}))


@kind
def safetensors_file(rng: random.Random, folder: Path) -> None:
    from stage1_extract.backbone.registry import _load_file

    data = tensors_file()
    size = struct.unpack("<Q", data[:8])[0]
    if rng.random() < 0.6:
        header = json.dumps(mutate_tree(json.loads(data[8 : 8 + size]), rng)).encode(errors="surrogatepass")
        length = rng.choice((len(header), len(header), len(header), 1 << 62, 0, len(header) + 8))
        data = struct.pack("<Q", length) + header + data[8 + size :]
    else:
        data = mutate_bytes(data, rng, [b'"F64"', b'"BF16"', b"[0,99999999]", b"{", b'"__metadata__":{}'])
    path = folder / "a.safetensors"
    path.write_bytes(data)
    _load_file(keras_models()[0], path, "Tiny")


@cache
def networks() -> list[bytes]:
    """Small networks as ONNX files: convolutions, a branch, a function."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(size=(4, 3, 3, 3)).astype(np.float32), "w"),
        numpy_helper.from_array(np.array([0, 4, -1], np.int64), "shape"),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Twice", ["b"], ["c"], domain="own"),
        helper.make_node("Reshape", ["c", "shape"], ["d"]),
        helper.make_node("ReduceMean", ["d"], ["e"], axes=[2], keepdims=0),
    ]
    twice = helper.make_function(
        "own", "Twice", ["p"], ["q"], [helper.make_node("Add", ["p", "p"], ["q"])], [helper.make_opsetid("", 13)]
    )
    found = []
    maps, tokens = ["n", 4, 18, 32], ["n", 4, 576]
    for output, kept, shape in (("b", nodes[:2], maps), ("e", nodes, ["n", 4]), ("d", nodes[:4], tokens)):
        graph = helper.make_graph(
            kept,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 36, 64])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
            weights[: 1 + (len(kept) > 2)],
        )
        opsets = [helper.make_opsetid("", 13), helper.make_opsetid("own", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=[twice])
        helper.set_model_props(model, {"Image.NominalPixelRange": "Normalized_0_1"})
        onnx.checker.check_model(model)
        found.append(model.SerializeToString())
    return found


def changed_network(model: Any, rng: random.Random) -> None:
    """Change a network in a way that its parser admits."""
    from onnx import TensorProto, helper

    graph = model.graph
    huge = rng.choice((0, -1, 1, 7, 1 << 20, 1 << 31, 1 << 62))
    match rng.randrange(12):
        case 0:
            tensor = rng.choice(graph.initializer)
            if tensor.dims:  # a scalar has none
                tensor.dims[rng.randrange(len(tensor.dims))] = huge
        case 1:
            rng.choice(graph.initializer).data_type = rng.choice((0, 1, 2, 7, 8, 10, 14, 99))
        case 2:
            rng.choice(graph.initializer).external_data.add(key="location", value="/etc/passwd")
            rng.choice(graph.initializer).data_location = TensorProto.EXTERNAL
        case 3:
            node = rng.choice(graph.node)
            node.op_type = rng.choice(("Loop", "If", "Scan", "Twice", "Conv", "Resize", "Tile", "Pad", "Expand", "x"))
        case 4:
            node = rng.choice(graph.node)
            for attribute in node.attribute:
                attribute.ints.append(huge)
        case 5:  # calls itself
            model.functions[0].node.append(helper.make_node("Twice", ["q"], ["r"], domain="own"))
        case 6:
            shape = helper.make_tensor("s", TensorProto.INT64, [3], [1 << 14, 1 << 14, 1 << 10])
            graph.initializer.append(shape)
            graph.node.insert(0, helper.make_node("ConstantOfShape", ["s"], ["big"]))
            graph.node.insert(1, helper.make_node("ReduceMax", ["big"], ["one"], keepdims=0))
            graph.node[2].input[0] = rng.choice(("one", "x"))
        case 7:
            graph.input[0].type.tensor_type.shape.dim[rng.randrange(4)].dim_value = huge
        case 8:
            nodes = rng.sample(list(graph.node), len(graph.node))
            del graph.node[:]
            graph.node.extend(nodes)
        case 9:
            node = rng.choice(graph.node)
            node.input[0] = rng.choice(("", node.output[0], graph.node[-1].output[0], "nowhere"))
        case 10:
            body = helper.make_graph(
                [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Relu", ["v"], ["u"])],
                "body",
                [helper.make_tensor_value_info("i", TensorProto.INT64, []),
                helper.make_tensor_value_info("go", TensorProto.BOOL, []),
                helper.make_tensor_value_info("v", TensorProto.FLOAT, ["n"])],
                [helper.make_tensor_value_info("on", TensorProto.BOOL, []),
                helper.make_tensor_value_info("u", TensorProto.FLOAT, ["n"])],
            )  # fmt: skip
            last = graph.node[-1].output[0]
            graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
            graph.node.append(helper.make_node("Loop", ["", "yes", last], ["endless"], body=body))
            graph.output[0].name = "endless"
        case 11:
            for entry in model.metadata_props:
                entry.value = rng.choice(("", "x" * 10**6, "Normalized_1_1", "\x1b[2J"))


@kind
def onnx_file(rng: random.Random, folder: Path) -> None:
    import onnx

    from stage1_extract.backbone.onnx_trunk import any_trunk
    from stage1_extract.engines.engine import Engine

    data = rng.choice(networks())
    if rng.random() < 0.7:
        model = onnx.load_model_from_string(data)
        for _ in range(rng.choice((1, 1, 2))):
            changed_network(model, rng)
        data = model.SerializeToString()
    else:
        data = mutate_bytes(data, rng, [b"Loop", b"\x0a\xff\xff\xff\xff\x0f", b"Conv", b"own"])
    path = folder / "a.onnx"
    path.write_bytes(data)
    settings = {"backbone.name": f"onnx:{path}", "frames.width": 64, "frames.height": 36, "extract.engine": "auto"}
    trunk = any_trunk(Config().with_settings(settings))
    maps = Engine(trunk, 2, "auto")(np.zeros((2, 36, 64, 3), np.uint8))
    assert all(len(values) == 2 for values in maps.values())


@cache
def journal() -> bytes:
    """The journal of a search of four runs."""
    with tempfile.TemporaryDirectory() as name:
        study = sweep_study(Path(name))
        for i in range(4):
            trial = study.claim()
            assert trial is not None
            study.trial(trial.number).report(0.1 * i, 1)
            state = ("complete", "pruned", "fail")[i % 3]
            study.tell(trial.number, 0.1 * i if state == "complete" else None, state)
        return (Path(name) / "study.journal").read_bytes()


def sweep_study(folder: Path) -> Any:
    """A search over two settings of a head."""
    from stage2_temporal.sweep.spec import Sweep, search_spaces
    from stage2_temporal.sweep.study import SweepStudy

    content: dict[str, Any] = {"sweep": {"name": "s", "search": "optuna", "limit": 9}}
    content["entries"] = ({"head.name": "ridge", "head.alpha": {"low": 0.1, "high": 10.0, "log": True},
                           "window.length": {"low": 3, "high": 9}},)  # fmt: skip
    sweep = Sweep.model_validate(content)
    return SweepStudy(folder, sweep.sweep, search_spaces(sweep, Config()), Config())


@kind
def search_journal(rng: random.Random, folder: Path) -> None:
    lines = journal().splitlines()
    data = b"\n".join(lines) + b"\n"
    if rng.random() < 0.8:
        for _ in range(rng.choice((1, 1, 3))):
            i = rng.randrange(len(lines))
            lines[i] = json.dumps(mutate_tree(json.loads(lines[i]), rng)).encode(errors="surrogatepass")
        if rng.random() < 0.2:
            lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
        data = b"\n".join(lines) + b"\n"
    else:
        data = mutate_bytes(data, rng, [b"NaN", b"1e999", b"[" * 3000, b"9" * 5000, b'"../../x"', b"\xff"])
    for old in folder.iterdir():
        old.unlink()
    (folder / "study.journal").write_bytes(data)
    study = sweep_study(folder)
    study.claim()
    for record in study.records():
        assert all("/" not in name for name in record.runs)
    study.searched_settings()


if __name__ == "__main__":
    main()
