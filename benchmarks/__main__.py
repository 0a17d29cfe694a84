"""Run all benchmarks (`make bench`): print each comparison, and write all figures to benchmarks/results.json."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks import extraction, prediction, streams, training


def main() -> int:
    """Run every benchmark."""
    machine = f"{_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    results: dict[str, Any] = {"machine": machine, "extraction": {}}
    print(f"{machine}\n\nExtraction from 1280x720 JPEGs, compared with Keras' predict and with its own parts")
    for backbone in extraction.CLIPS:
        results["extraction"][backbone] = extraction.measure(backbone)
        print(f"\n{extraction.table(backbone, results['extraction'][backbone])}", flush=True)
    results["streams"] = [streams.measure(name) for name in streams.BACKBONES]
    print(f"\nExtraction with optical flow and tracks\n\n{streams.table(results['streams'])}", flush=True)
    results["prediction"] = [prediction.measure(case) for case in prediction.CASES]
    print(f"\nSliding windows, compared with the trunk alone\n\n{prediction.table(results['prediction'])}", flush=True)
    results["training"] = training.measure()
    print(f"\nThe published model from the store, by plain fit and end to end\n\n{training.table(results['training'])}")
    Path("benchmarks/results.json").write_text(json.dumps(results, indent=1))
    return 0


def _processor() -> str:
    """The processor's model name, if the system gives one."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    sys.exit(main())
