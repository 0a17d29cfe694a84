"""What depends on a graphics card, as far as it can be tested without one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf

from features.errors import ConfigError
from stage1_extract.engines import gpu
from tests.helpers import ROOT

GIGABYTE = 1 << 30
OFFLINE = ("error sending request", "client error", "network was disabled", "No module named uv")


@pytest.mark.parametrize(
    ("free", "batch"), [(24 * GIGABYTE, 128), (8 * GIGABYTE, 32), (1 * GIGABYTE, 2), (10**13, gpu.MAX_BATCH)]
)
def test_batch_fits_into_the_free_memory(free: int, batch: int) -> None:
    measured = []

    def peak(count: int) -> int:
        measured.append(count)
        return GIGABYTE // 2 + count * GIGABYTE // 8

    assert gpu.batch_for_memory(free, peak) == batch
    assert max(measured) == 8
    assert free > 10**12 or peak(batch) <= 0.8 * free < peak(2 * batch)


def test_too_little_memory_for_one_frame_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"one frame; expected 0.67 GB; got 0.5 GB free"):
        gpu.batch_for_memory(5 * 10**8, lambda count: 436 * 10**6 + count * 10**8)


@pytest.mark.parametrize(
    ("cards", "precisions"),
    [
        ([], ["float32"]),
        ([(6, 1)], ["float32"]),
        ([(7, 5)], ["float32", "float16"]),
        ([(8, 6), (9, 0)], ["float32", "float16", "bfloat16", "tf32"]),
        ([(7, 0), (8, 0)], ["float32", "float16"]),
    ],
)
def test_precisions_follow_from_the_compute_capability(cards: list[gpu.Capability], precisions: list[str]) -> None:
    assert gpu.gpu_precisions(cards) == precisions
    for precision in ("float32", "float16", "bfloat16", "tf32"):
        if precision in precisions or (not cards and precision != "tf32"):
            gpu.check_gpu_precision(precision, cards)
        else:
            with pytest.raises(ConfigError, match=r"--extract\.precision"):
                gpu.check_gpu_precision(precision, cards)


def test_older_card_is_offered_float16_instead_of_bfloat16() -> None:
    with pytest.raises(ConfigError, match=r"8.0 or higher; got 7.5. Try: --extract.precision float16"):
        gpu.check_gpu_precision("bfloat16", [(7, 5)])


def test_without_a_card_there_is_no_message(tmp_path: Path) -> None:
    assert gpu.unused_card(tmp_path) is None


def test_unused_card_is_named_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if tf.config.list_physical_devices("GPU") or sys.platform == "win32" or not tf.test.is_built_with_cuda():
        pytest.skip("TensorFlow uses a card here, or cannot use any")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    driver, device = tmp_path / "proc/driver/nvidia/version", tmp_path / "dev/nvidia0"
    for path in (driver, device):
        path.parent.mkdir(parents=True)
    driver.touch()
    assert str(gpu.unused_card(tmp_path)).endswith("there is no /dev/nvidia0; a container needs --gpus all")
    device.touch()
    line = str(gpu.unused_card(tmp_path))
    assert line.startswith("There is a graphics card, but TensorFlow cannot use it: ") and "\n" not in line
    assert "make setup GPU=1" in line or "too old" in line
    driver.unlink()
    assert "driver is not loaded" in str(gpu.unused_card(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert str(gpu.unused_card(tmp_path)).endswith("CUDA_VISIBLE_DEVICES=-1 hides it")


@tf.function  # type: ignore[untyped-decorator]
def slow(x: tf.Tensor) -> dict[str, tf.Tensor]:
    for _ in tf.range(3000):  # by far the slower one on a busy machine too
        x = tf.matmul(x, x)
    return {"maps": x}


@tf.function  # type: ignore[untyped-decorator]
def fast(x: tf.Tensor) -> dict[str, tf.Tensor]:
    return {"maps": x + 1}


@tf.function  # type: ignore[untyped-decorator]
def broken(x: tf.Tensor) -> dict[str, tf.Tensor]:
    tf.debugging.assert_equal(x, 1.0)
    return {"maps": x}


def test_the_faster_of_two_graphs_is_kept() -> None:
    frames = tf.zeros((64, 64))
    assert gpu.faster(slow, fast, frames) is fast
    assert gpu.faster(fast, slow, frames) is fast
    assert gpu.faster(slow, broken, frames) is slow


def test_lock_for_cards_resolves(tmp_path: Path) -> None:
    """A dry run, which downloads metadata only."""
    lock = ROOT / "requirements-gpu.lock"
    assert "\nnvidia-cudnn-" in lock.read_text(encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "uv",
        "pip",
        "install",
        "--dry-run",
        "--require-hashes",
        "--requirement",
        str(lock),
    ]
    command += ["--target", str(tmp_path), "--python-platform", "x86_64-manylinux_2_28"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if any(text in done.stderr for text in OFFLINE):
        pytest.skip("uv is not installed, or there is no network")
    assert done.returncode == 0, done.stderr
    assert "+ nvidia-cudnn-" in done.stderr
