"""Stage one: frames in, store out."""
