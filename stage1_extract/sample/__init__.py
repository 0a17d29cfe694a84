"""The sample set: clips rendered from a seed, so that everything runs without a download."""

from __future__ import annotations

from stage1_extract.sample.dataset import render_sample_set

__all__ = ["render_sample_set"]
