"""What a recipe says: the data, the models and the settings of every stage of one run."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from gmail_align.alignment.config import AlignConfig
from gmail_align.captioning.clipcap.config import ClipCapConfig
from gmail_align.config import Config, apply_overrides, build, load_toml
from gmail_align.errors import ConfigError
from gmail_align.synthesis.config import SynthesisConfig

SHIPPED = "tabletop"
"""Stands in a recipe for the models that the package brings."""


class WorldConfig(Config):
    """How much of the tabletop world is drawn."""

    train_images: int = Field(1000, ge=20)
    """Real images, each with five captions, that training may use."""
    validation_images: int = Field(200, ge=10)
    """Real images that choose steps of captioners and measure the gap."""
    test_images: int = Field(400, ge=10)
    """Real images that captioners and encoders are judged on."""
    captions_per_image: int = Field(1, ge=1, le=5)
    """Captions of each image that an image is generated from."""


class ModelsConfig(Config):
    """The models a run starts from: folders, or ``tabletop`` for the shipped ones."""

    clip: str = SHIPPED
    """A Hugging Face ``CLIPModel`` folder or hub id; ``tabletop/siglip`` and ``tabletop/long_clip``
    are the shipped siblings."""
    language_model: str = SHIPPED
    """Folder of a causal language model with its tokenizer."""


class Recipe(Config):
    """One run of the whole pipeline."""

    kind: Literal["tabletop"] = "tabletop"
    """Where images and captions come from."""
    title: str = "GMAIL on the tabletop world"
    """Heading of the report."""
    seed: int = 0
    """Seed of the world's subsets and of the first run."""
    seeds: int = Field(1, ge=1)
    """How many times alignments and captioners are trained, each with a seed of its own."""
    workers: int | None = Field(None, ge=1)
    """Captioners trained at a time; by default one a GPU, or one a processor core up to eight."""
    scarce_share: float = Field(0.2, gt=0, lt=1)
    """Share of the real images that the scarce regime may use."""
    world: WorldConfig = WorldConfig()
    """Size of the world."""
    models: ModelsConfig = ModelsConfig()
    """Models that the run starts from."""
    synthesis: SynthesisConfig = SynthesisConfig(model=SHIPPED)
    """The generator and its settings."""
    align: AlignConfig = AlignConfig()
    """The alignment; the control and the scarce run differ from it in weights and data alone."""
    captioner: ClipCapConfig = ClipCapConfig()
    """The captioner, the same for every row."""


def shipped_models() -> Path:
    """Return the folder of the shipped models."""
    return Path(str(resources.files("gmail_align.tabletop"))) / "weights"


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes."""
    folder = resources.files("gmail_align.recipes")
    return sorted(
        f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")
    )


def read_recipe(name: str, overrides: list[str] | None = None) -> Recipe:
    """Read a shipped recipe by name, or a recipe file by path, with ``--set`` overrides on top.

    Raises:
        ConfigError: there is no such recipe, or a key or value is wrong.
    """
    path = Path(name)
    if not name.endswith(".toml"):
        path = Path(str(resources.files("gmail_align.recipes"))) / f"{name}.toml"
        if not path.exists():
            known = ", ".join(recipe_names())
            raise ConfigError(
                f"there is no recipe {name!r}; shipped are {known}, or give a .toml file"
            )
    data: dict[str, Any] = apply_overrides(load_toml(path), overrides or [])
    return build(Recipe, data, f"recipe {name}")


def model_path(value: str, part: str) -> Path:
    """Resolve a model setting: ``tabletop`` is the shipped ``part``, ``tabletop/NAME`` another."""
    name, slash, other = value.partition("/")
    shipped = shipped_models() / (other if slash else part)
    return shipped if name == SHIPPED and shipped.is_dir() else Path(value)
