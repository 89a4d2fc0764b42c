"""Captioners on frozen image features: ClipCap, trained and decoded."""
