"""Pages and tables of data whose names are HTML, scripts, formulas and terminal commands: all of them are only text."""

from __future__ import annotations

import csv
import re
import socket
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from features._common.csv_table import read_csv_table, write_csv_table
from features.config import Config
from stage2_temporal.evaluation.uncertainty import UncertainPredictions
from stage2_temporal.report import write_report
from stage2_temporal.report.drive_page import Drive, shown_frames, write_drive_page
from stage2_temporal.report.leaderboard_page import leaderboard_text, write_leaderboard
from stage2_temporal.runs.leaderboard import boards, find_runs
from stage2_temporal.runs.results import read_results
from tests.helpers import IN_BROWSER
from tests.leaderboard_runs import write_run
from tests.report_runs import make_run

SCRIPTS = (
    "<script>document.title = 'hacked'</script>",
    "<img src=x onerror=\"document.title = 'hacked'\">",
    '"><svg onload="document.title = \'hacked\'">',
    "</script><script>document.title = 'hacked'</script>",
    "</style><script>document.title = 'hacked'</script>",
    "<!--<script>",
    "' onmouseover='document.title = \"hacked\"' x='",
    "javascript:document.title='hacked'",
    "<link rel=stylesheet href=http://127.0.0.1:9/x.css><base href=http://127.0.0.1:9/>",
    "<iframe src=http://127.0.0.1:9/></iframe><img src=http://127.0.0.1:9/a.png>",
    "<meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'>",
    "{{ 7 * 7 }}{% raw %}${7*7}",
)
FORMULAS = (
    "=cmd|'/c calc'!A1",
    "+1+1",
    "-1+1",
    "@SUM(A1)",
    "\t=1+1",
    "\r=1+1",
    "＝1+1",
    "a;=1+1",
    "'=1",
    "''=1",
    "=1\n=2",
)
NAME = "run " + "".join(re.sub("[/\\\\]", "|", text) for text in SCRIPTS[:2])  # a file's name has no slash


def hostile_pages(folder: Path) -> dict[str, Path]:
    """A report, a leaderboard and a drive's page, with the names in every place where names stand."""
    run, store = make_run(
        folder / "runs" / NAME, (SCRIPTS[0],), clips=12, head=SCRIPTS[1], backbone=SCRIPTS[2], weights=SCRIPTS[3],
        unit=SCRIPTS[4], verdict=f"{SCRIPTS[5]}: {SCRIPTS[6]}",
        store={"path": SCRIPTS[8], "fingerprint": SCRIPTS[9], "frames": 1, "sequences": 1},
    )  # fmt: skip
    new = {s.id: f"{SCRIPTS[i % len(SCRIPTS)]} {i}" for i, s in enumerate(store.sequences)}
    store.sequences = tuple(type(s)(**{**vars(s), "id": new[s.id]}) for s in store.sequences)
    table = read_csv_table(run / "predictions.csv")
    rows = [[new.get(cell, cell) for cell in row.cells.values()] for row in table.rows]
    write_csv_table(run / "predictions.csv", table.columns, rows)
    (run / "config.toml").write_text(f"# {SCRIPTS[0]} {SCRIPTS[3]}\n" + Config().to_toml())

    board = folder / "board"
    write_run(board / NAME, 0.6, report=True, data={"target": SCRIPTS[0]})
    write_run(board / "other", 0.4, data={"target": SCRIPTS[0]}, head={"streams": (SCRIPTS[1], SCRIPTS[3])})
    values = np.linspace(0, 1, 20)[:, None]
    predictions = UncertainPredictions(values, values - 1, values + 1, 0.9)
    vehicles = [SCRIPTS[i % len(SCRIPTS)] for i in range(20)]
    drive = Drive(SCRIPTS[3], np.arange(20) / 10, np.arange(20), predictions, (SCRIPTS[0],), vehicles)
    picture = bytes(cv2.imencode(".jpg", np.zeros((9, 16, 3), np.uint8))[1])
    write_drive_page(folder / "drive.html", drive, dict.fromkeys(shown_frames(drive), picture))
    return {
        "report": write_report(run, store),
        "leaderboard": write_leaderboard(boards(find_runs(board)[0]), board),
        "drive": folder / "drive.html",
    }


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return hostile_pages(tmp_path_factory.mktemp("hostile"))


KINDS = ("report", "leaderboard", "drive")


@pytest.mark.parametrize("kind", KINDS)
def test_page_has_no_element_of_a_name(pages: dict[str, Path], kind: str) -> None:
    text = pages[kind].read_text(encoding="utf-8")
    assert "hacked" in text
    scripts = re.findall(r"<script[^>]*>", text)
    assert scripts in (["<script>"], ['<script type="application/json" id="data">', "<script>"])
    assert "onerror=" not in re.sub("&[#a-z0-9]+;", "", re.sub(r"<script.*?</script>", "", text, flags=re.S)).replace(
        "onerror=document", ""
    )
    assert not re.search(r"<(iframe|base|link(?! rel=\"icon\")|object|embed|form)\b", text)


@pytest.mark.parametrize("kind", KINDS)
def test_page_admits_its_own_script_alone(pages: dict[str, Path], kind: str) -> None:
    head = pages[kind].read_text(encoding="utf-8").partition("</head>")[0]
    [policy] = re.findall('http-equiv="Content-Security-Policy" content="([^"]*)"', head)
    assert "unsafe" not in policy and "default-src &#39;none&#39;" in policy and policy.count("sha256-") == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.browser
@pytest.mark.skipif(IN_BROWSER[1].args[0], reason="no chromium on this machine")
def test_no_script_runs_and_no_request_leaves(browser: Any, pages: dict[str, Path], kind: str) -> None:
    """Also where a name got into the page as HTML: its script would have no hash in the page's policy."""
    context = browser.new_context()
    page = context.new_page()
    requests: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(pages[kind].as_uri(), wait_until="load")
    for element in page.locator("button:visible, .plot:visible, summary:visible").all()[:6]:
        element.hover(force=True)
        element.click(force=True)
    assert page.title() != "hacked"
    assert page.locator("iframe, base, img[src^=http], svg[onload], [onerror], [onmouseover]").count() == 0
    assert {url.split(":")[0] for url in requests} <= {"file", "data"}
    assert errors == []
    assert page.evaluate("document.documentElement.matches('.scripted') || !!document.querySelector('.board button')")
    # what a name could do if it did become an element
    server = socket.create_server(("127.0.0.1", 0))
    page.evaluate(
        """(port) => {
        const script = document.createElement('script');
        script.textContent = "document.documentElement.dataset.hacked = 1";
        document.body.append(script);
        const image = document.createElement('img');
        image.src = `http://127.0.0.1:${port}/x.png`;
        image.setAttribute('onerror', "document.documentElement.dataset.hacked = 1");
        document.body.append(image);
    }""",
        server.getsockname()[1],
    )
    page.wait_for_timeout(200)
    assert page.evaluate("document.documentElement.dataset.hacked") is None
    assert len([error for error in errors if "Content Security Policy" in error]) >= 2
    with server, pytest.raises(BlockingIOError):  # nobody has called
        server.setblocking(False)
        server.accept()
    context.close()


def test_no_cell_is_a_formula(tmp_path: Path) -> None:
    """OWASP's list: no cell begins with = + - @, tab or a line end, unless it is a number; and all read back equal."""
    path = tmp_path / "a.csv"
    names = [*FORMULAS, "plain", "-3.5", "1e-5", "-inf", "a, -b"]
    write_csv_table(path, ["=name", "number"], [[name, -1.5] for name in names])
    with path.open(newline="", encoding="utf-8") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    for cell in cells:
        for part in re.split("[;\t\r\n]", cell):
            assert not re.match("[=+\\-@\t\r\n＝＋－＠]", part) or re.fullmatch(r"-?(inf|[\d.]+(e-?\d+)?)", part), cell
    table = read_csv_table(path)
    assert table.columns == ("=name", "number")
    assert [row.cells["=name"] for row in table.rows] == [name.replace("\r", "\\r") for name in names]
    assert {row.cells["number"] for row in table.rows} == {"-1.5"}


def test_leaderboards_table_has_no_formula(tmp_path: Path) -> None:
    write_run(tmp_path / "=1+1", 0.5, data={"target": "@SUM(A1)"})
    write_leaderboard(boards(find_runs(tmp_path)[0]), tmp_path)
    with (tmp_path / "leaderboard.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["target"] for row in rows} == {"'@SUM(A1)"}
    assert rows[0]["run"] == "'=1+1" and float(rows[0]["skill"]) == 0.5


def test_report_finds_sequences_whose_names_are_formulas(tmp_path: Path) -> None:
    folder, store = make_run(tmp_path / "run", clips=12)
    new = {s.id: f"{FORMULAS[0]} {i}" for i, s in enumerate(store.sequences)}
    table = read_csv_table(folder / "predictions.csv")
    rows = [[new.get(cell, cell) for cell in row.cells.values()] for row in table.rows]
    write_csv_table(folder / "predictions.csv", table.columns, rows)
    assert ",'=cmd|" in (folder / "predictions.csv").read_text()
    assert {e.sequence for e in read_results(folder).examples} == set(new.values())


def test_terminal_shows_escape_sequences_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from framebank.cli import main

    write_run(tmp_path / "a\x1b[31mb", 0.5, data={"target": "\x1b]0;title\x07x"})
    write_run(tmp_path / "c\x1b[2J", 0.5, data={"target": "\u202egpj"})
    (tmp_path / "d\x1b[2J").mkdir()
    (tmp_path / "d\x1b[2J" / "metrics.json").write_text("{")
    assert main(["leaderboard", "--runs", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "a\\x1b[31mb" in out and "d\\x1b[2J" in err
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", out + err)
    assert leaderboard_text(boards(find_runs(tmp_path)[0]), tmp_path)
