"""The contract between the stages: recipe, sequences, windows, store. Needs numpy and h5py alone."""

from features.errors import FramebankError, StoreError
from features.recipe import Recipe
from features.sequences import FrameSequence, Label
from features.store import Store
from features.windows import Examples, make_examples

__all__ = ["Examples", "FrameSequence", "FramebankError", "Label", "Recipe", "Store", "StoreError", "make_examples"]
