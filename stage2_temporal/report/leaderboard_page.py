"""The leaderboard as text for the terminal, as CSV and as a self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from features._common.atomic import atomic_write
from features._common.console import text_table
from features._common.csv_table import write_csv_table
from stage2_temporal.report.page import duration, environment, number, read_script
from stage2_temporal.report.search_plots import SearchedSetting
from stage2_temporal.runs.folder import REPORT
from stage2_temporal.runs.leaderboard import METRICS_WITH_UNIT, Board, LeaderboardRow, format_setting

METRIC_TITLES = {
    "rmse": "RMSE", "mae": "MAE", "skill": "skill", "spread_ratio": "spread ratio", "ev": "EV", "ep": "EP",
    "coverage": "coverage", "width": "interval width", "interval_score": "interval score",
}  # fmt: skip
ALWAYS_SHOWN = ("skill", "spread_ratio")
ROUNDING = 1e-9  # a smaller deviation is only rounding
MAX_WIDTH = 60  # characters of a cell in the terminal


def leaderboard_text(boards: Iterable[Board], root: Path) -> str:
    """Every board as a table for the terminal; `root` is the folder of the runs."""
    tables = []
    for board in boards:
        titles = [*_titles(board), "run"]
        rows = [[*(_shortened(c.text + c.deviation) for c in _cells(board, r)), _link(r, root)[0]] for r in board.rows]
        tables.append(f"{board.title}\n\n{text_table(titles, rows, left=(1, 2, len(titles) - 1))}")
    return "\n\n".join(tables)


def write_leaderboard(boards: Sequence[Board], root: Path, settings: Sequence[SearchedSetting] = ()) -> Path:
    """Write `leaderboard.csv` and `leaderboard.html` into the folder of the runs; return the page's path.

    The page also shows the settings that a search varied.
    """
    metrics = [name for metric in METRIC_TITLES for name in (metric, f"{metric}_deviation")]
    lead = ["rank", "head", "settings", "target", "split", "folds", "examples", "runs"]
    columns = [*lead, *metrics, "parameters", "seconds", "pruned_epoch", "run", "report"]
    rows = [_csv_row(board, row, root) for board in boards for row in board.rows]
    with atomic_write(root / "leaderboard.csv") as temporary:
        write_csv_table(temporary, columns, rows)
    path = root / "leaderboard.html"
    with atomic_write(path) as temporary:
        temporary.write_text(leaderboard_html(boards, root, settings), encoding="utf-8")
    return path


def leaderboard_html(boards: Sequence[Board], root: Path, settings: Sequence[SearchedSetting] = ()) -> str:
    """The page: complete without JavaScript, sortable with it; it loads nothing."""
    pages = []
    for board in boards:
        rows = []
        for row in board.rows:
            folder, report = _link(row, root)
            rows.append((row, [*_cells(board, row), TableCell(folder, folder, link=report, kind="name run")]))
        pages.append({"board": board, "titles": [*_titles(board), "report"], "rows": rows})
    template, script = environment().get_template("leaderboard.html.jinja"), read_script("leaderboard.js")
    return template.render(boards=pages, script=script, searched=settings)


@dataclass(frozen=True)
class TableCell:
    """A cell of a table; a sort key that is None comes last in either direction, `kind` is its CSS classes."""

    text: str
    key: float | str | None = None
    deviation: str = ""
    link: str | None = None
    kind: str = ""


def _titles(board: Board) -> list[str]:
    target_unit = f" [{board.unit}]" if board.unit else ""
    units = {"ev": " [(m/s)²]", "ep": " [m²]"} | dict.fromkeys(METRICS_WITH_UNIT, target_unit)
    metrics = [METRIC_TITLES[name] + units.get(name, "") for name in _shown_metrics(board)]
    return ["rank", "head", "settings", "runs", *metrics, "parameters", "trained in"]


def _cells(board: Board, row: LeaderboardRow) -> list[TableCell]:
    settings = _settings(row)
    return [
        TableCell("pruned" if row.pruned else str(row.rank or "–"), row.rank),
        TableCell(row.head, row.head, kind="name"),
        TableCell(settings, settings or None, kind="name settings"),
        TableCell(str(len(row.runs) or ""), len(row.runs) or None),
        *(_metric_cell(*row.metrics.get(name, (None, None))) for name in _shown_metrics(board)),
        TableCell("" if row.parameters is None else f"{row.parameters:,}", row.parameters),
        TableCell("" if row.seconds is None else duration(row.seconds), row.seconds),
    ]


def _metric_cell(mean: float | None, deviation: float | None) -> TableCell:
    return TableCell(number(mean), mean, f" ± {number(deviation)}" if deviation and deviation > ROUNDING else "")


def _shown_metrics(board: Board) -> list[str]:
    return [name for name in METRIC_TITLES if name in ALWAYS_SHOWN or any(name in row.metrics for row in board.rows)]


def _settings(row: LeaderboardRow) -> str:
    settings = [f"{name} {format_setting(value)}" for name, value in row.settings.items()]
    return ", ".join([*settings, *([f"stopped after epoch {row.pruned}"] if row.pruned else [])])


def _link(row: LeaderboardRow, root: Path) -> tuple[str, str | None]:
    """The folder of the row's first run with a report, and the link to it; without a report, only the first folder."""
    if not row.runs:
        return "", None
    reported = next((path for path in row.runs if (path / REPORT).is_file()), None)
    folder = (reported or row.runs[0]).relative_to(root).as_posix()
    return folder, None if reported is None else quote(f"{folder}/{REPORT}")


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_WIDTH else f"{text[: MAX_WIDTH - 1]}…"


def _csv_row(board: Board, row: LeaderboardRow, root: Path) -> list[object]:
    metrics = [row.metrics.get(name, (None, None)) for name in METRIC_TITLES]
    return [
        *(row.rank, row.head, _settings(row), " ".join(board.target)),
        *(board.split, board.folds, board.examples, len(row.runs)),
        *(value for pair in metrics for value in pair),
        *(row.parameters, row.seconds, row.pruned, *_link(row, root)),
    ]
