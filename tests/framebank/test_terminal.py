"""What terminals get: narrow ones, without colours, quiet or verbose, and shell completion."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from framebank.cli import main
from tests.helpers import ROOT

pty, termios, fcntl = (pytest.importorskip(name) for name in ("pty", "termios", "fcntl"))  # not on Windows

SLOW_WORK = """
import time
from features._common.console import progress_bar
with progress_bar(30, "a rather long description", "sequence") as bar:
    for i in range(30):
        bar.set_postfix_str("best skill 0.963, RMSE 1.524 (constant 7.933): pooled_lstm units=64", refresh=False)
        bar.update()
        time.sleep(0.02)
"""


def in_terminal(*command: str, columns: int = 40, **environment: str) -> str:
    """Run Python in a terminal of a width; all that it shows."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    variables = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    environment = variables | {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT)} | environment
    process = subprocess.Popen([sys.executable, *command], stdout=child, stderr=child, env=environment, cwd=ROOT)
    os.close(child)
    output = b""
    while True:
        try:
            if not (part := os.read(parent, 4096)):
                break
        except OSError:  # Linux says so when the child has ended
            break
        output += part
    os.close(parent)
    assert process.wait() == 0, output.decode()
    return output.decode()


@pytest.mark.parametrize("columns", [20, 40, 120])
def test_progress_fits_into_one_line_of_the_terminal(columns: int) -> None:
    text = in_terminal("-c", SLOW_WORK, columns=columns)
    drawn = [part for part in re.split(r"[\r\n]+", text) if part.strip()]
    assert len(drawn) > 2 and max(map(len, drawn)) <= columns
    assert text.count("\n") == 1  # always the same line
    if columns >= 40:
        assert "100%" in drawn[-1]


def test_no_color_is_respected() -> None:
    command = ("-m", "framebank", "info", "--help")
    assert "\x1b[" in in_terminal(*command)
    assert "\x1b[" not in in_terminal(*command, NO_COLOR="1")


def test_quiet_shows_results_and_errors_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = str(ROOT / "tests" / "data" / "format1.h5")
    assert main(["verify", "--store", store]) == 0
    loud = capsys.readouterr()
    assert "verify" in loud.err  # progress
    assert main(["verify", "--store", store, "--quiet"]) == 0
    quiet = capsys.readouterr()
    assert (quiet.out, quiet.err) == (loud.out, "")
    assert main(["info", "--quiet", "--store", str(tmp_path / "none.h5")]) == 2
    assert "no such store" in capsys.readouterr().err
    assert main(["verify", "--quiet", "false", "--store", store]) == 0
    assert "verify" in capsys.readouterr().err


def test_verbose_shows_the_call_its_time_and_tracebacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = str(ROOT / "tests" / "data" / "format1.h5")
    assert main(["info", "--verbose", "--store", store]) == 0
    text = capsys.readouterr().err
    assert re.search(r"^\d\d:\d\d:\d\d framebank \d.*info --verbose", text, re.MULTILINE)
    assert re.search(r"info: done after \d+\.\d s", text)
    assert main(["info", "--verbose", "--store", str(tmp_path / "none.h5")]) == 2
    text = capsys.readouterr().err
    assert "Traceback" in text and text.splitlines()[-1].startswith("framebank: ")
    assert main(["info", "--store", store]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["lea"], {"leaderboard"}),
        (["train", "--train.ep"], {"--train.epochs"}),
        (["doctor", "--fr"], {"--frames"}),
        (["sweep", "--ver"], {"--verbose"}),
    ],
    ids=lambda value: " ".join(value),
)
def test_bash_completes_commands_and_options(completion: Path, words: list[str], expected: set[str]) -> None:
    script = f"""
source {completion}
COMP_WORDS=(framebank {" ".join(words)}) COMP_CWORD={len(words)} COMP_LINE="framebank {" ".join(words)}"
COMP_POINT=${{#COMP_LINE}}
$(complete -p framebank | sed -E 's/.*-F ([^ ]+) .*/\\1/')
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert {word.strip() for word in done.stdout.split()} == expected


@pytest.fixture(scope="module")
def completion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that docs/cli.md says how to write."""
    path = tmp_path_factory.mktemp("completion") / "framebank"
    assert main(["--tyro-write-completion", "bash", str(path)]) == 0
    return path
