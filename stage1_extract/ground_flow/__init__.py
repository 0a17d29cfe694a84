"""Own speed from the road, for any camera with known intrinsics and height."""

from __future__ import annotations

from stage1_extract.ground_flow.ground_flow import SpeedEstimates, estimate_speeds

__all__ = ["SpeedEstimates", "estimate_speeds"]
