"""The command line: help, misspelt words, exit statuses, output in any encoding."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from features.config import CONFIG_SECTIONS, Config, read_config
from features.head_config import list_heads
from framebank.cli import main
from framebank.commands import COMMANDS, STAGE_ONE, STAGE_TWO, Extract
from framebank.options import parse
from tests.helpers import ROOT

HEAVY = {"tensorflow", "keras", "cv2", "sklearn"}


def start(*arguments: str, module: str = "framebank", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a fresh process."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "100"} | environment,
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_every_option_with_a_sentence_and_a_default(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    entries: list[str] = []
    for line in capsys.readouterr().out.splitlines():
        text = line.strip("│ ")
        if re.match("--[a-z]", text):
            entries.append(text)
        elif line.startswith(("│ ", "   ")) and entries and entries[-1]:
            entries[-1] += f" {text}"
        else:  # between two groups of options
            entries.append("")
    options = [entry for entry in entries if entry]
    assert options
    for option in options:
        assert re.search(r"^--[a-z][\w.]* .*[a-z]{2,} .*\. \((default: .+|required)\) *$", option), option


@pytest.mark.parametrize("name", ["sample", "extract", "repair", "train", "sweep"])
def test_help_shows_every_setting_of_the_sections_that_the_command_reads(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    config = Config()
    stage_one = {"sample": {"data"}, "extract": {"data", "frames", "backbone", "extract", "compute"}}
    sections = (stage_one | {"repair": stage_one["extract"]}).get(name, set(CONFIG_SECTIONS))
    for section in CONFIG_SECTIONS:
        for key in type(getattr(config, section)).model_fields:
            assert (f"--{section}.{key} " in text) == (section in sections)


def test_help_needs_no_heavy_library() -> None:
    script = (
        "import sys, time; from framebank.cli import main; from framebank.commands import COMMANDS\n"
        "for name in COMMANDS:\n"
        "    started = time.perf_counter()\n"
        "    assert main([name, '--help']) == 0\n"
        "    assert time.perf_counter() - started < 5, name\n"
        "print('modules', *sys.modules)"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert time.perf_counter() - started < 5 * len(COMMANDS)
    assert not HEAVY & set(done.stdout.splitlines()[-1].split())


def test_help_of_train_lists_the_heads(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    for name, when in list_heads().items():
        assert f"{name} {when}" in words


def test_help_shows_the_settings_of_the_chosen_head(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--head.name", "ridge", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--head.alpha" in text and "--head.units" not in text


def test_help_shows_the_defaults_of_the_config_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.toml").write_text("[train]\nepochs = 77\n")
    assert main(["train", "--config", str(tmp_path / "c.toml"), "--help"]) == 0
    assert "(default: 77)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "commands"), [("framebank", COMMANDS), ("stage1_extract", STAGE_ONE), ("stage2_temporal", STAGE_TWO)]
)
def test_without_a_command_help_is_printed(module: str, commands: dict[str, object]) -> None:
    done = start(module=module)
    assert done.returncode == 0
    assert re.findall(r"^  (\w+) ", done.stdout.decode(), re.MULTILINE) == list(commands)
    assert start("--help", module=module).stdout == done.stdout


def test_help_is_printable_where_the_encoding_lacks_characters() -> None:
    for arguments in ([], ["train", "--help"]):
        done = start(*arguments, PYTHONIOENCODING="cp1252")
        assert done.returncode == 0, done.stderr
        assert b"?" in done.stdout or b"usage" in done.stdout


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"framebank \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("trian", "no such command: trian (did you mean train?)"),
        ("train --train.epoch 3", "unknown option --train.epoch (did you mean --train.epochs?)"),
        ("train --train.epoch=3", "unknown option --train.epoch (did you mean --train.epochs?)"),
        ("train --epochs 3", "did you mean --train.epochs?"),
        ("info --stor a.h5", "unknown option --stor (did you mean --store?)"),
        ("extract --train.epochs 3", "--train.epochs is not an option of this command"),
        ("train --head.name rigde", "no such head (did you mean ridge?)"),
        ("train --head.unit 3", "unknown option --head.unit (did you mean units?), pooled_lstm has "),
        (
            "train --head.name ridge --head.units 3",
            "ridge has streams, motion, grid, components, difference, lags, alpha",
        ),
        ("train --head.name auto --head.units 3", "auto has no settings"),
        ("train --frames.colour rgp", "(did you mean rgb?); got rgp; expected one of rgb, bgr"),
        ("train --train.epochs", "--train.epochs: value missing; expected INT"),
        ("train --head.grid 3x4", "value missing; expected INT INT with spaces between; got 3x4. Try: --head.grid 1 1"),
        ("train --train.epochs three", "--train.epochs: wrong value; expected INT; got three"),
        ("train --train.epochs 0", "train.epochs: input should be greater than 0, got 0"),
        ("train --train.seed -5", "train.seed: "),
        ("train --train.seed 4294967296", "train.seed: "),
        ("train --data.target", "data.target"),
        ("train --train.reverse maybe", "--train.reverse: wrong value; expected {true,false}; got maybe"),
        ("train stray", "unexpected 'stray'"),
        ("predict", "--run NAME is required"),
        ("sweep --config configs/sample.toml", "--sweep FILE is required"),
        ("derive --store s.h5", "no stream"),
        ("info", "which store?"),
    ],
)
def test_mistake_is_named_in_one_line(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("framebank: ") and message in err
    assert len(err.splitlines()) == 1 and "Try: " in err


def test_unknown_key_in_a_config_names_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.toml").write_text("[train]\nepoch = 3\n")
    assert main(["train", "--config", str(tmp_path / "c.toml")]) == 2
    assert "unknown key train.epoch (did you mean epochs?)" in capsys.readouterr().err


def settings(*flags: str) -> Config:
    """The config that `framebank train` gets."""
    command = COMMANDS["train"]
    options = parse(command, flags, command.read_config(flags), prog="framebank train")
    value = vars(options)["settings"]
    assert isinstance(value, Config)
    return value


def test_flags_override_the_config_file(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[data]\ntarget = "ego_speed"\n[train]\nepochs = 3\nseed = 7\n')
    flags = ["--data.target", "velocity", "--window.end", "-32", "--backbone.cut=block4_pool", "--train.epochs", "5"]
    config = settings("--config", str(path), *flags)
    assert config.data.columns == ("vx", "vy")
    assert (config.train.epochs, config.train.seed) == (5, 7)
    assert (config.window.end, config.backbone.cut) == (-32, "block4_pool")


def test_flags_are_written_as_in_toml_or_with_dashes() -> None:
    flags = ["--track.tensorboard", "true", "--train.restore_best", "FALSE", "--train.learning-rate", "0.5"]
    config = settings(*flags)
    assert config.track.tensorboard and not config.train.restore_best
    assert config.train.learning_rate == 0.5
    assert settings("--data.target", "distance", "rate").data.columns == ("distance", "rate")


@pytest.mark.parametrize("words", [["--rehash"], ["--rehash", "true"], ["--rehash", "--extract.shard", "3"]])
def test_switch_needs_no_value(words: list[str]) -> None:
    parsed = parse(Extract, words, Config(), prog="framebank extract")
    assert parsed.rehash and not parse(Extract, ["--rehash", "false"], Config(), prog="framebank extract").rehash


def test_settings_without_a_flag_count_as_unset(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[head]\nname = "ridge"\nalpha = 3\n')
    config = settings("--config", str(path), "--head.grid", "2", "3")
    assert config.head.model_fields_set == {"name", "alpha", "grid"}
    assert config == read_config(path).model_copy(update={"head": config.head})


def test_tilde_is_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.toml").write_text('[data]\nlayout = "competition"\npath = "~/clips"\n')
    assert settings("--config", "~/c.toml").data.path == f"{tmp_path}/clips"
    assert settings("--data.path", "~/clips").data.path == f"{tmp_path}/clips"
    assert main(["info", "--store", "~/s.h5"]) == 2
    assert f"{tmp_path}/s.h5" in capsys.readouterr().err


def test_ctrl_c_ends_with_status_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("framebank.workflows.render_sample", interrupt)
    assert main(["sample"]) == 130
    assert "Interrupted. Finished work is saved; run the same command to resume." in capsys.readouterr().err


def test_extract_tells_that_it_renders_the_sample_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stage1_extract.sample.render_sample_set", lambda *_, **__: None)
    data = tmp_path / "nope"
    assert main(["extract", "--store", str(tmp_path / "s.h5"), "--data.path", str(data)]) == 2
    rendering = f"{data}: rendering the sample data set there, since data.layout is sample"
    assert capsys.readouterr().err.splitlines()[0].endswith(rendering)
    data.mkdir()
    assert main(["extract", "--store", str(tmp_path / "s.h5"), "--data.path", str(data)]) == 2
    assert rendering not in capsys.readouterr().err


def test_closed_pipe_is_not_an_error() -> None:
    command = f"{sys.executable} -m framebank train --help | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0"
    assert done.stderr == ""


def test_unwritable_folder_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["sample", "--data.path", str(tmp_path / "file" / "sample")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


@pytest.mark.parametrize("command", ["predict", "evaluate", "export", "finetune", "fuse", "report"])
def test_missing_run_names_the_nearest(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/sample-ego_speed-ridge").mkdir(parents=True)
    Path("runs/sample-ego_speed-ridge/metrics.json").touch()
    assert main([command, "--run", "sample-egospeed-ridge"]) == 2
    assert "is not a run (did you mean sample-ego_speed-ridge?)" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shell_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tyro-print-completion", shell]) == 0
    script = capsys.readouterr().out
    words = ("leaderboard", "--train.epochs", "--overlay")
    assert [word for word in words if word in script] == list(words)
