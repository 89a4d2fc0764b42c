"""Captioners on frozen image features: ClipCap and IFCap, trained and decoded."""
