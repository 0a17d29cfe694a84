"""Names of the store's streams, of the models' other inputs, and of the standard targets."""

from __future__ import annotations

APPEARANCE = "appearance"  # the trunk's map at the cut
MOTION = "motion"  # optical flow between consecutive frames
GEOMETRY = "geometry"  # not a stream but a model input: features of a vehicle's tracked box
FRAMES = "frames"  # not a stream but a model input: the images, resized
THUMBNAILS = "thumbnails"

NAMED_TARGETS = {"velocity": ("vx", "vy"), "position": ("x", "y")}
# targets of a single vehicle, which its box identifies
VEHICLE_COLUMNS = frozenset(NAMED_TARGETS["velocity"] + NAMED_TARGETS["position"])
UNITS = {"vx": "m/s", "vy": "m/s", "ego_speed": "m/s", "x": "m", "y": "m"}
MIRROR_SIGNS = {"vx": 1.0, "vy": -1.0, "x": 1.0, "y": -1.0, "ego_speed": 1.0}  # of each target in a mirrored scene
