"""Backbones: by name, with their weights, cut into the frozen trunk and the trainable top."""
