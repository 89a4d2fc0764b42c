"""Captions, images and pairs on disk, and the order and form in which models see them."""
