"""Two taps and the map at the cut from one pass, compared with the cut alone: whole extractions, storing included.

Seconds are per frame: 1280x720 JPEGs of the sample set, resized to 320x180, with the settings of configs/sample.toml.
A small store is packed, which writes every map twice; one above `extract.packed_gb` stays in shards.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.extraction import extraction_timer
from benchmarks.timing import Row, Timer, compare
from features.config import read_config
from stage1_extract.datasets import scan
from stage1_extract.engine_setup import new_engine
from stage1_extract.sample import render_sample_set

CONFIG = Path(__file__).parents[1] / "configs" / "sample.toml"
CLIPS, FRAMES = 128, 8
ALONE, WITH_TAPS = "the cut alone", "two taps and the cut"
FORMS = {"packed": 2.0, "in shards": 0.0}  # packed_gb


def measure(rounds: int = 7) -> list[Row]:
    """One row per set of maps."""
    with tempfile.TemporaryDirectory() as folder:
        data, store = Path(folder, "data"), Path(folder, "store.h5")
        render_sample_set(data, seed=1, train=CLIPS, validation=0, test=0)
        config = read_config(CONFIG).with_settings({"data.path": str(data), "extract.motion": False})
        timers: dict[str, Timer] = {}
        for name, changes in ((ALONE, {"backbone.taps": ()}), (WITH_TAPS, {})):
            changed = config.with_settings(changes)
            engine = new_engine(changed, store, None, scan(changed.data).clips)
            for form, packed_gb in FORMS.items():
                stored = changed.with_settings({"extract.packed_gb": packed_gb})
                timers[f"{name}, {form}"] = extraction_timer(stored, store, engine, CLIPS * FRAMES)
        return compare(timers, {f"{WITH_TAPS}, {form}": (f"{ALONE}, {form}",) for form in FORMS}, rounds)
