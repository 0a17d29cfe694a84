"""Timm's network up to its last map, compiled by PyTorch, in a process without TensorFlow, beside which it crashes.

    python -m benchmarks.torch_peer tf_efficientnet_lite0 bfloat16 frames.npy

It says `ready`, then runs over all frames for each line that it reads, and says `done`. The weights are random.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

BATCH = 4


class TorchProcess:
    """The other process; a call runs the network over its frames, and returns when that is done."""

    def __init__(self, name: str, precision: str, frames: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.torch_peer", name, precision, str(frames)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._wait_for("ready")

    def __call__(self) -> None:
        """Run over all frames."""
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        self._wait_for("done")

    def _wait_for(self, word: str) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip() == word:
                return
        raise RuntimeError(f"PyTorch's process ended with code {self._process.wait()}")


def main(name: str, precision: str, path: str) -> None:
    """Build the network, and run it whenever a line arrives."""
    import timm
    import torch

    frames, dtype = torch.from_numpy(np.load(path)), getattr(torch, precision)
    compiled = torch.compile(timm.create_model(name, pretrained=False).eval().to(dtype).forward_features)

    def run() -> None:
        with torch.inference_mode():
            for part in frames.split(BATCH):
                compiled(part.permute(0, 3, 1, 2).to(dtype).div(128).sub(1))

    run()
    print("ready", flush=True)
    for _ in sys.stdin:
        run()
        print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
