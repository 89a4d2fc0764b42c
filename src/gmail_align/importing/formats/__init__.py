"""Formats in which data sets lie on disk; each lists what there is into a staging."""
