"""One function for each stage, for scripts and notebooks.

A place is text, a ``Path`` or an ``Artifact``; ``tabletop`` names a shipped model. ``settings`` are
the keys of the stage's configuration, nested or dotted (``{"optim.steps": 200}``); the command line
takes the same keys with ``--set``. Every function that makes an artifact does nothing when the
folder ``out`` already holds it, continues a killed run, and refuses the folder of another run.

The examples of this file run in order, in an empty folder. They draw a small world first:

    >>> import gmail_align as ga
    >>> world = ga.write_tabletop("world", {"train": 24, "test": 8})
    >>> world.counts["images"]
    32
"""
