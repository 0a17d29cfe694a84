"""The leaderboard as text for the terminal, as CSV and as a self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from features._common.atomic import atomic_write
from features._common.console import text_table
from features._common.csv_table import format_number, write_csv_table
from stage2_temporal.report.page import duration, environment, number
from stage2_temporal.runs.folder import REPORT
from stage2_temporal.runs.leaderboard import (
    METRICS_WITH_UNIT,
    Board,
    LeaderboardRow,
    MeanAndDeviation,
    format_setting,
)

METRIC_TITLES = {"rmse": "RMSE", "mae": "MAE", "skill": "skill", "spread_ratio": "spread ratio", "ev": "EV", "ep": "EP"}
ALWAYS_SHOWN = ("skill", "spread_ratio")
ROUNDING = 1e-9  # a smaller deviation is only rounding
MAX_SETTINGS_WIDTH = 60  # characters in the terminal


def leaderboard_text(boards: Iterable[Board]) -> str:
    """Every board as a table for the terminal."""
    return "\n\n".join(f"{board.title}\n\n{_text_table(board)}" for board in boards)


def write_leaderboard(boards: Sequence[Board], root: Path) -> Path:
    """Write `leaderboard.csv` and `leaderboard.html` into the folder of the runs; return the page's path."""
    metrics = [name for metric in METRIC_TITLES for name in (metric, f"{metric}_deviation")]
    lead = ["rank", "head", "settings", "target", "split", "folds", "examples", "runs"]
    columns = [*lead, *metrics, "parameters", "seconds", "run", "report"]
    rows = [_csv_row(board, row, root) for board in boards for row in board.rows]
    with atomic_write(root / "leaderboard.csv") as temporary:
        write_csv_table(temporary, columns, rows)
    path = root / "leaderboard.html"
    with atomic_write(path) as temporary:
        temporary.write_text(leaderboard_html(boards, root), encoding="utf-8")
    return path


def leaderboard_html(boards: Sequence[Board], root: Path) -> str:
    """The page: complete without JavaScript, sortable with it; it loads nothing."""
    pages = [
        {
            "board": board,
            "titles": [
                "rank",
                "head",
                "settings",
                "runs",
                *_metric_titles(board),
                "parameters",
                "trained in",
                "report",
            ],
            "rows": [(row, _cells(board, row, root)) for row in board.rows],
        }
        for board in boards
    ]
    return environment().get_template("leaderboard.html.jinja").render(boards=pages)


@dataclass(frozen=True)
class TableCell:
    """A cell of the page; an empty sort key comes last in either direction, `kind` is its CSS classes."""

    text: str
    deviation: str = ""
    key: str = ""
    link: str | None = None
    kind: str = ""


def _cells(board: Board, row: LeaderboardRow, root: Path) -> tuple[TableCell, ...]:
    rank, runs, parameters = _or_empty(row.rank), str(len(row.runs) or ""), _or_empty(row.parameters)
    trained_in = "" if row.seconds is None else duration(row.seconds)
    folder, report = _link(row, root)
    return (
        TableCell(rank or "–", key=rank),
        TableCell(row.head, key=row.head, kind="name"),
        TableCell(_settings(row), key=_settings(row), kind="name settings"),
        TableCell(runs, key=runs),
        *(_metric_cell(row.metrics.get(name)) for name in _shown_metrics(board)),
        TableCell(_or_empty(row.parameters, ","), key=parameters),
        TableCell(trained_in, key="" if row.seconds is None else format_number(row.seconds)),
        TableCell(folder, key=folder, link=report, kind="name run"),
    )


def _or_empty(value: float | None, spec: str = "") -> str:
    return "" if value is None else format(value, spec)


def _metric_cell(value: MeanAndDeviation | None) -> TableCell:
    if value is None:
        return TableCell("–")
    mean, deviation = value
    text = f" ± {number(deviation)}" if deviation and deviation > ROUNDING else ""
    return TableCell(number(mean), text, format_number(mean))


def _shown_metrics(board: Board) -> list[str]:
    return [name for name in METRIC_TITLES if name in ALWAYS_SHOWN or any(name in row.metrics for row in board.rows)]


def _metric_titles(board: Board) -> list[str]:
    target_unit = f" [{board.unit}]" if board.unit else ""
    units = {"ev": " [(m/s)²]", "ep": " [m²]"} | dict.fromkeys(METRICS_WITH_UNIT, target_unit)
    return [METRIC_TITLES[name] + units.get(name, "") for name in _shown_metrics(board)]


def _settings(row: LeaderboardRow) -> str:
    return ", ".join(f"{name} {format_setting(value)}" for name, value in row.settings.items())


def _link(row: LeaderboardRow, root: Path) -> tuple[str, str | None]:
    """The folder of the row's first run with a report, and the link to it; without a report, only the first folder."""
    if not row.runs:
        return "", None
    reported = next((path for path in row.runs if (path / REPORT).is_file()), None)
    folder = (reported or row.runs[0]).relative_to(root).as_posix()
    return folder, None if reported is None else quote(f"{folder}/{REPORT}")


def _text_table(board: Board) -> str:
    header = ["rank", "head", "settings", "runs", *_metric_titles(board), "parameters", "seconds"]
    rows = []
    for row in board.rows:
        settings = _settings(row)
        if len(settings) > MAX_SETTINGS_WIDTH:
            settings = f"{settings[: MAX_SETTINGS_WIDTH - 1]}…"
        metrics = [_metric_cell(row.metrics.get(name)) for name in _shown_metrics(board)]
        rows.append(
            [
                _or_empty(row.rank),
                row.head,
                settings,
                str(len(row.runs) or ""),
                *(f"{cell.text}{cell.deviation}" for cell in metrics),
                _or_empty(row.parameters, ","),
                _or_empty(row.seconds, ".1f"),
            ]
        )
    return text_table(header, rows, left=(1, 2))


def _csv_row(board: Board, row: LeaderboardRow, root: Path) -> list[str]:
    folder, report = _link(row, root)
    metrics = [row.metrics.get(name, (None, None)) for name in METRIC_TITLES]
    return [
        _or_empty(row.rank),
        row.head,
        _settings(row),
        " ".join(board.target),
        board.split,
        str(board.folds),
        str(board.examples),
        str(len(row.runs)),
        *("" if v is None else format_number(v) for pair in metrics for v in pair),
        _or_empty(row.parameters),
        "" if row.seconds is None else format_number(row.seconds),
        folder,
        report or "",
    ]
