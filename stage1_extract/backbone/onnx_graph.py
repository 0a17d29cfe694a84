"""ONNX files as networks: read, checked, and cut at named tensors, from uint8 frames to maps as they are stored.

The file is data: it is parsed, checked by ONNX's own checker, and never asked to load anything else. What is added are
standard operators, so that OpenVINO and ONNX Runtime run one and the same graph, from uint8 frames to the maps.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from features._common.bounded_file import read_bounded
from features._common.plain_text import one_line
from features.backbone_names import stream_of_tap
from features.config import BackboneConfig, FramesConfig
from features.errors import ConfigError, DataError
from features.grids import averaging_matrix
from features.streams import APPEARANCE, FRAMES
from features.strict_model import did_you_mean, similar_names
from stage1_extract.backbone.onnx_safety import LARGEST_BATCH, LARGEST_FILE, check_program, check_sizes

IMAGE_CHANNELS = 3
# operators that ONNX defines on (batch, channels, rows, columns) only
CHANNELS_FIRST = frozenset(
    [
        "Conv",
        "ConvTranspose",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "LpPool",
        "BatchNormalization",
        "InstanceNormalization",
        "GroupNormalization",
        "LRN",
        "DepthToSpace",
        "SpaceToDepth",
    ]
)
REARRANGING = frozenset(
    ["Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Gather", "Einsum"]
)  # the axes' meaning is lost
# ONNX's own metadata: the range of the pixels that a network takes → (mean, deviation) of 0 … 255 that give it
PIXEL_RANGES = {
    "NominalRange_0_255": (0.0, 1.0),
    "Normalized_0_1": (0.0, 255.0),
    "Normalized_1_1": (127.5, 127.5),
}
PREFIX = "framebank."  # of the names of what is added to a graph


@dataclass(frozen=True)
class OnnxNetwork:
    """A network from uint8 frames (batch, height, width, 3) to float32 maps by stream."""

    graph: Any  # onnx.ModelProto, whose only input is `frames`
    shapes: Mapping[str, tuple[int, ...]]  # stream → shape of one frame's map
    size: tuple[int, int]  # width and height of the frames
    batch: int | None  # frames that it takes at once; None: any number
    preprocess: str  # in words, for the recipe
    cut: str  # name of the tensor that the stream `appearance` is made of
    parameters: int  # number of weights

    @property
    def outputs(self) -> dict[str, str]:
        """The name of the output for each stream."""
        return {stream: PREFIX + stream for stream in self.shapes}

    def for_batch(self, batch: int) -> bytes:
        """The graph for batches of one size, as the bytes of an ONNX file; its outputs are `outputs`."""
        self.graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
        return bytes(self.graph.SerializeToString())


def read_network(
    path: Path,
    backbone: BackboneConfig,
    frames: FramesConfig,
    grids: Mapping[str, tuple[int, int]],
    streams: Collection[str] = (),
) -> tuple[OnnxNetwork, str]:
    """Read an ONNX file as a network, cut at `backbone.cut` (default: its first output) and at the taps.

    Args:
        grids: by stream, rows and columns of cells that its maps are averaged over.
        streams: compute only these; default: that at the cut and those of all taps.

    Returns:
        The network, and the SHA-256 of the file.

    Raises:
        DataError: no such file, not an ONNX file, or one whose input has no shape of images.
        ConfigError: the package `onnx` is missing, or a setting does not fit the file.
    """
    onnx = _import_onnx()
    if not path.is_file():
        raise DataError(f"{path}: no such file", hint="--backbone.name onnx:FILE")
    data = read_bounded(path, LARGEST_FILE)
    model = _parse(onnx, path, data)
    image = _image_input(model, path)
    layout, batch = _check_input(image, path, backbone, frames)
    names = {APPEARANCE: backbone.cut or model.graph.output[0].name}
    names |= {stream_of_tap(tap): tap for tap in backbone.taps}
    if len(names) <= len(backbone.taps):
        raise ConfigError("backbone.taps: two taps have the same stream", got=", ".join(backbone.taps))
    tensors = {stream: name for stream, name in names.items() if stream in (streams or names)}
    producers = {output: node for node in model.graph.node for output in node.output if output}
    for stream, name in tensors.items():
        _check_tensor(name, "cut" if stream == APPEARANCE else "taps", producers)
    mean, deviation = _normalisation(model, image, path, backbone, frames)
    kept = _needed_nodes(onnx, model, producers, [*tensors.values()])
    builder = _Builder(onnx, model, kept, image)
    builder.add_input(frames, batch, mean, deviation, layout)
    ranks = builder.shapes([*tensors.values()], path)
    for stream, name in tensors.items():
        tensor_layout = _layout_of(name, producers, image.name, layout) if len(ranks[name]) == 4 else None
        pooling = 1 if stream == APPEARANCE else backbone.tap_pooling
        builder.add_output(stream, name, ranks[name], tensor_layout, pooling, grids.get(stream))
    shapes = builder.shapes([PREFIX + stream for stream in tensors], path)
    network = OnnxNetwork(
        graph=builder.finished([PREFIX + stream for stream in tensors]),
        shapes={stream: shapes[PREFIX + stream][1:] for stream in tensors},
        size=(frames.width, frames.height),
        batch=batch,
        preprocess=_describe(mean, deviation),
        cut=names[APPEARANCE],
        parameters=builder.parameters,
    )
    return network, hashlib.sha256(data).hexdigest()


def _import_onnx() -> Any:
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
        import onnx.shape_inference
    except ImportError:
        what = "backbones of the form onnx:FILE need the package onnx"
        raise ConfigError(what, hint='pip install "framebank[onnx]"') from None
    return onnx


def _parse(onnx: Any, path: Path, data: bytes) -> Any:
    """Parse and check a file without loading anything that it refers to."""
    hint = "export the network again, with its weights inside the file"
    try:
        model = onnx.load_model_from_string(data)
        check_program(onnx, model)
        onnx.checker.check_model(model)
    except Exception as e:  # protobuf's and the checker's errors have no common base
        line = one_line(" ".join(str(e).split())[:200]) or type(e).__name__
        raise DataError(f"{path}: not a valid ONNX file ({line})", hint=hint) from None
    if not model.graph.output:
        raise DataError(f"{path}: the network has no output", hint=hint)
    return model


def _image_input(model: Any, path: Path) -> Any:
    """The only input of a network that is no weight."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        got = ", ".join(value.name for value in inputs) or "none"
        raise DataError(f"{path}: the network takes something else than images", expected="one input", got=got)
    return inputs[0]


def _check_input(image: Any, path: Path, backbone: BackboneConfig, frames: FramesConfig) -> tuple[str, int | None]:
    """Return the input's layout and its batch size, if that is fixed; an error if it does not take the frames."""
    tensor = image.type.tensor_type
    dims = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
    got = "x".join("?" if d is None else str(d) for d in dims) or "unknown"
    if not tensor.HasField("shape") or len(dims) != 4 or any(d is not None and d < 1 for d in dims):
        raise DataError(
            f"{path}: the input {image.name!r} has no readable shape",
            expected=f"batch, {IMAGE_CHANNELS} channels, rows and columns, as NCHW or NHWC",
            got=got,
            hint="export the network with the shape of its input",
        )
    possible = [name for name, axis in (("NCHW", 1), ("NHWC", 3)) if dims[axis] == IMAGE_CHANNELS]
    layout = backbone.layout or (possible[0] if len(possible) == 1 else None)
    if layout is None:
        raise DataError(
            f"{path}: the layout of the input {image.name!r} cannot be told from its shape",
            expected=f"{IMAGE_CHANNELS} channels in axis 1 (NCHW) or 3 (NHWC)",
            got=got,
            hint="--backbone.layout NCHW or NHWC",
        )
    channels, height, width = dims[1:] if layout == "NCHW" else (dims[3], dims[1], dims[2])
    if (dims[0] or 0) > LARGEST_BATCH:
        expected = f"at most {LARGEST_BATCH:,}"
        raise DataError(f"{path}: the network takes too many frames at once", expected=expected, got=got)
    if channels not in (None, IMAGE_CHANNELS):
        raise DataError(
            f"{path}: the network does not take colour images", expected=f"{IMAGE_CHANNELS} channels", got=got
        )
    fits = height in (None, frames.height) and width in (None, frames.width)
    if not fits:
        raise ConfigError(
            f"{path}: the network takes images of one size only",
            expected=f"frames of {width or frames.width}x{height or frames.height}",
            got=f"{frames.width}x{frames.height}",
            hint=f"--frames.width {width or frames.width} --frames.height {height or frames.height}",
        )
    return layout, dims[0]


def _check_tensor(name: str, setting: str, producers: Mapping[str, Any]) -> None:
    if name not in producers:
        raise ConfigError(
            f"backbone.{setting}: no such tensor{did_you_mean(name, producers)}",
            expected=f"e.g. {', '.join(similar_names(name, list(producers)))}",
            got=name,
            hint=f"--backbone.{setting} TENSOR",
        )


def _normalisation(
    model: Any, image: Any, path: Path, backbone: BackboneConfig, frames: FramesConfig
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of pixel values 0 … 255 per channel: from the config, else the file's metadata."""
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    order = metadata.get("Image.BitmapPixelFormat", "").lower()[:3]
    if order in ("rgb", "bgr") and order != frames.colour:
        raise ConfigError(
            f"{path}: the network takes {order.upper()}",
            got=f"frames.colour {frames.colour}",
            hint=f"--frames.colour {order}",
        )
    if not backbone.preprocess or image.type.tensor_type.elem_type == 2:  # uint8: it does that itself
        return (0.0,) * IMAGE_CHANNELS, (1.0,) * IMAGE_CHANNELS
    if backbone.mean is not None and backbone.deviation is not None:
        return backbone.mean, backbone.deviation
    from_file = _file_normalisation(metadata, path)
    if from_file is not None:
        return backbone.mean or from_file[0], backbone.deviation or from_file[1]
    raise ConfigError(
        f"{path}: the file does not say how pixels are scaled",
        expected="the metadata image_mean and image_std, or Image.NominalPixelRange",
        hint="--backbone.mean 123.675 116.28 103.53 --backbone.deviation 58.395 57.12 57.375, which are ImageNet's, or "
        "--backbone.preprocess false for raw pixels",
    )


def _file_normalisation(metadata: Mapping[str, str], path: Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The same from a file's metadata; None if it says nothing."""
    if "image_mean" in metadata and "image_std" in metadata:  # as in Hugging Face's preprocessor_config.json
        scale = _numbers(metadata.get("rescale_factor", repr(1 / 255)), "rescale_factor", path, above=0.0)[0]
        means = _numbers(metadata["image_mean"], "image_mean", path)
        deviations = _numbers(metadata["image_std"], "image_std", path, above=0.0)
        return tuple(m / scale for m in means), tuple(d / scale for d in deviations)
    known = PIXEL_RANGES.get(metadata.get("Image.NominalPixelRange", ""))
    return known and ((known[0],) * IMAGE_CHANNELS, (known[1],) * IMAGE_CHANNELS)


def _numbers(text: str, key: str, path: Path, above: float = -math.inf) -> tuple[float, ...]:
    values = tuple(float(n) for n in re.findall(r"[-+]?\d+\.?\d*(?:[eE][-+]?\d+)?", text[:200]))
    values *= IMAGE_CHANNELS if len(values) == 1 else 1
    if len(values) != IMAGE_CHANNELS or not all(math.isfinite(v) and v > above for v in values):
        expected = f"{IMAGE_CHANNELS} numbers" + (" above 0" if above == 0 else "")
        raise DataError(f"{path}: wrong metadata {key}", expected=expected, got=text[:80], hint="--backbone.mean …")
    return values


def _describe(mean: Sequence[float], deviation: Sequence[float]) -> str:
    if set(mean) == {0.0} and set(deviation) == {1.0}:
        return "none"
    return f"minus {', '.join(f'{m:.6g}' for m in mean)}; by {', '.join(f'{d:.6g}' for d in deviation)}"


def _needed_nodes(onnx: Any, model: Any, producers: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    """The nodes that compute some tensors, in the graph's order, which is that of computing."""
    needed, waiting = set[int](), list(names)
    while waiting:
        node = producers.get(waiting.pop())
        if node is not None and id(node) not in needed:
            needed.add(id(node))
            waiting += _inputs(onnx, node)
    return [node for node in model.graph.node if id(node) in needed]


def _inputs(onnx: Any, node: Any) -> Iterator[str]:
    """The names of all tensors that a node reads, those of its branches and loops among them."""
    yield from node.input
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            for inner in graph.node:
                yield from _inputs(onnx, inner)


def _layout_of(name: str, producers: Mapping[str, Any], image: str, input_layout: str) -> str:
    """The layout of a tensor (batch, …) of four axes, from the operators that it comes from."""
    start = name
    while name != image:
        node = producers.get(name)
        if node is None or node.op_type in REARRANGING:
            break
        if node.op_type in CHANNELS_FIRST:
            return "NCHW"
        if node.op_type == "Transpose":
            (order,) = [tuple(a.ints) for a in node.attribute if a.name == "perm"] or [()]
            known = {(0, 2, 3, 1): "NHWC", (0, 3, 1, 2): "NCHW"}
            if order not in known:
                break
            return known[order]
        computed = [n for n in node.input if n in producers and producers[n].op_type != "Constant"]
        name = image if image in node.input else computed[0] if computed else ""
    if name == image:
        return input_layout
    raise ConfigError(
        f"the layout of the tensor {start!r} cannot be told",
        expected="the output of a convolution, or what is computed from it element by element",
        hint="another --backbone.cut or --backbone.taps",
    )


class _Builder:
    """Builds a graph: frames → preprocessing → nodes of the file → what is done to the maps."""

    def __init__(self, onnx: Any, model: Any, nodes: Sequence[Any], image: Any) -> None:
        self._onnx, self._source, self._image = onnx, model, image
        used = {name for node in nodes for name in _inputs(onnx, node)}
        self._nodes, self._after = list(nodes), list[Any]()
        self._weights = [w for w in model.graph.initializer if w.name in used]
        self.parameters = sum(math.prod(w.dims) for w in self._weights)
        self._frames: Any = None

    def add_input(
        self, frames: FramesConfig, batch: int | None, mean: Sequence[float], deviation: Sequence[float], layout: str
    ) -> None:
        """From uint8 frames NHWC to what the network takes."""
        onnx, helper = self._onnx, self._onnx.helper
        shape = (batch or "batch", frames.height, frames.width, IMAGE_CHANNELS)
        self._frames = helper.make_tensor_value_info(FRAMES, onnx.TensorProto.UINT8, shape)
        name = self._node("Cast", FRAMES, to=onnx.TensorProto.FLOAT)
        if any(mean):
            name = self._node("Sub", name, self._constant(np.array(mean, np.float32)))
        if any(d != 1 for d in deviation):
            name = self._node("Div", name, self._constant(np.array(deviation, np.float32)))
        if layout == "NCHW":
            name = self._node("Transpose", name, perm=[0, 3, 1, 2])
        self._node("Cast", name, output=self._image.name, to=self._image.type.tensor_type.elem_type)
        self._nodes, self._after = [*self._after, *self._nodes], []

    def add_output(
        self,
        stream: str,
        name: str,
        shape: tuple[int, ...],
        layout: str | None,
        pooling: int,
        grid: tuple[int, int] | None,
    ) -> None:
        """From a tensor of the network to what is stored: (batch, h, w, c), or (batch, c)."""
        name = self._node("Cast", name, to=self._onnx.TensorProto.FLOAT)
        if layout is None and (pooling > 1 or grid is not None):
            raise ConfigError(f"{stream}: no map that can be averaged", got="x".join(map(str, shape[1:])))
        if layout == "NHWC":
            name, shape = self._node("Transpose", name, perm=[0, 3, 1, 2]), (shape[0], shape[3], *shape[1:3])
        if pooling > 1:
            if pooling > min(shape[2:]):
                what = f"backbone.taps: {stream} has no map that can be averaged over {pooling}x{pooling} cells"
                raise ConfigError(what, got="x".join(map(str, shape[2:])), hint="--backbone.tap_pooling 1")
            window: dict[str, Any] = {"kernel_shape": [pooling] * 2, "strides": [pooling] * 2, "auto_pad": "SAME_UPPER"}
            name = self._node("AveragePool", name, **window)
            shape = (*shape[:2], *(math.ceil(n / pooling) for n in shape[2:]))
        if grid is not None:
            if grid[0] > shape[2] or grid[1] > shape[3]:
                raise ConfigError(
                    f"extract.keep: the grid is finer than the maps of {stream}",
                    expected=f"at most {shape[2]}x{shape[3]} cells",
                    got=f"{grid[0]}x{grid[1]}",
                )
            rows, columns = (averaging_matrix(n, cells) for n, cells in zip(shape[2:], grid, strict=True))
            name = self._node("MatMul", self._constant(np.asarray(rows, np.float32)), name)
            name = self._node("MatMul", name, self._constant(np.ascontiguousarray(np.asarray(columns, np.float32).T)))
        if layout is not None:
            name = self._node("Transpose", name, perm=[0, 2, 3, 1])
        elif len(shape) == 3:  # tokens of a transformer, as a map of one column
            name = self._node("Reshape", name, self._constant(np.array([-1, shape[1], 1, shape[2]], np.int64)))
        elif len(shape) != 2:
            raise ConfigError(
                f"{stream}: neither a map nor a vector",
                expected="2 to 4 axes",
                got=f"{len(shape)} axes",
                hint="another --backbone.cut or --backbone.taps",
            )
        self._node("Identity", name, output=PREFIX + stream)

    def shapes(self, names: Sequence[str], path: Path) -> dict[str, tuple[int, ...]]:
        """Infer the shapes of tensors; a DataError if one of them is not known before the network runs."""
        model = self._model(names)
        try:
            inferred = self._onnx.shape_inference.infer_shapes(model, data_prop=True)
            check_sizes(inferred)
        except Exception as e:
            line = one_line(" ".join(str(e).split())[:200])
            raise DataError(f"{path}: the network does not fit frames of this size ({line})") from None
        shapes = {}
        for output in inferred.graph.output:
            tensor = output.type.tensor_type
            dims = [d.dim_value if d.HasField("dim_value") else 0 for d in tensor.shape.dim]
            if not tensor.HasField("shape") or len(dims) < 2 or any(d < 1 for d in dims[1:]):
                raise DataError(
                    f"{path}: the shape of {output.name.removeprefix(PREFIX)!r} is not known before the network runs",
                    expected="numbers of channels, rows and columns",
                    got="x".join(str(d or "?") for d in dims) or "unknown",
                    hint="cut the network at another tensor, --backbone.cut TENSOR",
                )
            shapes[output.name] = tuple(dims)
        return shapes

    def finished(self, outputs: Sequence[str]) -> Any:
        """The model with these outputs, float32."""
        model = self._model(outputs)
        for output in model.graph.output:
            output.type.tensor_type.elem_type = self._onnx.TensorProto.FLOAT
        return model

    def _model(self, outputs: Sequence[str]) -> Any:
        onnx, helper = self._onnx, self._onnx.helper
        values = [onnx.ValueInfoProto(name=name) for name in outputs]
        graph = helper.make_graph([*self._nodes, *self._after], "framebank", [self._frames], values, self._weights)
        return helper.make_model(
            graph,
            opset_imports=self._source.opset_import,
            ir_version=self._source.ir_version,
            functions=self._source.functions,
        )

    def _constant(self, values: Any) -> str:
        name = f"{PREFIX}constant{len(self._weights)}"
        self._weights.append(self._onnx.numpy_helper.from_array(values, name))
        return name

    def _node(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        output = output or f"{PREFIX}{operator}{len(self._nodes) + len(self._after)}"
        self._after.append(self._onnx.helper.make_node(operator, list(inputs), [output], **attributes))
        return output
