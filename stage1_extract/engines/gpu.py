"""What depends on the graphics card: precisions, the batch that fits into its memory, and why it is not used.

No card was at hand when this was written: what needs one is tested in parts, see docs/gpu.md.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import tensorflow as tf

from features.errors import ConfigError

# TensorFlow takes memory as it needs it, not all of a card's at once: what is free can then be measured
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

Capability = tuple[int, int]  # CUDA compute capability: major, minor

# the first cards whose tensor cores compute in a precision: Volta has float16, Ampere has bfloat16 and TF32
FIRST_CAPABILITY: Mapping[str, Capability] = {"float16": (7, 0), "bfloat16": (8, 0), "tf32": (8, 0)}
MAX_BATCH = 512
MEMORY_SHARE = 0.8  # of the free memory; cuDNN's choice of algorithms varies
MEASURED_BATCHES = (1, 8)
TIMED_CALLS = 3


def capabilities() -> list[Capability]:
    """The compute capability of each GPU that TensorFlow uses."""
    details = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU")]
    return [tuple(d.get("compute_capability", (0, 0))) for d in details]


def check_gpu_precision(precision: str, cards: Sequence[Capability]) -> None:
    """Raise a ConfigError if TensorFlow's device, a CPU if there is no card, does not compute in a precision."""
    if precision == "tf32" and not cards:
        raise ConfigError("tf32 is a precision of graphics cards", got="no card", hint="--extract.precision float32")
    first = FIRST_CAPABILITY.get(precision)
    if first is not None and any(card < first for card in cards):
        fallback = "float16" if precision == "bfloat16" and min(cards) >= FIRST_CAPABILITY["float16"] else "float32"
        raise ConfigError(
            f"this graphics card does not compute in {precision}",
            expected=f"compute capability {first[0]}.{first[1]} or higher",
            got=f"{min(cards)[0]}.{min(cards)[1]}",
            hint=f"--extract.precision {fallback}",
        )


def gpu_precisions(cards: Sequence[Capability]) -> list[str]:
    """The precisions that all cards compute in."""
    return ["float32", *(name for name, first in FIRST_CAPABILITY.items() if cards and min(cards) >= first)]


def free_memory() -> int | None:
    """Bytes that are free on the visible card with the least; None if nvidia-smi does not say."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(  # noqa: S603
            [*command, *(["-i", visible] if visible else [])], capture_output=True, text=True, check=True, timeout=20
        ).stdout
        return min(int(line) for line in output.split()) << 20
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def batch_for_memory(free: int, peak: Callable[[int], int]) -> int:
    """The largest power of two, up to 512, that fits into a share of the free memory.

    Args:
        free: bytes.
        peak: number of frames → bytes that computing them takes; called for a few frames, from which it is
            extrapolated.

    Raises:
        ConfigError: not even one frame fits.
    """
    few, more = MEASURED_BATCHES
    bytes_of_few = peak(few)
    per_frame = max(1.0, (peak(more) - bytes_of_few) / (more - few))
    fitting = (MEMORY_SHARE * free - bytes_of_few) / per_frame + few
    if fitting < 1:
        raise ConfigError(
            "the GPU's memory is too small for even one frame",
            expected=f"{(bytes_of_few + (1 - few) * per_frame) / MEMORY_SHARE / 1e9:.2g} GB",
            got=f"{free / 1e9:.2g} GB free",
            hint="smaller --frames.width and --frames.height, or CUDA_VISIBLE_DEVICES= to run on the CPU",
        )
    return int(min(MAX_BATCH, 2 ** math.floor(math.log2(fitting))))


def faster(plain: Any, compiled: Any, frames: Any) -> Any:
    """Whichever of two `tf.function`s takes less time for `frames`; the first if the second cannot be compiled."""

    def seconds(run: Any) -> float:
        run(frames)
        started = time.perf_counter()
        for _ in range(TIMED_CALLS):
            maps = run(frames)
        for values in maps.values():
            values.numpy()
        return time.perf_counter() - started

    try:
        return compiled if seconds(compiled) < seconds(plain) else plain
    except tf.errors.OpError:  # such as a missing ptxas
        return plain


def unused_card(root: Path = Path("/")) -> str | None:
    """Say in one line that there is an NVIDIA card that TensorFlow cannot use, and why; None if there is none.

    Args:
        root: where the system's files are.
    """
    driver = (root / "proc/driver/nvidia/version").exists()
    device = (root / "dev/nvidia0").exists()
    if not (driver or device or shutil.which("nvidia-smi", path=str(root / "usr/bin"))):
        return None
    if tf.config.list_physical_devices("GPU"):
        return None
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1"):
        why = f"CUDA_VISIBLE_DEVICES={hidden} hides it"
    elif sys.platform == "win32":
        why = "TensorFlow uses cards on Windows only inside WSL2"
    elif not tf.test.is_built_with_cuda():
        why = "this build of TensorFlow has no CUDA"
    elif not driver:
        why = "its driver is not loaded: nvidia-smi should list it"
    elif not device:
        why = "there is no /dev/nvidia0; a container needs --gpus all"
    elif find_spec("nvidia") is None:
        why = 'the CUDA libraries are missing: make setup GPU=1, or pip install "framebank[gpu]"'
    else:
        why = "its driver may be too old for these CUDA libraries: nvidia-smi shows its version"
    return f"There is a graphics card, but TensorFlow cannot use it: {why}"
