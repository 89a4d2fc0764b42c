"""Alignment of generated images to the frozen features of real ones (Eq. 1)."""
