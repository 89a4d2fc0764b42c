"""The data sets of a recipe, as steps: imports, artifacts that exist, worlds, held-out shares."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from gmail_align.errors import ConfigError
from gmail_align.recipe import Recipe
from gmail_align.recipe_tables import Prompts, Source
from gmail_align.remote import url_of
from gmail_align.workflow.steps.data import (
    Choose,
    DataImport,
    HeldOut,
    Imported,
    LeakCheck,
    World,
    existing,
)
from gmail_align.workflow.steps.learners import ContinuedCaptions, PhotoCaptions
from gmail_align.workflow.work import Step, files_state, find_model

_TABLETOP_SPLITS = {"train": "train", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class ImageSet:
    """One set of real images with its captions."""

    images: Step
    captions: Step
    of: Step | None = None
    """Captions whose images alone belong to the set; None is every image."""
    classes: Step | None = None
    world: World | None = None
    questions: Step | None = None
    """Questions about the images."""


class DataSets:
    """The data sets of one recipe.

    Args:
        recipe: The recipe.
        home: Folder that relative paths of the recipe start from.
    """

    def __init__(self, recipe: Recipe, home: Path) -> None:
        self.recipe, self.home = recipe, home

    @cached_property
    def sets(self) -> dict[str, ImageSet]:
        """Name -> set of real images; shares of the training images are cut off here."""
        tables, seed = self.recipe.data, self.recipe.seed
        whole = {n: self.read_set(n, one) for n, one in tables.items() if one.share is None}
        for name in ("test", *(name for name in tables if name != "test")):
            share = tables[name].share
            if share is not None:
                train = whole["train"]
                held, rest = (
                    HeldOut(train.captions, share, part, seed) for part in ("held", "rest")
                )
                whole[name] = ImageSet(train.images, held, held, train.classes)
                whole["train"] = ImageSet(train.images, rest, rest, train.classes)
        return {name: self._limited(one, tables[name].limit) for name, one in whole.items()}

    def _limited(self, whole: ImageSet, limit: int | None) -> ImageSet:
        if limit is None:
            return whole
        few = Choose(whole.captions, None, limit, self.recipe.seed)
        return ImageSet(whole.images, few, few, whole.classes, whole.world, whole.questions)

    def read_set(self, name: str, source: Source) -> ImageSet:
        """Return the set that a table of the recipe names."""
        if source.artifacts is not None:
            folder = self.home / source.artifacts
            images = existing(folder / "images", "images")
            captions = existing(folder / "captions", "captions")
            has_classes = (folder / "classes").is_dir()
            classes = existing(folder / "classes", "classes") if has_classes else None
            whole = ImageSet(images, captions, None, classes)
        elif source.tabletop is not None:
            world = self._world(name, source.tabletop)
            split = {"split": world.split}
            data = DataImport("coco", split, split, world)
            whole = ImageSet(Imported(data, "images"), Imported(data, "captions"), world=world)
        else:
            data = self._import(name, source)
            parts = {part: Imported(data, part) for part in ("images", "captions", "classes")}
            has_classes = data.importer in ("folder", "cifake", "classification")
            asked = data.importer in ("scienceqa", "mmmu")
            whole = ImageSet(
                parts["images"],
                parts["captions"],
                None,
                parts["classes"] if has_classes else None,
                questions=Imported(data, "questions") if asked else None,
            )
        return whole if source.prompts is None else self._prompted(whole, source.prompts)

    def _prompted(self, whole: ImageSet, prompts: Prompts) -> ImageSet:
        """Return a set whose captions a model writes."""
        settings, each = prompts.predict, prompts.each
        if prompts.language_model is not None:
            model = find_model(prompts.language_model, "gpt2", self.home)
            return replace(whole, captions=ContinuedCaptions(whole.captions, model, settings, each))
        assert prompts.captioner is not None and prompts.encoder is not None
        captioner = existing(self.home / prompts.captioner, "captioner")
        encoder = find_model(prompts.encoder, "clip", self.home)
        written = PhotoCaptions(whole.images, captioner, encoder, settings, prompts.route, each)
        return replace(whole, captions=written)

    def _world(self, name: str, images: int) -> World:
        if name not in _TABLETOP_SPLITS:
            raise ConfigError(
                f"data.{name} cannot be drawn: the tabletop world has train, validation and test"
            )
        return World(_TABLETOP_SPLITS[name], images)

    def _import(self, name: str, source: Source) -> DataImport:
        from gmail_align.importing.run import check_options
        from gmail_align.importing.table import find_importer

        assert source.importer is not None
        try:
            function = find_importer(source.importer).load()
            options = check_options(source.importer, function, source.options)
        except ConfigError as error:
            place = name if "." in name else f"data.{name}"
            raise ConfigError(f"{place}: {error}") from error
        state = {}
        for key, value in options.items():
            if isinstance(value, Path):
                options[key] = self._place(value)
                state[key] = files_state(options[key])
            elif isinstance(value, list | tuple) and value and isinstance(value[0], Path):
                options[key] = [self._place(one) for one in value]
                state[key] = [files_state(one) for one in options[key]]
            else:
                state[key] = value
        counts = [
            {str(part): n for part, n in own.items()} for own in (source.expect, source.about)
        ]
        return DataImport(source.importer, state, options, None, *counts)

    def _place(self, path: Path) -> Path:
        """Return a path of the recipe, which starts at its home unless it is a URL."""
        return path if url_of(path) is not None else self.home / path.expanduser()

    @cached_property
    def leak_check(self) -> Step | None:
        """The step that refuses training images that the run is judged by.

        Raises:
            ConfigError: a set is the training set.
        """
        how, sets = self.recipe.evaluate.leaks, self.sets
        others = {name: one.images for name, one in sets.items() if name != "train"}
        judged = tuple(one for one in dict.fromkeys(others.values()) if one != sets["train"].images)
        drawn = any(one.world is not None for one in sets.values())
        if how == "off":
            return None
        for name, images in others.items():
            same = images == sets["train"].images and not images.missing
            if same and self.recipe.data[name].share is None:
                raise ConfigError(
                    f"data.{name} has the images of data.train: give it others, or a share of them"
                )
        if not judged:
            return None
        return LeakCheck(sets["train"].images, judged, how == "looks" and not drawn)
