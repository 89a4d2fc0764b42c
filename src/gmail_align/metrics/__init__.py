"""Pure functions from features or predictions to numbers, each with its 95% interval.

A metric knows no model and opens no file of ours; `pycocoevalcap`'s jars are the one thing run.
"""
