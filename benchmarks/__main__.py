"""Run benchmarks, print their tables, and write the figures to benchmarks/results.json.

python -m benchmarks [extraction | streams | prediction | training ...]
"""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path

from benchmarks.timing import table
from features._common.quiet_imports import quiet_imports

with quiet_imports():
    from benchmarks import extraction, prediction, streams, training

BENCHMARKS = {"extraction": extraction, "streams": streams, "prediction": prediction, "training": training}


def main() -> None:
    """Run the benchmarks named on the command line; all by default."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.is_file() else []
    processor = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())
    machine = f"{processor}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(machine)
    rows = {}
    for name in sys.argv[1:] or BENCHMARKS:
        rows[name] = BENCHMARKS[name].measure()
        print(f"\n{BENCHMARKS[name].__doc__}\n{table(rows[name])}", flush=True)
    Path("benchmarks/results.json").write_text(json.dumps({"machine": machine} | rows, indent=1))


if __name__ == "__main__":
    main()
