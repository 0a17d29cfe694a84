"""Run benchmarks and print their tables: `python -m benchmarks [extraction | prediction | scaling | training ...]`."""

from __future__ import annotations

import os
import platform
import sys

from benchmarks.timing import table
from features._common.console import quiet_imports

with quiet_imports():
    from benchmarks import extraction, prediction, scaling, training

BENCHMARKS = {"extraction": extraction, "prediction": prediction, "scaling": scaling, "training": training}

if __name__ == "__main__":
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    for name in sys.argv[1:] or BENCHMARKS:
        print(f"\n{BENCHMARKS[name].__doc__}\n{table(BENCHMARKS[name].measure())}", flush=True)
