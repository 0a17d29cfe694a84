"""The contract between the stages: recipe, sequences, windows, store. Needs numpy and h5py alone."""

from features.errors import FramebankError, StoreError
from features.recipe import Recipe
from features.sequences import Label, Sequence
from features.store import Store
from features.windows import Examples, examples

__all__ = ["Examples", "FramebankError", "Label", "Recipe", "Sequence", "Store", "StoreError", "examples"]
