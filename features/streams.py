"""Names that the parts share: the store's streams, a model's inputs beside them, and the standard targets."""

from __future__ import annotations

APPEARANCE = "appearance"  # the trunk's map at the cut
MOTION = "motion"  # optical flow from frame to frame
GEOMETRY = "geometry"  # no stream: what a vehicle's tracked box says, a model's input beside streams
THUMBNAILS = "thumbnails"

VEHICLE_COLUMNS = frozenset(["vx", "vy", "x", "y"])  # targets about one vehicle, which a box has to point out
UNITS = {"vx": "m/s", "vy": "m/s", "ego_speed": "m/s", "x": "m", "y": "m"}
