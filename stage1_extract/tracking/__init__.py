"""Following a vehicle's box through a sequence: alignment of a patch with a frame, and tracking from frame to frame."""
