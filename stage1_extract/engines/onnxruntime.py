"""The ONNX Runtime engine, for ONNX files where OpenVINO is not installed, and to compare OpenVINO with."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
from joblib import cpu_count
from numpy.typing import NDArray

from features._common.types import Image
from features.errors import ConfigError
from stage1_extract.backbone.onnx_graph import OnnxNetwork

FRAMES_PER_CALL = 4


def onnxruntime_installed() -> bool:
    """Whether ONNX Runtime, a part of the extra `onnx`, is installed."""
    return find_spec("onnxruntime") is not None


class OnnxRuntimeRunner:
    """A `Runner` of an ONNX file on the CPU, in float32, whose threads share each batch.

    Args:
        network: uint8 frames → float32 maps.
        batch: frames per call, if the file does not fix it; 0: 4.

    Raises:
        ConfigError: ONNX Runtime is not installed, or lacks an operator of the file.
    """

    lanes = 2  # one copies its data while the other computes

    def __init__(self, network: OnnxNetwork, batch: int) -> None:
        if not onnxruntime_installed():
            hint = 'pip install "framebank[cpu]" for OpenVINO, or "framebank[onnx]" for ONNX Runtime'
            raise ConfigError("nothing that runs ONNX files is installed", hint=hint)
        import onnxruntime

        self.batch, self._outputs = network.batch or batch or FRAMES_PER_CALL, network.outputs
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cpu_count()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                network.for_batch(self.batch), options, providers=["CPUExecutionProvider"]
            )
        except Exception as e:  # its errors have no common base
            line = " ".join(str(e).split())[:300]
            raise ConfigError(f"ONNX Runtime cannot run the file ({line})", hint="--extract.engine openvino") from None

    def __call__(self, frames: Image) -> dict[str, NDArray[Any]]:
        """Compute maps: (batch, height, width, 3) uint8 → (batch, …) float32, by stream."""
        (name,) = (entry.name for entry in self._session.get_inputs())
        return dict(zip(self._outputs, self._session.run([*self._outputs.values()], {name: frames}), strict=True))


def onnxruntime_maps(network: OnnxNetwork, frames: Image) -> dict[str, NDArray[Any]] | None:
    """ONNX Runtime's maps of a few frames, to compare others with; None if it is not installed."""
    if not onnxruntime_installed():
        return None
    run = OnnxRuntimeRunner(network, len(frames))
    padding = [(0, run.batch - len(frames)), (0, 0), (0, 0), (0, 0)]
    return {name: maps[: len(frames)] for name, maps in run(np.pad(frames, padding)).items()}
