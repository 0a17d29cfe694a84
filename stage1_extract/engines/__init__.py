"""Engines: what runs the trunk, TensorFlow or OpenVINO."""
