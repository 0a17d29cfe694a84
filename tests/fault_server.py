"""A process that has the heavy libraries loaded, and forks one for each command, in which a fault can be injected.

    python -m tests.fault_server [tensorflow]

It reads requests, a JSON object a line, from its standard input, and answers each by a line: {"start": …} by the
process's number, {"wait": number} by its exit status, negative for a signal, and the number of calls of each kind.
`faults.so` must be preloaded.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import struct
import sys
import traceback
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from features._common.cli import run_command
from features._common.console import quiet_imports

LIBRARY = ctypes.CDLL(None)
PIPES: dict[int, int] = {}  # process → the pipe that it tells its numbers of calls by


LIGHT = ("framebank.cli", "stage1_extract.extract", "stage1_extract.datasets", "stage2_temporal.report")
HEAVY = (
    *("stage1_extract.backbone.trunk", "stage1_extract.engines.engine", "openvino", "tf2onnx", "onnxruntime"),
    *("stage2_temporal.finetune.finetune", "stage2_temporal.fused.export", "stage2_temporal.predict"),
    *("stage2_temporal.sweep.runner", "stage2_temporal.train", "stage2_temporal.runs.leaderboard"),
)


def preload(names: Iterable[str]) -> None:
    """Import what commands import when they run; nothing may be computed, since TensorFlow's threads do not fork."""
    with quiet_imports():
        for name in names:
            import_module(name)


def start(request: dict[str, Any]) -> int:
    """Fork a process that runs a command; return its number."""
    reading, writing = os.pipe()
    if process := os.fork():
        os.close(writing)
        PIPES[process] = reading
        return process
    status = 70
    try:
        os.setsid()
        os.close(reading)
        _redirect(Path(request["log"]))
        os.chdir(request["folder"])
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for name, value in request.get("limits", {}).items():
            resource.setrlimit(getattr(resource, name), (value, value))
        if request.get("unprivileged"):
            _drop_capabilities()
        kinds, at, action, code, part = request.get("fault", (0, 0, 0, 0, ""))
        LIBRARY.fault_arm(kinds, ctypes.c_long(at), action, code, part.encode())
        status = _run(request["arguments"])
    except BaseException:  # what the interpreter would print
        traceback.print_exc()
        status = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(writing, json.dumps([LIBRARY.fault_calls(i) for i in range(8)]).encode())
        os._exit(status)


def _drop_capabilities() -> None:
    """Let permissions hold for root, too, by giving up its capabilities, see capset(2)."""
    version, this_process, sets = 0x20080522, 0, 3 * 2
    if LIBRARY.capset(struct.pack("=Ii", version, this_process), struct.pack(f"={sets}I", *[0] * sets)):
        raise OSError("capset")


def wait(process: int) -> tuple[int, list[int]]:
    """Wait for a process; return its exit status and its number of calls of each kind, none if it was killed."""
    _, status = os.waitpid(process, 0)
    pipe = PIPES.pop(process)
    calls = os.read(pipe, 1000) if os.waitstatus_to_exitcode(status) >= 0 else b""
    os.close(pipe)
    return os.waitstatus_to_exitcode(status), json.loads(calls or "[]")


def _run(arguments: list[str]) -> int:
    if arguments[0] == "render":  # the sample set, but smaller

        def render() -> None:
            from features._common.atomic import sweep
            from stage1_extract.sample.dataset import render_sample_set

            sweep(Path(arguments[1]).parent)
            render_sample_set(Path(arguments[1]), train=2, validation=1, test=1, workers=2)

        return run_command(render)
    from framebank.cli import main

    sys.argv = ["framebank", *arguments]
    if arguments[0] == "-c":
        return run_command(lambda: exec(arguments[1], {}))
    return main()


def _redirect(log: Path) -> None:
    sys.stdout.flush()
    file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o666)
    null = os.open(os.devnull, os.O_RDONLY)
    for old, new in ((null, 0), (file, 1), (file, 2)):
        os.dup2(old, new)


if __name__ == "__main__":
    preload([*LIGHT, *(HEAVY if "tensorflow" in sys.argv else ())])
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        answer: Any = start(asked["start"]) if "start" in asked else wait(asked["wait"])
        print(json.dumps(answer), flush=True)
