"""Whether the surroundings stand still: vehicles that keep pace may cover the road, but not both of its sides too."""

from __future__ import annotations

import cv2
import numpy as np

from features._common.types import Floats, Image
from stage1_extract.ground_flow.road_view import RoadGrid
from stage1_extract.ground_flow.speed_posterior import SPEEDS
from stage1_extract.ground_flow.tile_matching import deviation

REDUCED_WIDTH = 320  # of the reduced frames, px
BLOCK, REACH = 16, 3  # size of a block and how far it is searched, px of the reduced frames
ABOVE = 0.15  # upper edge of the surroundings, above the horizon, share of the frame's height
MIDDLE = 0.2  # share of the frame's width to each side of its middle that may show vehicles
BLOCK_CONTRAST = 4.0  # standard deviation of a block, grey levels
LEAST_BLOCKS = 6
SLOW = 2.5  # m/s; slower than this, most of the surroundings seem to stand from frame to frame
STILL_SHARE = 0.6  # of the blocks, at least, while standing
PENALTY = 40.0  # of slow speeds where nothing stands still, log-likelihood


def doubt_slow_speeds(votes: Floats, grid: RoadGrid, earlier: Image, later: Image) -> Floats:
    """The log-likelihoods of the speeds, with a penalty for slow ones where the surroundings of two frames move."""
    slow = np.abs(SPEEDS) < SLOW
    if votes[slow].max() < votes.max() - PENALTY:
        return votes  # nothing speaks for a slow speed
    share = still_share(grid, earlier, later)
    penalty = PENALTY * max(0.0, 1 - share / STILL_SHARE)
    return np.where(slow, votes - penalty, votes)


def still_share(grid: RoadGrid, earlier: Image, later: Image) -> float:
    """Share of the blocks on both sides of the road that lie at the same place in two grey frames; 1 if unknown."""
    width, height = grid.size
    scale = REDUCED_WIDTH / width
    top = int(np.clip(grid.horizon - ABOVE * height, 0, height - 2 / scale))
    size = REDUCED_WIDTH, round((height - top) * scale)
    before, after = (cv2.resize(image[top:], size, interpolation=cv2.INTER_AREA) for image in (earlier, later))
    still = []
    for x in range(REACH, REDUCED_WIDTH - BLOCK - REACH, BLOCK):
        if abs(x + BLOCK / 2 - grid.camera.cx * scale) < MIDDLE * REDUCED_WIDTH:
            continue
        for y in range(REACH, size[1] - BLOCK - REACH, BLOCK):
            block = after[y : y + BLOCK, x : x + BLOCK]
            if deviation(block) >= BLOCK_CONTRAST:
                part = before[y - REACH : y + BLOCK + REACH, x - REACH : x + BLOCK + REACH]
                place = cv2.minMaxLoc(cv2.matchTemplate(part, block, cv2.TM_CCOEFF_NORMED))[3]
                still.append(place == (REACH, REACH))
    return float(np.mean(still)) if len(still) >= LEAST_BLOCKS else 1.0
