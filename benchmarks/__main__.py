"""Run benchmarks: `python -m benchmarks [extraction | prediction | scaling | training | cluster]`."""

from __future__ import annotations

import os
import platform
import sys

from benchmarks.timing import table
from features._common.console import quiet_imports

with quiet_imports():
    from benchmarks import cluster, extraction, prediction, scaling, training

BENCHMARKS = {"extraction": extraction, "prediction": prediction, "scaling": scaling, "training": training}
BY_NAME = {"cluster": cluster}  # run only if named, since it takes minutes

if __name__ == "__main__":
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    for name in sys.argv[1:] or BENCHMARKS:
        benchmark = (BENCHMARKS | BY_NAME)[name]
        print(f"\n{benchmark.__doc__}\n{table(benchmark.measure())}", flush=True)
