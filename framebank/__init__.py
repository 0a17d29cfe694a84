"""framebank: dash-cam clips in, velocity predictions out.

    import framebank as fb

    cfg = fb.read_config("configs/sample.toml")
    store = fb.extract(cfg, "stores/sample.h5")
    X, y, groups = fb.load_examples(store, cfg)
    head = fb.heads.Ridge(difference=True).fit(X, y)

Each name is imported when it is first used, so that `import framebank` loads neither TensorFlow nor OpenCV.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from features.config import Config as Config
    from features.config import read_config as read_config
    from features.errors import FramebankError as FramebankError
    from features.store import Store as Store
    from framebank.workflows import extract as extract
    from framebank.workflows import predict as predict
    from framebank.workflows import train as train
    from stage2_temporal import heads as heads
    from stage2_temporal.data.datasets import tf_dataset as tf_dataset
    from stage2_temporal.data.datasets import torch_dataset as torch_dataset
    from stage2_temporal.data.examples import load_examples as load_examples

    __version__: str

_MODULES = {
    "Config": "features.config",
    "FramebankError": "features.errors",
    "Store": "features.store",
    "extract": "framebank.workflows",
    "heads": "stage2_temporal.heads",
    "load_examples": "stage2_temporal.data.examples",
    "predict": "framebank.workflows",
    "read_config": "features.config",
    "tf_dataset": "stage2_temporal.data.datasets",
    "torch_dataset": "stage2_temporal.data.datasets",
    "train": "framebank.workflows",
}
__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name == "__version__":
        return metadata.version("framebank")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from features._common.console import quiet_imports

    with quiet_imports():
        module = importlib.import_module(_MODULES[name])
    globals()[name] = module if name == "heads" else getattr(module, name)
    return globals()[name]


def __dir__() -> list[str]:
    return __all__
