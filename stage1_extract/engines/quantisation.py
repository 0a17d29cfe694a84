"""8-bit quantisation of a trunk after training, by NNCF.

Weights and activations of most layers become 8-bit integers, with a scale per output channel for weights and one per
tensor for activations, whose ranges are those over calibration frames. The result depends on these frames and on NNCF's
version. So it is kept, and every later extraction into the store uses the same network, on whatever machine.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import logging
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from features._common.types import Image
from features.config import FramesConfig
from features.errors import ConfigError, DataError
from features.recipe import json_digest
from stage1_extract.backbone.trunk import Trunk
from stage1_extract.datasets.clip import Clip
from stage1_extract.engines import openvino
from stage1_extract.engines.quantised_network import QuantisedNetwork
from stage1_extract.engines.weight_rounding import round_convolutions
from stage1_extract.frame_loader import resize_frame

CALIBRATION_FRAMES = 64
CALIBRATION_SPLIT = "train"


def network_path(store: Path, trunk: Trunk) -> Path:
    """The file beside the store that keeps its quantised network."""
    streams = {name: info.fingerprint for name, info in trunk.streams.items()}
    return store.with_name(f"{store.name}.int8-{json_digest([trunk.recipe.fingerprint, streams])[:12]}")


def quantise(trunk: Trunk, frames: Image) -> QuantisedNetwork:
    """Quantise a trunk; takes half a minute to some minutes.

    Args:
        frames: (n, height, width, 3) uint8 to calibrate it on.

    Raises:
        ConfigError: NNCF or OpenVINO is not installed.
    """
    check_installed()
    core = openvino.openvino_core()
    import nncf
    import openvino as ov
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    nncf.set_log_level(logging.ERROR)
    batch = openvino.BATCH
    shape = (batch, *trunk.model.input.shape[1:])
    (model, outputs), (rounded, _) = (openvino.read_graph(trunk.model, shape) for _ in range(2))
    with tempfile.TemporaryDirectory() as folder:
        frames = frames[np.arange(max(len(frames), batch)) % len(frames)]
        batches = [frames[i : i + batch] for i in range(0, len(frames) - batch + 1, batch)]
        kept = round_convolutions(rounded, batches, core)
        with redirect_stdout(io.StringIO()):  # where NNCF draws progress bars
            quantised = nncf.quantize(
                rounded,
                nncf.Dataset(batches),
                preset=nncf.QuantizationPreset.MIXED,  # activations have a zero point: those of linear layers need it
                target_device=nncf.TargetDevice.CPU,
                subset_size=len(batches),
                ignored_scope=nncf.IgnoredScope(names=kept),
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    # ranges for which the mean squared error is smallest
                    activations_range_estimator_params=RangeEstimatorParametersSet.HISTOGRAM
                ),
            )
        ov.save_model(quantised, Path(folder, "trunk.xml"), compress_to_fp16=False)
        errors = _largest_errors(model, quantised, batches, outputs)
        graph, weights = (Path(folder, f"trunk.{suffix}").read_bytes() for suffix in ("xml", "bin"))
    versions = {name: importlib.metadata.version(name) for name in ("nncf", "openvino")}
    origin = versions | {"frames": hashlib.sha256(frames.tobytes()).hexdigest()}
    return QuantisedNetwork(graph, weights, outputs, origin, errors)


def _largest_errors(
    model: Any, quantised: Any, batches: Sequence[Image], outputs: Mapping[str, str]
) -> dict[str, float]:
    """By stream, the largest error of the quantised model's maps, relative to the largest value."""
    largest, errors = dict.fromkeys(outputs, 0.0), dict.fromkeys(outputs, 0.0)
    exact, approximate = (
        openvino.openvino_core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        for network in (model, quantised)
    )
    for batch in batches:
        expected, maps = exact([batch]), approximate([batch])
        for stream, name in outputs.items():
            largest[stream] = max(largest[stream], float(np.abs(expected[name]).max()))
            errors[stream] = max(errors[stream], float(np.abs(maps[name] - expected[name]).max()))
    return {stream: error / largest[stream] for stream, error in errors.items()}


def check_installed() -> None:
    """Raise a ConfigError if NNCF or OpenVINO is not installed."""
    missing = [name for name in ("openvino", "nncf") if find_spec(name) is None]
    if missing:
        hint = 'pip install "framebank[cpu,int8]"'
        raise ConfigError(f"int8 needs {' and '.join(missing)} to quantise the network", got="not installed", hint=hint)


def calibration_frames(clips: Sequence[Clip], frames: FramesConfig, count: int = CALIBRATION_FRAMES) -> Image:
    """Read frames evenly spaced over the training clips, or over all clips if there are none: (n, height, width, 3).

    Clips that cannot be decoded are left out; a DataError if none can.
    """
    training = [clip for clip in clips if clip.sequence.split == CALIBRATION_SPLIT] or list(clips)
    first = np.cumsum([0, *(clip.sequence.length for clip in training)])
    rows = np.unique(np.linspace(0, first[-1] - 1, count).astype(int))
    images: list[Any] = []
    for clip, start, stop in zip(training, first[:-1], first[1:], strict=True):
        for frame in (rows[(rows >= start) & (rows < stop)] - start).tolist():
            try:
                image = next(iter(clip.source.read(frame, frame + 1, frames.min_size)))
            except DataError:
                break
            images.append(resize_frame(image, frames, clip.sequence.region))
    if not images:
        raise DataError(
            "none of the frames can be decoded", hint="replace their files, or use --extract.precision float32"
        )
    return np.stack(images)
