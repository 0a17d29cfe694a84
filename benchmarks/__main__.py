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
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    rows = [extraction.measure(name) for name in ("EfficientNetLite0", "InceptionResNetV2")]
    print(f"{machine}\n\nextraction, 1280x720 JPEG to a finished store, frames/s")
    print(f"{'backbone':<20}{'decode':>8}{'trunk':>8}{'whole':>8}{'whole/parts':>13}")
    for row in rows:
        print(
            "{backbone:<20}{decode_fps:>8.0f}{trunk_fps:>8.1f}{whole_fps:>8.1f}{whole_over_parts:>13.3f}".format(**row)
        )
    added = [streams.measure(case) for case in streams.CASES]
    print(f"\nextraction with flow and tracks against without, frames/s\n{streams.HEADING}")
    for row in added:
        print(streams.ROW.format(**row))
    slides = [prediction.measure(case) for case in prediction.CASES]
    print("\nsliding over 200 frames against their trunk passes alone, frames per CPU second")
    print(f"{'case':<52}{'trunk':>8}{'sliding':>9}{'sliding/trunk':>15}")
    for row in slides:
        print("{case:<52}{trunk_fps:>8.1f}{sliding_fps:>9.1f}{sliding_over_trunk:>15.3f}".format(**row))
    epochs = training.measure()
    print("\ntraining: the published model's heads from the store, beside plain model.fit and end to end")
    training.show(epochs)
    results = {
        "machine": machine, "extraction": rows, "streams": added, "prediction": slides, "training": epochs,
    }  # fmt: skip
    Path("benchmarks/results.json").write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
