"""The leaderboard as text, CSV and one self-contained page."""

from __future__ import annotations

import os
from collections.abc import Iterable
from collections.abc import Sequence as Listed
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from features._common.atomic import replacing
from stage2_temporal.report.page import duration, environment, number
from stage2_temporal.runs.folder import REPORT
from stage2_temporal.runs.leaderboard import CONSTANT, IN_UNIT, Board, Row, Value, word
from stage2_temporal.runs.tables import aligned, cell, write_csv

COLUMNS = {"rmse": "RMSE", "mae": "MAE", "skill": "skill", "spread_ratio": "spread ratio", "ev": "EV", "ep": "EP"}
ALWAYS = ("skill", "spread_ratio")
NOISE = 1e-9  # a smaller deviation is rounding
WIDEST = 60  # characters of settings in the terminal


def text(boards: Iterable[Board]) -> str:
    """Every board as a table for the terminal."""
    return "\n\n".join(f"{board.title}\n{_table(board)}" for board in boards)


def write(boards: Listed[Board], root: Path) -> Path:
    """Write `leaderboard.csv` and `leaderboard.html` into a folder; the page's path.

    Args:
        root: the runs' folder, which the links are relative to.
    """
    with replacing(root / "leaderboard.csv") as temporary:
        write_csv(temporary, _csv_names(), (_csv_row(board, row, root) for board in boards for row in board.rows))
    path = root / "leaderboard.html"
    with replacing(path) as temporary:
        temporary.write_text(html(boards, root), encoding="utf-8")
    return path


def html(boards: Listed[Board], root: Path) -> str:
    """The page: readable without JavaScript, sortable with it, nothing is fetched."""
    return environment().get_template("leaderboard.html.jinja").render(boards=[_page(board, root) for board in boards])


@dataclass(frozen=True)
class Cell:
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
class Page:
    """A board, ready to be set."""

    board: Board
    names: tuple[str, ...]
    rows: tuple[tuple[Row, tuple[Cell, ...]], ...]


def _page(board: Board, root: Path) -> Page:
    return Page(
        board,
        ("rank", "head", "settings", "runs", *_figure_names(board), "parameters", "trained in", "report"),
        tuple((row, _cells(board, row, root)) for row in board.rows),
    )


def _cells(board: Board, row: Row, root: Path) -> tuple[Cell, ...]:
    constant = row.head == CONSTANT
    folder, report = _link(row, root)
    return (
        Cell("–" if row.rank is None else str(row.rank), key="" if row.rank is None else str(row.rank)),
        Cell(row.head, key=row.head, kind="name"),
        Cell(_settings(row), key=_settings(row), kind="name settings"),
        Cell("" if constant else str(len(row.runs)), key="" if constant else str(len(row.runs))),
        *(_figure(row.figures.get(name)) for name in _figures_of(board)),
        Cell(
            "" if row.parameters is None else f"{row.parameters:,}", key=cell(row.parameters or 0) if row.runs else ""
        ),
        Cell(
            "" if row.seconds is None else duration(row.seconds), key="" if row.seconds is None else cell(row.seconds)
        ),
        Cell(folder, key=folder, link=report, kind="name run"),
    )


def _figure(value: Value | None) -> Cell:
    if value is None:
        return Cell("–")
    mean, deviation = value
    return Cell(number(mean), f" ± {number(deviation)}" if deviation and deviation > NOISE else "", cell(mean))


def _figures_of(board: Board) -> list[str]:
    return [name for name in COLUMNS if name in ALWAYS or any(name in row.figures for row in board.rows)]


def _figure_names(board: Board) -> list[str]:
    units = {"ev": " [(m/s)²]", "ep": " [m²]"} | dict.fromkeys(IN_UNIT, f" [{board.unit}]" if board.unit else "")
    return [COLUMNS[name] + units.get(name, "") for name in _figures_of(board)]


def _settings(row: Row) -> str:
    return ", ".join(f"{key} {word(value)}" for key, value in row.settings.items())


def _link(row: Row, root: Path) -> tuple[str, str | None]:
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
    figures = [name for figure in COLUMNS for name in (figure, f"{figure}_deviation")]
    where = ["rank", "head", "settings", "target", "split", "folds", "examples", "runs"]
    return [*where, *figures, "parameters", "seconds", "run", "report"]


def _csv_row(board: Board, row: Row, root: Path) -> list[str]:
    folder, report = _link(row, root)
    figures = [row.figures.get(name, (None, None)) for name in COLUMNS]
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
