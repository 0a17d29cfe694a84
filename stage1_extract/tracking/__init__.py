"""Tracking a vehicle's box through a sequence: template search, sub-pixel alignment, occlusion by other vehicles."""
