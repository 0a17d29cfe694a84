"""No library that the commands load reports to its makers: every connection that a command makes is recorded."""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT, write_clips

# `sitecustomize` is imported by every Python process, also by the workers that a command starts
RECORDER = """
import os, sys
EVENTS = {"socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname"}
def hook(event, args):
    if event in EVENTS:
        address = args[0] if event in ("socket.getaddrinfo", "socket.gethostbyname") else args[1]
        with open(os.environ["CONNECTIONS"], "a") as file:
            file.write(f"{address[0] if isinstance(address, tuple) else address}\\n")
sys.addaudithook(hook)
"""
CONFIG = """
[data]
layout = "competition"
path = "clips"
target = "ego_speed"
[frames]
width = 64
height = 48
[window]
length = 4
[head]
name = "ridge"
"""
SWEEP = """
[sweep]
name = "s"
jobs = 2
[[entries]]
"head.name" = ["ridge"]
"window.length" = [3, 4]
"""
COMMANDS = (
    "extract --config c.toml", "verify --config c.toml", "train --config c.toml --run mine",
    "sweep --config c.toml --sweep s.toml", "leaderboard", "predict --run mine --input clips --output p.csv",
    "evaluate --run mine", "fuse --run mine", "export --run mine --format onnx openvino",
)  # fmt: skip
# OpenVINO's telemetry is cut off by our module, whoever imports OpenVINO after it
LIBRARIES = (
    "tensorflow", "keras", "sklearn", "dask", "distributed", "onnxruntime", "ai_edge_litert", "cv2", "av",
    "mkdocs.__main__", "stage1_extract.engines.openvino, openvino",
)  # fmt: skip


def is_here(address: str) -> bool:
    """Whether an address is of this machine: a path, `localhost`, or a loopback address."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address in ("localhost", "None", "b''", "") or address.startswith(("/", "\0", "b'\\x00", "b'/"))


def run_recorded(folder: Path, command: list[str]) -> list[str]:
    """Run a command, and return the addresses elsewhere that it, or a process that it started, connected to."""
    (folder / "hook").mkdir(exist_ok=True)
    (folder / "hook" / "sitecustomize.py").write_text(RECORDER)
    record, calls = folder / "connections", folder / "calls"
    path = os.pathsep.join([str(folder / "hook"), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": path, "CONNECTIONS": str(record)}
    strace = ["strace", "-f", "-qq", "--seccomp-bpf", "-e", "trace=connect,sendto", "-o", str(calls)]
    prefix = strace if shutil.which("strace") else []  # it also sees libraries in C
    done = subprocess.run([*prefix, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    addresses = record.read_text().splitlines() if record.exists() else []
    traced = calls.read_text(errors="replace") if calls.exists() else ""
    addresses += re.findall(r'sin6?_addr=inet_(?:addr|pton)\((?:AF_INET6, )?"([^"]+)"', traced)
    record.unlink(missing_ok=True)
    return [address for address in addresses if not is_here(address)]


def test_a_connection_elsewhere_is_recorded(tmp_path: Path) -> None:
    code = "import socket; s = socket.socket(); s.settimeout(0.1); s.connect_ex(('192.0.2.1', 9))"
    assert "192.0.2.1" in run_recorded(tmp_path, [sys.executable, "-c", code])


@pytest.mark.soak
def test_no_command_connects_to_another_machine(tmp_path: Path) -> None:
    write_clips(tmp_path / "clips", {"Train": 8, "Validation": 3, "Test": 3})
    (tmp_path / "c.toml").write_text(CONFIG)
    (tmp_path / "s.toml").write_text(SWEEP)
    for command in COMMANDS:
        assert run_recorded(tmp_path, [sys.executable, "-m", "framebank", *command.split()]) == [], command


@pytest.mark.soak
@pytest.mark.parametrize("library", LIBRARIES)
def test_no_library_connects_when_it_is_loaded(tmp_path: Path, library: str) -> None:
    pytest.importorskip(library.split(", ")[-1].partition(".")[0])
    assert run_recorded(tmp_path, [sys.executable, "-c", f"import {library}"]) == []
