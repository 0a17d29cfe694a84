"""Names that several packages share: streams, inputs and layers of the models, and the standard targets."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from features._common.types import Floats

APPEARANCE = "appearance"  # the trunk's map at the cut
MOTION = "motion"  # optical flow between consecutive frames
GROUND_FLOW = "ground_flow"  # how well the road of two consecutive frames matches at each speed
PAIR_STREAMS = (MOTION, GROUND_FLOW)  # computed from frames without the network, each with the one before it
GEOMETRY = "geometry"  # not a stream but a model input: features of a vehicle's tracked box
FRAMES = "frames"  # not a stream but a model input: the images, resized
THUMBNAILS = "thumbnails"

# layers, inputs and models by which the fused side finds the parts of a saved Keras model
TRUNK = "trunk"  # the frozen part of the backbone, from frames to the map at the cut
TOP = "top"  # its unfrozen last layers, inside the stage-two model
COMPONENTS = "_components"  # ends the name of the layer that projects a stream's maps on principal components
STAGE_TWO = "framebank"  # top and head, from stored maps to the target
FEATURES = "features"  # the input of a stage-two model that reads a single stream
VECTORS = "vectors"  # what a head computes its output from
STANDARDISE = "standardise"  # the layer that standardises them
MEMBER_PREDICTIONS = "members"  # outputs the standardised predictions (batch, members, targets) that a head averages
RIDGE = "ridge"  # a ridge regression inside a head that gradient descent trains otherwise
UNIT = "unit"  # the layer that scales the output back to the target's unit

NAMED_TARGETS = {"velocity": ("vx", "vy"), "position": ("x", "y")}
# targets of a single vehicle, which its box identifies
VEHICLE_COLUMNS = frozenset(NAMED_TARGETS["velocity"] + NAMED_TARGETS["position"])
FLOW_CHANNELS = 6  # of the stream `motion`, whose last channel is not a displacement
SAME_INTERVAL = 1e-3  # relative difference of intervals that count as equal

UNITS = {"vx": "m/s", "vy": "m/s", "ego_speed": "m/s", "x": "m", "y": "m"}
MIRROR_SIGNS = {"vx": 1.0, "vy": -1.0, "x": 1.0, "y": -1.0, "ego_speed": 1.0}  # of each target in a mirrored scene


def scale_flow(flow: NDArray[Any], intervals: Floats, interval: float | None) -> NDArray[Any]:
    """Scale entries of the stream `motion` (n, …, channels) to another time between frames.

    Args:
        intervals: (n,) seconds between each frame and the one before it.
        interval: seconds to scale the displacements to; None: leave them as they are.
    """
    if interval is None:
        return flow
    ratio = interval / intervals
    other = np.abs(ratio - 1) > SAME_INTERVAL
    if other.any():
        flow = flow.copy()
        flow[other, ..., :FLOW_CHANNELS] *= ratio[other].reshape(-1, *[1] * (flow.ndim - 1)).astype(flow.dtype)
    return flow
