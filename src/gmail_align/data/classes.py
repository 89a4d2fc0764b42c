"""Class names and prompt templates of the sets for zero-shot classification.

The names and templates are those that OpenAI published for CLIP (``data/prompts.md``, and for
ImageNet ``notebooks/Prompt_Engineering_for_ImageNet.ipynb``). A class is known by its key, which
is what the set's own files call it (a folder, a WordNet id): names may come twice, as two of
ImageNet's do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Final

from gmail_align.errors import DataError

CLASS_SETS: Final = (
    *("dtd", "stanford_cars", "sun397", "food101"),
    *("fgvc_aircraft", "oxford_pets", "caltech101", "imagenet"),
)
"""The sets that are known by name."""


@dataclass(frozen=True)
class ClassSet:
    """The classes of one set in their order, and the templates of its prompts."""

    name: str
    names: Mapping[str, str]
    """Key -> name as it stands in a prompt."""
    templates: tuple[str, ...]
    """Prompts with ``{}`` in the place of the name."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The classes' keys; a class's number is its place among them."""
        return tuple(self.names)

    def prompts(self) -> dict[str, list[str]]:
        """Return key -> prompts, equally many for every class."""
        return fill(self.names, self.templates)

    def key(self, name: str) -> str | None:
        """Return the key of a class as files name it, whatever its case, blanks and signs."""
        return name if name in self.names else _plain_keys(self.name).get(plain(name))


def fill(names: Mapping[str, str], templates: tuple[str, ...]) -> dict[str, list[str]]:
    """Put each name into every template."""
    return {
        key: [template.replace("{}", name) for template in templates] for key, name in names.items()
    }


@lru_cache
def class_set(name: str) -> ClassSet:
    """Read one of :data:`CLASS_SETS`.

    Raises:
        DataError: no set of that name is shipped.
    """
    if name not in CLASS_SETS:
        raise DataError(f"no class set is named {name!r}; use one of {', '.join(CLASS_SETS)}")
    path = files("gmail_align.data").joinpath("class_sets", f"{name}.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    return ClassSet(name, content["classes"], tuple(content["templates"]))


def plain(name: str) -> str:
    """Return a class's name in small letters and digits, words apart by one blank."""
    return " ".join(re.findall(r"[a-z0-9]+", name.lower()))


@lru_cache
def _plain_keys(name: str) -> dict[str, str]:
    """Return plain key and plain name -> key; what two classes share is left out."""
    keys: dict[str, set[str]] = {}
    for key, own in class_set(name).names.items():
        for spelling in {plain(key), plain(own)}:
            keys.setdefault(spelling, set()).add(key)
    return {spelling: own.pop() for spelling, own in keys.items() if len(own) == 1}
