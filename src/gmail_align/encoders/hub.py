"""Names of models on the Hugging Face hub, and when the hub is asked for them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from gmail_align.errors import ModelError
from gmail_align.progress import say

PUBLISHERS = frozenset(
    {
        *("apple", "black-forest-labs", "facebook", "google", "laion", "openai", "sd2-community"),
        *("stabilityai", "timm"),
    }
)
"""Owners whose models the hub is asked for without a revision: those that docs and presets name."""

HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""``OWNER/NAME`` of a model on the hub."""


def refuse_mistyped(name: str, revision: str | None) -> None:
    """Refuse a name that is, or begins with, a folder of this machine: it looks mistyped.

    With a revision, a name that only begins with a folder can be nothing but a model on the hub.

    Raises:
        ModelError: the name is refused.
    """
    owner, _, model = name.partition("/")
    if revision and os.path.isdir(name):
        raise ModelError(
            f"{name} is a folder, and only models on the hub have revisions: leave {revision} out"
        )
    if not revision and Path(owner).is_dir():
        raise ModelError(
            f"the folder {owner} does not hold {model}, so {name} is not looked for on the Hugging "
            "Face hub: correct the name"
        )


def ask_hub(name: str, revision: str | None, pinned: str) -> None:
    """Say that the hub is asked for ``name``, which lies in no folder and in no cache here.

    A mistyped folder looks like the name of a model, whose owner would be a stranger. So without a
    revision, the hub is asked for models of :data:`PUBLISHERS` alone.

    Args:
        name: ``OWNER/NAME``.
        revision: Branch, tag or commit; none for the default branch.
        pinned: How a user names a revision of the model, for the error.

    Raises:
        ModelError: the hub is not asked.
    """
    if not revision and name.partition("/")[0] not in PUBLISHERS:
        raise ModelError(
            f"there is no model folder at {name}: correct it or, if {name} is a model on the "
            f"Hugging Face hub, give {pinned}"
        )
    say(f"asking the Hugging Face hub for {name}, revision {revision or 'main'}")


def hub_id(folder: Path) -> str | None:
    """Return ``OWNER/NAME@COMMIT`` of a folder inside the hub's cache; None for another folder."""
    snapshots, repository = folder.absolute().parent.name, folder.absolute().parent.parent.name
    parts = repository.split("--", 2)
    if snapshots != "snapshots" or len(parts) != 3 or parts[0] != "models":
        return None
    return f"{parts[1]}/{parts[2]}@{folder.name}"
