"""Encoders in the formats of other people's code, each loaded by it and compared on a probe."""
