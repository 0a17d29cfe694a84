"""Names of the layers, inputs and models by which the fused side finds the parts of a saved Keras model."""

from __future__ import annotations

TRUNK = "trunk"  # the frozen part of the backbone, from frames to the map at the cut
TOP = "top"  # its unfrozen last layers, inside the stage-two model
STAGE_TWO = "framebank"  # top and head, from stored maps to the target
FEATURES = "features"  # the input of a stage-two model that reads a single stream
VECTORS = "vectors"  # what a head computes its output from
STANDARDISE = "standardise"  # the layer that standardises them
UNIT = "unit"  # the layer that scales the output back to the target's unit
