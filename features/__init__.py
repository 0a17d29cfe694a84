"""The contract between the stages: configuration, recipe, sequences, windows and the store.

Modules here need numpy, h5py and pydantic, never TensorFlow or OpenCV. Import them by name, e.g.
`from features.store import Store`.
"""
