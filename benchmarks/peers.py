"""Other ways to run the same trunk, as far as their packages are installed: functions of frames (n, h, w, 3) uint8."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from joblib import cpu_count
from numpy.typing import NDArray

from benchmarks.torch_peer import BATCH as TORCH_BATCH
from benchmarks.torch_peer import TorchProcess
from features._common.types import Image
from stage1_extract.engines.folding import fold_scales

Peer = Callable[[Image], object]  # returns maps by stream, except PyTorch's
PREDICT, PREDICT_ONE = "Keras predict, batches of 32", "Keras predict, one frame at a time"
BATCH = 32
ONNX_BATCH = 4  # faster than 1, 8 and 32 on two cores
ONNX_INT8, ONNX_INT8_ALL = "int8, of the same layers", "int8, of all layers"
TIMM_NAMES = {"EfficientNetLite0": "tf_efficientnet_lite0", "InceptionResNetV2": "inception_resnet_v2"}


def peers(model: keras.Model, backbone: str, frames: Image, folder: Path) -> Iterator[tuple[str, Peer]]:
    """Yield each peer's name and function.

    Args:
        model: the trunk, uint8 frames → maps by stream.
        backbone: its name in Keras.
        frames: some, to calibrate on.
        folder: for files that the peers need.
    """
    function = tf.function(lambda x: model(x, training=False), autograph=False)
    yield PREDICT_ONE, lambda x: [model.predict(x[i : i + 1], verbose=0) for i in range(len(x))]
    yield PREDICT, lambda x: model.predict(x, batch_size=BATCH, verbose=0)
    yield "tf.function, batches of 32", lambda x: [function(part) for part in batches(x, BATCH)]
    if find_spec("onnxruntime") is not None and find_spec("tf2onnx") is not None:
        yield from _onnx_peers(model, frames, folder)
    if find_spec("torch") is not None and find_spec("timm") is not None and backbone in TIMM_NAMES:
        yield from _torch_peers(TIMM_NAMES[backbone], frames, folder)


def batches(frames: Image, size: int) -> list[Image]:
    """Split frames into full batches, the last of which repeats frames if needed."""
    indices = np.arange(-(-len(frames) // size) * size) % len(frames)
    return [frames[part] for part in np.split(indices, len(indices) // size)]


def _onnx_peers(model: keras.Model, frames: Image, folder: Path) -> Iterator[tuple[str, Peer]]:
    import onnx
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    exact, prepared = folder / "float32.onnx", folder / "prepared.onnx"
    # OpenVINO's and ONNX Runtime's float32 then compute the same operations
    tensor = keras.Input(batch_shape=(ONNX_BATCH, *model.input.shape[1:]), dtype="uint8", name="frames")
    fixed = keras.Model(tensor, fold_scales(model)(tensor))
    fixed.predict(frames[:ONNX_BATCH], verbose=0)  # Keras exports only models that have been called
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fixed.export(str(exact), format="onnx", verbose=False)
        quant_pre_process(str(exact), str(prepared), skip_symbolic_shape=True)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.parts = iter(batches(frames, ONNX_BATCH)[:16])

        def get_next(self) -> Any:
            part = next(self.parts, None)
            return None if part is None else {"frames": part}

    kept = _first_convolutions(onnx.load(prepared))
    paths = {"float32": exact}
    for name, excluded in ((ONNX_INT8, kept), (ONNX_INT8_ALL, [])):
        paths[name] = folder / f"int8-{len(excluded)}.onnx"
        quantize_static(
            str(prepared), str(paths[name]), Reader(), QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, nodes_to_exclude=excluded,
        )  # fmt: skip
    for name, path in paths.items():
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cpu_count()
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

        def run(x: Image, session: Any = session) -> dict[str, NDArray[np.float32]]:
            names = sorted(model.output)
            parts = zip(*(session.run(None, {"frames": part}) for part in batches(x, ONNX_BATCH)), strict=True)
            return {name: np.concatenate(maps)[: len(x)] for name, maps in zip(names, parts, strict=True)}

        yield f"ONNX Runtime {name}, batches of {ONNX_BATCH}", run


def _first_convolutions(network: Any) -> list[str]:
    """Names of the convolutions that framebank leaves in float32, see `weight_rounding.round_convolutions`."""
    convolutions = [node for node in network.graph.node if node.op_type == "Conv"][:2]
    groups = [next((a.i for a in node.attribute if a.name == "group"), 1) for node in convolutions]
    return [node.name for node in convolutions[: 2 if groups[1] > 1 else 1]]


def _torch_peers(name: str, frames: Image, folder: Path) -> Iterator[tuple[str, Peer]]:
    """Timm's network to its last map, compiled, over these frames; its CPU time is not measured."""
    np.save(folder / "frames.npy", frames)
    for precision in ("float32", "bfloat16"):
        process = TorchProcess(name, precision, folder / "frames.npy")
        yield f"PyTorch {precision}, timm compiled, batches of {TORCH_BATCH}", lambda _, process=process: process()
