"""Captions in, generated images out."""
