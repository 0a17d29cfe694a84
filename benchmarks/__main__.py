"""Run benchmarks: `python -m benchmarks [NAME …]`, by default all that take little time."""

from __future__ import annotations

import os
import platform
import sys

from benchmarks.timing import table
from features._common.console import quiet_imports

with quiet_imports():
    from benchmarks import (
        cluster,
        coverage,
        datasets,
        extraction,
        larger_than_memory,
        prediction,
        scaling,
        taps,
        training,
    )

BENCHMARKS = {"extraction": extraction, "prediction": prediction, "scaling": scaling, "training": training}
BY_NAME = {  # run only if named: they take minutes
    "cluster": cluster, "coverage": coverage, "datasets": datasets, "larger_than_memory": larger_than_memory,
    "taps": taps,
}  # fmt: skip

if __name__ == "__main__":
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    for name in sys.argv[1:] or BENCHMARKS:
        benchmark = (BENCHMARKS | BY_NAME)[name]
        print(f"\n{benchmark.__doc__}\n{table(benchmark.measure())}", flush=True)
