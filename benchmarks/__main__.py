"""What `make bench` runs: each comparison side by side in one run, printed as a ratio and written as JSON."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks import extraction, prediction, streams, training


def main() -> int:
    """Run every benchmark; results to the terminal and to benchmarks/results.json."""
    machine = f"{_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{machine}\n\nextraction, 1280x720 JPEGs to a finished store; parts: trunk and decoding, each alone")
    rows = []
    for name in extraction.CASES:
        rows.append(extraction.measure(name))
        print(f"\n{extraction.table(rows[-1])}")
    added = [streams.measure(case) for case in streams.CASES]
    print(f"\nextraction with flow and tracks against without, frames/s\n{streams.HEADING}")
    for row in added:
        print(streams.ROW.format(**row))
    slides = [prediction.measure(case) for case in prediction.CASES]
    print()
    prediction.show(slides)
    epochs = training.measure()
    print("\ntraining: the published model's heads from the store, beside plain model.fit and end to end")
    training.show(epochs)
    results = {
        "machine": machine, "extraction": rows, "streams": added, "prediction": slides, "training": epochs,
    }  # fmt: skip
    Path("benchmarks/results.json").write_text(json.dumps(results, indent=1))
    return 0


def _processor() -> str:
    """The processor's model name where the system says it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), platform.machine())


if __name__ == "__main__":
    sys.exit(main())
