"""What `stage1_extract.track` is made of: aligning a patch with a frame, and following it from frame to frame."""
