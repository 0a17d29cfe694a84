"""The leaderboard as text, CSV and one self-contained page."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from features._common.atomic import atomic_write
from stage2_temporal.report.page import duration, environment, number
from stage2_temporal.runs.folder import REPORT
from stage2_temporal.runs.leaderboard import CONSTANT, IN_UNIT, Board, LeaderboardRow, Value, format_setting
from stage2_temporal.runs.tables import aligned, cell, write_csv

FIGURE_TITLES = {"rmse": "RMSE", "mae": "MAE", "skill": "skill", "spread_ratio": "spread ratio", "ev": "EV", "ep": "EP"}
ALWAYS = ("skill", "spread_ratio")
ROUNDING = 1e-9  # a smaller deviation is rounding
WIDEST = 60  # characters of settings in the terminal


def leaderboard_text(boards: Iterable[Board]) -> str:
    """Every board as a table for the terminal."""
    return "\n\n".join(f"{board.title}\n{_table(board)}" for board in boards)


def write_leaderboard(boards: Sequence[Board], root: Path) -> Path:
    """Write `leaderboard.csv` and `leaderboard.html` into a folder; the page's path.

    Args:
        root: the runs' folder, which the links are relative to.
    """
    with atomic_write(root / "leaderboard.csv") as temporary:
        write_csv(temporary, _csv_names(), (_csv_row(board, row, root) for board in boards for row in board.rows))
    path = root / "leaderboard.html"
    with atomic_write(path) as temporary:
        temporary.write_text(leaderboard_html(boards, root), encoding="utf-8")
    return path


def leaderboard_html(boards: Sequence[Board], root: Path) -> str:
    """The page: readable without JavaScript, sortable with it, nothing is fetched."""
    return environment().get_template("leaderboard.html.jinja").render(boards=[_page(board, root) for board in boards])


@dataclass(frozen=True)
class TableCell:
    """A cell of the page.

    Attributes:
        text: what one reads.
        deviation: the part of it that is set smaller.
        key: what it is sorted by; empty is last, whichever way.
        link: where it leads to.
        kind: class names.
    """

    text: str
    deviation: str = ""
    key: str = ""
    link: str | None = None
    kind: str = ""


@dataclass(frozen=True)
class BoardPage:
    """A board, ready to be set."""

    board: Board
    names: tuple[str, ...]
    rows: tuple[tuple[LeaderboardRow, tuple[TableCell, ...]], ...]


def _page(board: Board, root: Path) -> BoardPage:
    return BoardPage(
        board,
        ("rank", "head", "settings", "runs", *_figure_names(board), "parameters", "trained in", "report"),
        tuple((row, _cells(board, row, root)) for row in board.rows),
    )


def _cells(board: Board, row: LeaderboardRow, root: Path) -> tuple[TableCell, ...]:
    constant = row.head == CONSTANT
    folder, report = _link(row, root)
    return (
        TableCell("–" if row.rank is None else str(row.rank), key="" if row.rank is None else str(row.rank)),
        TableCell(row.head, key=row.head, kind="name"),
        TableCell(_settings(row), key=_settings(row), kind="name settings"),
        TableCell("" if constant else str(len(row.runs)), key="" if constant else str(len(row.runs))),
        *(_figure(row.figures.get(name)) for name in _figures_of(board)),
        TableCell(
            "" if row.parameters is None else f"{row.parameters:,}", key=cell(row.parameters or 0) if row.runs else ""
        ),
        TableCell(
            "" if row.seconds is None else duration(row.seconds), key="" if row.seconds is None else cell(row.seconds)
        ),
        TableCell(folder, key=folder, link=report, kind="name run"),
    )


def _figure(value: Value | None) -> TableCell:
    if value is None:
        return TableCell("–")
    mean, deviation = value
    return TableCell(number(mean), f" ± {number(deviation)}" if deviation and deviation > ROUNDING else "", cell(mean))


def _figures_of(board: Board) -> list[str]:
    return [name for name in FIGURE_TITLES if name in ALWAYS or any(name in row.figures for row in board.rows)]


def _figure_names(board: Board) -> list[str]:
    units = {"ev": " [(m/s)²]", "ep": " [m²]"} | dict.fromkeys(IN_UNIT, f" [{board.unit}]" if board.unit else "")
    return [FIGURE_TITLES[name] + units.get(name, "") for name in _figures_of(board)]


def _settings(row: LeaderboardRow) -> str:
    return ", ".join(f"{key} {format_setting(value)}" for key, value in row.settings.items())


def _link(row: LeaderboardRow, root: Path) -> tuple[str, str | None]:
    """A row's first run as one names it, and the way to its report where it has one."""
    if not row.runs:
        return "", None
    reported = next((path for path in row.runs if (path / REPORT).is_file()), None)
    name = (reported or row.runs[0]).relative_to(root).as_posix()
    return name, None if reported is None else quote(f"{name}/{REPORT}")


def _table(board: Board) -> str:
    rows = [["rank", "head", "settings", "runs", *_figure_names(board), "parameters", "seconds"]]
    for row in board.rows:
        settings = _settings(row)
        rows.append(
            [
                "" if row.rank is None else str(row.rank),
                row.head,
                settings if len(settings) <= WIDEST else f"{settings[: WIDEST - 1]}…",
                str(len(row.runs) or ""),
                *(f"{c.text}{c.deviation}" for c in (_figure(row.figures.get(name)) for name in _figures_of(board))),
                "" if row.parameters is None else f"{row.parameters:,}",
                "" if row.seconds is None else f"{row.seconds:.1f}",
            ]
        )
    return aligned(rows, left=(1, 2))


def _csv_names() -> list[str]:
    figures = [name for figure in FIGURE_TITLES for name in (figure, f"{figure}_deviation")]
    where = ["rank", "head", "settings", "target", "split", "folds", "examples", "runs"]
    return [*where, *figures, "parameters", "seconds", "run", "report"]


def _csv_row(board: Board, row: LeaderboardRow, root: Path) -> list[str]:
    folder, report = _link(row, root)
    figures = [row.figures.get(name, (None, None)) for name in FIGURE_TITLES]
    return [
        "" if row.rank is None else str(row.rank),
        row.head,
        _settings(row),
        " ".join(board.target),
        board.split,
        str(board.folds),
        str(board.examples),
        str(len(row.runs)),
        *("" if v is None else cell(v) for pair in figures for v in pair),
        "" if row.parameters is None else str(row.parameters),
        "" if row.seconds is None else cell(row.seconds),
        folder,
        os.fspath(report or ""),
    ]
