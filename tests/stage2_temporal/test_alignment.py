"""Alignment of a crop's maps over time: scales and shifts are measured, also in the graph of a model."""

from __future__ import annotations

import cv2
import keras
import numpy as np
import pytest

from stage2_temporal.data.alignment import align_to_last

FULL = 256  # px across the texture of which maps are made
SIZES = (8, 16, 32)  # positions across the maps, from coarse to fine


def levels(poses: np.ndarray, sizes: tuple[int, ...] = SIZES, seed: int = 0, channels: int = 12) -> list[np.ndarray]:
    """Maps (1, T, size, size, channels) of a texture in poses (T, 3): log scale, shift right and down in half maps."""
    noise = np.random.default_rng(seed).normal(size=(FULL, FULL, channels)).astype(np.float32)
    texture = sum(cv2.GaussianBlur(noise, (0, 0), s) * s for s in (12, 30))  # detail that survives in coarse maps
    middle, frames = (FULL - 1) / 2, []
    for growth, right, down in poses:
        scale = np.exp(growth)
        move = (
            [scale, 0, middle - scale * middle + right * FULL / 2],
            [0, scale, middle - scale * middle + down * FULL / 2],
        )
        # warpAffine takes four channels at most
        parts = [
            cv2.warpAffine(part, np.float32(move), (FULL, FULL), borderMode=cv2.BORDER_REFLECT)
            for part in np.split(texture, channels // 4, axis=-1)
        ]
        frames.append(np.concatenate(parts, axis=-1))
    return [
        np.stack([[cv2.resize(f, (n, n), interpolation=cv2.INTER_AREA) for f in frames]]).astype(np.float32)
        for n in sizes
    ]


def relative_to_last(poses: np.ndarray) -> np.ndarray:
    """The poses (T − 1, 3) of all frames but the last, relative to the last one."""
    growth = poses[:-1, 0] - poses[-1, 0]
    return np.column_stack([growth, poses[:-1, 1:] - np.exp(growth)[:, None] * poses[-1, 1:]])


@pytest.mark.parametrize("sizes", [SIZES, SIZES[1:], SIZES[2:]])
@pytest.mark.parametrize("pose", [(0.0, 0.0, 0.0), (-0.06, 0.0, 0.0), (0.05, 0.04, -0.03), (0.0, -0.06, 0.05)])
def test_scale_and_shift_are_measured_at_each_level(sizes: tuple[int, ...], pose: tuple[float, float, float]) -> None:
    poses = np.array([pose, (0.0, 0.0, 0.0)])
    aligned = align_to_last(levels(poses, sizes))
    assert len(aligned) == min(2, len(sizes))
    for values in map(np.asarray, aligned):
        assert values.shape == (1, 1, 4)
        np.testing.assert_allclose(values[0, :, :3], relative_to_last(poses), atol=0.006)
        assert values[0, 0, 3] < 0.05


def test_motion_of_more_than_a_position_per_frame_is_chained() -> None:
    """1.4 positions of the finest map per frame to the right: from the first frame to the last, almost nine."""
    steps = np.arange(8.0)[:, None]
    poses = np.array([(-0.2, -0.3, 0.1)]) + steps * np.array([(0.03, 1.4 / 16, -0.02)])
    coarse, fine = (np.asarray(values)[0] for values in align_to_last(levels(poses)))
    expected = relative_to_last(poses)
    assert np.abs(expected[0, 1]) * 16 > 8.5
    np.testing.assert_allclose(coarse[:, :3], expected, atol=0.02)
    np.testing.assert_allclose(fine[:, :3], expected, atol=0.01)


def test_examples_and_units_of_the_maps_do_not_matter() -> None:
    poses = np.array([(-0.04, 0.05, 0.0), (-0.02, 0.02, 0.01), (0.0, 0.0, 0.0)])
    one, other = levels(poses), levels(poses, seed=1)
    both = [np.concatenate([100 * a, b]) for a, b in zip(one, other, strict=True)]
    for alone, other_alone, together in zip(*map(align_to_last, (one, other, both)), strict=True):
        separate = np.concatenate([np.asarray(alone), np.asarray(other_alone)])
        np.testing.assert_allclose(np.asarray(together), separate, atol=1e-4)


def test_maps_without_texture_and_noise_give_finite_numbers() -> None:
    flat = [np.full((2, 4, n, n, 3), 5.0, np.float32) for n in SIZES]
    zero = [np.zeros_like(level) for level in flat]
    noise = [np.random.default_rng(0).normal(size=level.shape).astype(np.float32) for level in flat]
    for maps in (flat, zero, noise):
        for values in align_to_last(maps):
            assert np.isfinite(np.asarray(values)).all()
    np.testing.assert_allclose(np.asarray(align_to_last(zero)[-1])[..., :3], 0, atol=1e-5)


def test_graph_gives_the_same_numbers() -> None:
    poses = np.array([(-0.05, 0.05, 0.02), (-0.03, 0.03, 0.01), (0.0, 0.0, 0.0)])
    maps = levels(poses)
    inputs = [keras.Input(level.shape[1:]) for level in maps]
    model = keras.Model(inputs, align_to_last(inputs))
    for eager, graph in zip(align_to_last(maps), model.predict(maps, verbose=0), strict=True):
        np.testing.assert_allclose(graph, np.asarray(eager), atol=1e-5)
