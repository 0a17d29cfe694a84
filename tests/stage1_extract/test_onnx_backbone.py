"""A network in an ONNX file as the backbone: cut at any tensor, the same maps on both engines, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as h
import onnx.numpy_helper
import pytest
from numpy.typing import NDArray

from features.config import Config
from features.errors import ConfigError, DataError
from features.grids import averaging_matrix
from features.store import Store
from framebank.cli import main
from framebank.workflows import extract
from stage1_extract.backbone.onnx_trunk import OnnxTrunk, any_trunk
from stage1_extract.engines.engine import Engine
from tests.helpers import picture, write_clips

WIDTH, HEIGHT = 24, 16
MEAN, DEVIATION = (120.0, 110.0, 100.0), (60.0, 50.0, 40.0)
RNG = np.random.default_rng(3)
WEIGHTS = {
    "w1": RNG.normal(0, 0.3, (8, 3, 3, 3)).astype(np.float32),
    "w2": RNG.normal(0, 0.3, (6, 8, 3, 3)).astype(np.float32),
}


def convolution(x: NDArray[Any], weights: NDArray[Any]) -> NDArray[Any]:
    """A 3x3 convolution of stride 2 with a border of one zero: (n, c, h, w) → (n, k, h / 2, w / 2)."""
    x = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)])
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))[:, :, ::2, ::2]
    return np.einsum("nchwij,kcij->nkhw", windows, weights, optimize=True)


def write_network(
    path: Path,
    shape: list[Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    nhwc: bool = False,
    more: list[Any] | None = None,
) -> Path:
    """Two convolutions with ReLU and a mean, written by hand; tensors are named as PyTorch names them."""
    shape = shape or ["batch", HEIGHT, WIDTH, 3] if nhwc else shape or ["batch", 3, HEIGHT, WIDTH]
    image = h.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, shape)
    options = {"strides": [2, 2], "pads": [1, 1, 1, 1]}
    nodes = [h.make_node("Transpose", ["pixels"], ["turned"], perm=[0, 3, 1, 2])] if nhwc else []
    nodes += [
        h.make_node("Conv", ["turned" if nhwc else "pixels", "w1"], ["/conv1/out.0"], **options),
        h.make_node("Relu", ["/conv1/out.0"], ["/relu1/out.0"]),
        h.make_node("Conv", ["/relu1/out.0", "w2"], ["/conv2/out.0"], **options),
        h.make_node("Relu", ["/conv2/out.0"], ["/relu2/out.0"]),
        h.make_node("GlobalAveragePool", ["/relu2/out.0"], ["pooled"]),
        h.make_node("Flatten", ["pooled"], ["logits"]),
        *(more or []),
    ]
    output = h.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 6])
    weights = [onnx.numpy_helper.from_array(values, name) for name, values in WEIGHTS.items()]
    model = h.make_model(
        h.make_graph(nodes, "g", [image], [output], weights), opset_imports=[h.make_opsetid("", 17)], ir_version=8
    )
    h.set_model_props(model, dict(metadata or {}))
    path.write_bytes(model.SerializeToString())
    return path


def config(path: Path, **backbone: Any) -> Config:
    settings = {"mean": MEAN, "deviation": DEVIATION} | backbone
    return Config.model_validate(
        {
            "backbone": {"name": f"onnx:{path}", **{k: v for k, v in settings.items() if v is not None}},
            "frames": {"width": WIDTH, "height": HEIGHT},
            "extract": {"dtype": "float32", "batch": 2},
        }
    )


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network(tmp_path_factory.mktemp("onnx") / "net.onnx")


@pytest.fixture(scope="module")
def frames() -> NDArray[np.uint8]:
    return np.stack([picture(i, (WIDTH, HEIGHT))[..., ::-1] for i in range(5)])


def expected_maps(frames: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The maps of both ReLUs, (n, c, h, w)."""
    x = ((frames.astype(np.float64) - MEAN) / DEVIATION).transpose(0, 3, 1, 2)
    first = np.maximum(convolution(x, WEIGHTS["w1"]), 0)
    return first, np.maximum(convolution(first, WEIGHTS["w2"]), 0)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_maps_are_those_that_the_file_defines(network: Path, frames: NDArray[np.uint8], engine: str) -> None:
    trunk = any_trunk(config(network, cut="/relu2/out.0", taps=("/relu1/out.0",)))
    assert isinstance(trunk, OnnxTrunk)
    assert {name: info.shape for name, info in trunk.streams.items()} == {
        "appearance": (4, 6, 6),
        "relu1_out_0": (8, 12, 8),
    }
    run = Engine(trunk, 2, engine)
    maps = run(frames)
    first, second = expected_maps(frames)
    np.testing.assert_allclose(maps["relu1_out_0"], first.transpose(0, 2, 3, 1), atol=1e-4)
    np.testing.assert_allclose(maps["appearance"], second.transpose(0, 2, 3, 1), atol=1e-4)
    assert run.relative_error is not None and run.relative_error < 1e-5


def test_taps_are_pooled_and_maps_averaged_over_cells(network: Path, frames: NDArray[np.uint8]) -> None:
    cfg = config(network, cut="/relu2/out.0", taps=("/relu1/out.0",), tap_pooling=3)
    cfg = cfg.with_settings({"extract.keep": {"appearance": "grid 3x4"}})
    maps = Engine(any_trunk(cfg), 2, "onnxruntime")(frames)
    first, second = expected_maps(frames)
    rows, columns = averaging_matrix(4, 3), averaging_matrix(6, 4)
    np.testing.assert_allclose(maps["appearance"], np.einsum("rh,nchw,kw->nrkc", rows, second, columns), atol=1e-4)
    assert maps["relu1_out_0"].shape == (5, 3, 4, 8)
    np.testing.assert_allclose(maps["relu1_out_0"][:, 1, 1], first[:, :, 3:6, 3:6].mean(axis=(2, 3)), atol=1e-4)


def test_vectors_are_stored_and_the_first_output_is_the_default_cut(network: Path, frames: NDArray[np.uint8]) -> None:
    trunk = any_trunk(config(network))
    assert trunk.streams["appearance"].shape == (6,)
    vectors = Engine(trunk, 2, "onnxruntime")(frames)["appearance"]
    np.testing.assert_allclose(vectors, expected_maps(frames)[1].mean(axis=(2, 3)), atol=1e-4)


def test_a_network_with_channels_last_gives_the_same_maps(tmp_path: Path, frames: NDArray[np.uint8]) -> None:
    path = write_network(tmp_path / "nhwc.onnx", nhwc=True)
    maps = Engine(any_trunk(config(path, cut="/relu2/out.0")), 2, "onnxruntime")(frames)["appearance"]
    np.testing.assert_allclose(maps, expected_maps(frames)[1].transpose(0, 2, 3, 1), atol=1e-4)


def test_a_file_with_a_batch_of_its_own_is_run_with_it(tmp_path: Path, frames: NDArray[np.uint8]) -> None:
    path = write_network(tmp_path / "one.onnx", [1, 3, HEIGHT, WIDTH])
    engine = Engine(any_trunk(config(path, cut="/relu2/out.0")), 4, "onnxruntime")
    assert engine.batch == 1
    np.testing.assert_allclose(engine(frames)["appearance"], expected_maps(frames)[1].transpose(0, 2, 3, 1), atol=1e-4)


@pytest.mark.parametrize(
    "metadata",
    [
        {
            "image_mean": "[0.47058824, 0.43137255, 0.39215686]",
            "image_std": "0.23529412, 0.19607843, 0.15686275",
        },
        {"image_mean": "120 110 100", "image_std": "60 50 40", "rescale_factor": "1"},
    ],
)
def test_mean_and_deviation_are_read_from_the_file(
    tmp_path: Path, frames: NDArray[np.uint8], metadata: dict[str, str]
) -> None:
    path = write_network(tmp_path / "net.onnx", metadata=metadata)
    trunk = any_trunk(config(path, cut="/relu2/out.0", mean=None, deviation=None))
    maps = Engine(trunk, 2, "onnxruntime")(frames)["appearance"]
    np.testing.assert_allclose(maps, expected_maps(frames)[1].transpose(0, 2, 3, 1), atol=1e-3)
    assert trunk.recipe.preprocess == "minus 120, 110, 100; by 60, 50, 40"


def test_recipe_holds_the_digest_of_the_file_and_not_its_folder(network: Path, tmp_path: Path) -> None:
    first = any_trunk(config(network, cut="/relu2/out.0")).recipe
    moved = tmp_path / "net.onnx"
    moved.write_bytes(network.read_bytes())
    assert any_trunk(config(moved, cut="/relu2/out.0")).recipe.fingerprint == first.fingerprint
    assert first.backbone == "onnx:net.onnx" and len(first.weights_digest) == 64
    other = write_network(tmp_path / "net.onnx", metadata={"author": "somebody"})
    assert any_trunk(config(other, cut="/relu2/out.0")).recipe.fingerprint != first.fingerprint
    assert any_trunk(config(network, cut="/relu1/out.0")).recipe.fingerprint != first.fingerprint
    assert any_trunk(config(network, cut="/relu2/out.0", mean=(0, 0, 0))).recipe.fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": ["n", "c", "h", "w"]}, "the layout of the input 'pixels' cannot be told"),
        ({"shape": ["n", 3, "h"]}, "the input 'pixels' has no readable shape"),
        ({"shape": ["n", 3, 224, 224]}, "--frames.width 224 --frames.height 224"),
        ({"metadata": {"Image.BitmapPixelFormat": "Bgr8"}}, "--frames.colour bgr"),
        ({"metadata": {"image_mean": "nan", "image_std": "1"}, "mean": None, "deviation": None}, "image_mean"),
        ({"metadata": {"image_mean": "1", "image_std": "0"}, "mean": None, "deviation": None}, "image_std"),
        ({"deviation": None}, "does not say how pixels are scaled"),
        ({"mean": None, "deviation": None}, "does not say how pixels are scaled"),
        ({"cut": "/relu3/out.0"}, "did you mean /relu"),
        ({"cut": "/relu2/out.0", "taps": ("relu",)}, "backbone.taps: no such tensor"),
        ({"cut": "logits", "taps": ("/relu1/out.0", ), "tap_pooling": 99}, "cannot be averaged|no map that can be"),
        ({"weights": "random"}, "weights inside"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    written = {k: changes.pop(k) for k in ("shape", "metadata") if k in changes}
    path = write_network(tmp_path / "net.onnx", **written)
    with pytest.raises((ConfigError, DataError), match=message):
        any_trunk(config(path, **changes))


def test_hostile_files_are_refused(network: Path, tmp_path: Path) -> None:
    path, data = tmp_path / "bad.onnx", network.read_bytes()
    for content in (b"", b"PK\x03\x04", data[:100], data[:-7], b"\xff" * 500):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.onnx"):
            any_trunk(config(path))
    model = onnx.load_model_from_string(data)
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../../etc/passwd")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(DataError, match=r"bad\.onnx: .*weights are in other files"):
        any_trunk(config(path))


def test_engines_that_do_not_run_it_are_refused(network: Path) -> None:
    trunk = any_trunk(config(network))
    with pytest.raises(ConfigError, match="TensorFlow does not run ONNX files"):
        Engine(trunk, 2, "tensorflow")
    with pytest.raises(ConfigError, match=r"backbone\.mean is for ONNX files"):
        any_trunk(config(network).with_settings({"backbone.name": "EfficientNetLite0"}))


def test_store_heads_and_predictions_work_as_with_other_backbones(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_clips(tmp_path / "clips", {"Train": 6, "Validation": 2, "Test": 2})
    cfg = config(network, cut="/relu2/out.0", taps=("/relu1/out.0",)).with_settings(
        {"data.layout": "competition", "data.path": "clips", "head.name": "ridge", "data.fps": 10.0}
    )
    Path("net.toml").write_text(cfg.to_toml())
    extract(cfg, "stores/net.h5")
    assert main(["extract", "--config", "net.toml"]) == 0
    assert "nothing to extract" in capsys.readouterr().out  # without loading the network again
    assert main(["train", "--config", "net.toml", "--run", "net"]) == 0
    assert main(["train", "--config", "net.toml", "--run", "tap", "--head.streams", "relu1_out_0"]) == 0
    with Store("stores/net.h5") as store:
        assert store.header.trunk["cut"] == "after /relu2/out.0 (4x6x6)"
        assert store.header.trunk["parameters"] == sum(w.size for w in WEIGHTS.values())
    assert main(["predict", "--run", "net"]) == 0
    in_run = Path("runs/net/predictions.csv").read_text().splitlines()
    again = Path("runs/net/predicted/clips.csv").read_text().splitlines()
    column = in_run[0].split(",").index("ego_speed_pred")
    values = [[float(line.split(",")[column]) for line in lines[1:]] for lines in (in_run, again)]
    np.testing.assert_allclose(*values, rtol=1e-3)
    assert main(["predict", "--run", "net", "--input", "clips/Test/Test/1/imgs", "--output", "slide.csv"]) == 0
    assert len(Path("slide.csv").read_text().splitlines()) == 2
    capsys.readouterr()
    for command, why in (("fuse", "nothing to fuse the head with"), ("finetune", "nothing to fine-tune")):
        assert main([command, "--run", "net"]) == 2
        assert why in capsys.readouterr().err
