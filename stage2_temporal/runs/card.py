"""A run's card, README.md: what the model is, how good it is beside the constant, its limits, and how to load it.

The head of the file is YAML with the keys that model hubs read (Hugging Face, "Model Card Metadata"). Every figure in a
card is one of metrics.json, so that the two cannot disagree.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from features._common.atomic import atomic_write
from features._common.console import text_table
from features.backbone_names import is_imported
from stage2_temporal.evaluation.metrics import ComponentScores
from stage2_temporal.runs.results import VERDICT_SPLITS, Metrics, read_metrics
from stage2_temporal.runs.tables import format_scores

CARD = "README.md"
RUN_TAGS = ("framebank", "velocity-estimation", "dash-cam", "video", "regression")
METRIC_NAMES = {"rmse": "RMSE", "mae": "MAE", "skill": "skill over the constant predictor"}


def write_card(run: Path) -> Path:
    """Write README.md into a run's folder from its metrics.json, and return its path; DataError if there is none."""
    path = run / CARD
    text = run_card(run.resolve().name, read_metrics(run))
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def run_card(name: str, metrics: Metrics) -> str:
    """The card of a run."""
    sections = [
        _front_matter(name, metrics),
        f"# {_plain(name)}",
        f"Predicts {_targets(metrics)} from {_what_it_reads(metrics)}. {_plain(metrics.verdict)}",
        "## Data\n\n" + _lines(_data(metrics)),
        "## Recipe\n\n" + _lines(_recipe(metrics)),
        "## Metrics\n\nEvery figure stands beside that of the constant predictor, which always answers the mean of the "
        "training labels and has skill zero.\n\n" + _scores_table(metrics),
        "## Intervals\n\n" + _intervals(metrics),
        "## Limits\n\n" + _lines(_limits(metrics)),
        "## How to load it\n\n```python\n" + _loading(name, metrics) + "\n```",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(name: str, metrics: Metrics) -> str:
    """YAML: all values are JSON, which YAML includes, so that no name can break it."""
    split = next(s for s in VERDICT_SPLITS if s in metrics.splits)
    scores = metrics.splits[split].model
    figures = [] if metrics.mixed_units else [("rmse", scores.rmse), ("mae", scores.mae)]
    figures.append(("skill", scores.skill))
    results = [
        {"type": kind, "name": METRIC_NAMES[kind], "value": float(_figure(value))}
        for kind, value in figures
        if math.isfinite(value)
    ]
    index = {
        "name": name,
        "results": [
            {
                "task": {"type": "video-regression", "name": f"{', '.join(metrics.target)} from video"},
                "dataset": {"type": metrics.data.layout, "name": metrics.data.name, "split": split},
                "metrics": results,
            }
        ],
    }
    lines = {"library_name": "keras", "tags": [*RUN_TAGS, metrics.head], "model-index": [index]}
    return "\n".join(
        ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in lines.items()), "---"]
    )


def _targets(metrics: Metrics) -> str:
    units = [metrics.unit_of(k) for k in range(len(metrics.target))]
    return ", ".join(
        _code(t) + (f" in {_plain(unit)}" if unit else "") for t, unit in zip(metrics.target, units, strict=True)
    )


def _what_it_reads(metrics: Metrics) -> str:
    streams = ", ".join(map(_code, metrics.store.streams)) or "the vehicle's track"
    return f"{streams} of dash-cam clips, with the head {_code(metrics.head)}"


def _data(metrics: Metrics) -> Iterator[str]:
    yield f"Data set {_code(metrics.data.name)}, layout {_code(metrics.data.layout)}"
    counts = ", ".join(f"{split.examples} {_plain(name)}" for name, split in metrics.splits.items())
    yield f"Labelled windows: {counts}"
    store = metrics.store
    yield f"Store with {store.sequences} sequences and {store.frames} frames, fingerprint {_code(store.fingerprint)}"
    dropped = metrics.dropped
    yield f"Labels left out: {dropped.window} whose window does not fit, {dropped.unknown} whose target is unknown"


def _recipe(metrics: Metrics) -> Iterator[str]:
    recipe: dict[str, Any] = metrics.recipe
    yield f"Backbone {_code(metrics.backbone)}, weights {_code(Path(metrics.weights).name)}"
    if recipe.get("weights_digest"):
        what = "features' files" if is_imported(metrics.backbone) else "weights"
        yield f"Digest of the {what}: {_code(recipe['weights_digest'])}"
    if recipe and not is_imported(metrics.backbone):
        width, height = recipe["size"]
        yield f"Frames of {width} × {height} px, {_code(recipe['colour'])}, resized by {_code(recipe['interpolation'])}"
        yield f"Cut {_plain(str(recipe.get('cut', 'unknown')))}, computed in {_code(recipe['precision'])}"
    if metrics.window is not None:
        spacing = "" if metrics.interval is None else f", {_figure(metrics.interval)} s apart"
        yield f"Windows of {metrics.window} frames{spacing}"
    parameters = metrics.parameters
    yield f"Weights: {parameters.trainable} trainable, {parameters.frozen} frozen, {parameters.total} in total"
    yield f"Epochs: {metrics.epochs}, of which number {metrics.best_epoch} is kept; {_figure(metrics.seconds)} s"
    yield "All settings: `config.toml`"


def _scores_table(metrics: Metrics) -> str:
    unit = f" [{metrics.unit}]" if metrics.unit else ""
    header = ["split", "examples", "target", "predictor", f"RMSE{unit}", f"MAE{unit}", "skill", "spread ratio"]
    rows: list[list[str]] = []
    for name, split in metrics.splits.items():
        for predictor, all_scores in (("model", split.model), ("constant", split.constant)):
            parts: dict[str, ComponentScores] = dict(all_scores.components)
            if len(parts) > 1 and not metrics.mixed_units:  # errors of different units have no sum
                parts = {"all": all_scores, **parts}
            for target, scores in parts.items():
                rows.append([_plain(name), str(split.examples), _plain(target), predictor, *format_scores(scores)])
    return text_table(header, rows, left=(0, 2, 3), markdown=True)


def _intervals(metrics: Metrics) -> str:
    rows = [
        [_plain(name), _plain(target), *(_figure(value) for value in (scores.coverage, scores.width, scores.score))]
        for name, split in metrics.splits.items()
        for target, scores in (split.intervals or {}).items()
    ]
    if not rows or metrics.interval_level is None:
        return "None: too few sequences were left to learn them from."
    lead = f"Each prediction has an interval that is to contain the truth with probability {metrics.interval_level:g}."
    return f"{lead}\n\n" + text_table(
        ["split", "target", "coverage", "mean width", "interval score"], rows, left=(0, 1), markdown=True
    )


def _limits(metrics: Metrics) -> Iterator[str]:
    if not metrics.trained_backbone:
        yield "**The backbone's weights are random (UNTRAINED): this run is only for tests.**"
    if metrics.no_better_than_constant:
        yield "**It is no better than a constant; do not use it.**"
    if metrics.interrupted:
        yield "Training was interrupted before its last epoch."
    yield (
        "It holds for footage like the training's: other cameras, mountings, frame rates, countries or weather are not "
        "covered by the figures above, nor by the intervals."
    )
    unlike = {name: s.unlike_training for name, s in metrics.splits.items() if s.unlike_training is not None}
    if unlike:
        shares = ", ".join(f"{_figure(share)} of {_plain(name)}" for name, share in unlike.items())
        yield f"Share of examples flagged as unlike the training's: {shares}"
    else:
        yield "Footage unlike the training's is not flagged."
    if is_imported(metrics.backbone):
        yield "Its features were computed by another tool, so framebank cannot predict images with it."
    yield "It is research software, not a measuring instrument: nothing that safety depends on may rely on it."


def _loading(name: str, metrics: Metrics) -> str:
    keras_model = (
        "import keras\n\n"
        'model = keras.models.load_model("model.keras")  # from stored features to the target\n'
        "print(model.input_shape, model.output_shape)"
    )
    if is_imported(metrics.backbone):
        return keras_model
    return (
        "import framebank as fb\n\n"
        f'result = fb.predict({json.dumps(name, ensure_ascii=False)}, "PATH")  # this folder, in runs/; '
        "a video, folder of frames or data set\n"
        "print(result.files)  # predictions with intervals, as CSV"
    )


def _lines(lines: Iterator[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _figure(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"


def _code(text: str) -> str:
    """A name as code, in which Markdown and HTML mean nothing."""
    return f"`{' '.join(text.split()).replace('`', chr(39)) or ' '}`"


def _plain(text: str) -> str:
    """A name as text without markup."""
    return re.sub(r"([\\|*`\[\]<>#&])", r"\\\1", " ".join(text.split()))
