"""Short names for types that many modules use."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Image = NDArray[np.uint8]  # (height, width, 3) BGR or RGB, or (height, width) grey; or several of one size
Size = tuple[int, int]  # width, height in px
Tensor = Any  # keras.KerasTensor or an array; Keras ships no types
