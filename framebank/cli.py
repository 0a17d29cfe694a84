"""The command line: `framebank COMMAND [--option value ...]`. What the commands do is in `commands`."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Union

import tyro

import framebank
from features._common.cli import run_command
from features._common.console import logger, set_verbosity
from features._common.plain_text import printable_stdout
from features.config import Config
from features.errors import ConfigError
from features.strict_model import did_you_mean
from framebank.commands import COMMANDS, STAGE_ONE, STAGE_TWO
from framebank.options import MARKERS, Command, is_switched_on, parse, registry, wrap
from framebank.workflows import quiet_opencv

DESCRIPTION = """Dash-cam clips in, velocity predictions out. A frozen CNN runs once over every frame, its features are
saved in a store, and heads train on the store in seconds."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    return run(argv, COMMANDS, prog="framebank")


def run(argv: Sequence[str] | None, commands: Mapping[str, type[Command]], *, prog: str) -> int:
    """Run one of several commands, by default the one that the process was started with; returns the exit status."""
    _open_missing_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # "?" for a character that the terminal's encoding lacks
    if os.environ.get("NO_COLOR"):  # https://no-color.org
        tyro._experimental_options["ansi_codes"] = False
    quiet_opencv()
    name, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    return run_command(lambda: _run(name, arguments, commands, prog))


def _open_missing_streams() -> None:
    """Let streams that were closed, or that a program without a console lacks, lead nowhere.

    Otherwise the next file that is opened would take their place, and get what libraries write there.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 — for as long as the process lives


def _current_folder() -> Path:
    try:
        return Path.cwd()
    except OSError as e:
        raise ConfigError("the current folder does not exist any more", got=e.strerror, hint="cd FOLDER") from None


def _run(name: str, arguments: list[str], commands: Mapping[str, type[Command]], prog: str) -> None:
    if name in ("-h", "--help"):
        print(_help(commands, prog))
    elif name == "--version":
        print(f"framebank {framebank.__version__}")
    elif name.startswith("--tyro-"):
        _complete([name, *arguments], commands, prog)
    elif name in commands:
        command = commands[name]
        set_verbosity(quiet=is_switched_on(arguments, "--quiet"), verbose=is_switched_on(arguments, "--verbose"))
        arguments = list(command.with_defaults(arguments))
        started = time.perf_counter()
        logger.debug(f"framebank {framebank.__version__} in {_current_folder()}: {' '.join([name, *arguments])}")
        options = parse(command, arguments, command.read_config(arguments), prog=f"{prog} {name}")
        options.delete_leftovers()
        with printable_stdout():
            options()
        logger.debug(f"{name}: done after {time.perf_counter() - started:.1f} s")
    else:
        what, known = f"no such command: {name}{did_you_mean(name, commands)}", ", ".join(commands)
        raise ConfigError(what, expected=f"one of {known}", hint=f"{prog} --help")


def _help(commands: Mapping[str, type[Command]], prog: str) -> str:
    """All commands, each with a sentence."""
    lines = [f"usage: {prog} COMMAND [--option value ...]", "", wrap(DESCRIPTION)]
    for title, group in (
        ("Stage one, frames in, store out:", STAGE_ONE),
        ("Stage two, store in, models out:", STAGE_TWO),
        ("Installation:", COMMANDS.keys() - STAGE_ONE.keys() - STAGE_TWO.keys()),
    ):
        sentences = [wrap(commands[name].summary(), f"  {name:<13}", 15 * " ") for name in group if name in commands]
        lines += ["", title, *sentences] if sentences else []
    return "\n".join([*lines, "", f"{prog} COMMAND --help lists the options of a command."])


def _complete(arguments: list[str], commands: Mapping[str, type[Command]], prog: str) -> None:
    """Write a shell's completion script: `--tyro-write-completion SHELL FILE`."""
    types = [
        Annotated[command, tyro.conf.subcommand(name, description=command.summary())]
        for name, command in commands.items()
    ]
    program: Any = Union[tuple(types)]  # noqa: UP007 — made of a list
    tyro.cli(program, args=arguments, prog=prog, registry=registry(Config()), config=MARKERS, use_underscores=True)
