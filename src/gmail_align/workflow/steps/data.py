"""Steps of data: imports, captions, generated images and pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from gmail_align.artifacts import begin, load
from gmail_align.errors import DataError
from gmail_align.progress import say
from gmail_align.remote import url_of
from gmail_align.synthesis.config import SynthesisConfig
from gmail_align.workflow.work import Model, Step, Work, not_identity, plain_key

_TOLERATED: Final = 0.01
"""Share of an expected count by which an import may differ, as unusable files may be left out."""


@dataclass(frozen=True, eq=False)
class World(Step):
    """Scenes of the tabletop world, drawn in COCO's layout."""

    kind = "worlds"
    what = "{images} scenes of the tabletop world ({split})"
    split: str
    images: int

    def _make(self, work: Work, out: Path) -> None:
        from gmail_align.tabletop.run import make_world

        workers = work.engine.workers or 1
        make_world({self.split: self.images}, out, workers=workers)


@dataclass(frozen=True)
class DataImport:
    """An importer and its options; it makes captions, images and classes at once."""

    importer: str
    state: Mapping[str, Any]
    """The options, with the content of each path in the path's place."""
    options: Mapping[str, Any] = field(metadata={"identity": False})
    world: World | None = None
    """The tabletop world that is imported, where it is one."""
    expect: Mapping[str, int] = field(default_factory=dict, metadata={"identity": False})
    """Counts that the import must have, up to a hundredth."""
    about: Mapping[str, int] = field(default_factory=dict, metadata={"identity": False})
    """Estimates of these counts."""

    @property
    def missing(self) -> list[Path]:
        """The paths among the options that do not exist."""
        values = self.options.values()
        paths = [one for value in values for one in (value if _is_list(value) else [value])]
        local = [path for path in paths if isinstance(path, Path) and url_of(path) is None]
        return [path for path in local if not path.exists()]


@dataclass(frozen=True, eq=False)
class Imported(Step):
    """The captions, the images or the classes that an import makes."""

    kind = "imports"
    what = "{part} that the importer {source.importer} reads"
    source: DataImport
    part: str

    @property
    def missing(self) -> list[Path]:
        """The paths among the import's options that do not exist."""
        return self.source.missing

    def place(self, folder: Path) -> Path:
        """Return the artifact's folder inside that of its import."""
        return folder / self.kind / plain_key(self.source) / self.part

    def _make(self, work: Work, out: Path) -> None:
        from gmail_align.importing.run import import_data

        options, world = dict(self.source.options), self.source.world
        if world is not None:
            drawn = work.get(world)
            options["annotations"] = drawn.path(f"captions_{world.split}.json")
            options["images"] = [drawn.path("images")]
        made = import_data(self.source.importer, options, out.parent)
        if self.part not in made:
            raise DataError(
                f"import {self.source.importer} has no {self.part}, which the recipe needs: it "
                f"has {', '.join(made)}"
            )
        for part, count in self.source.expect.items():
            if part in made and abs(made[part].counts[part] - count) > _TOLERATED * count:
                raise DataError(
                    f"import {self.source.importer} has {made[part].counts[part]} {part}, and the "
                    f"recipe expects {count}: give the whole set, or correct expect"
                )


@dataclass(frozen=True, eq=False)
class Existing(Step):
    """An artifact that lies outside the work folder."""

    what = "artifact {folder}"

    fingerprint: str
    folder: str = field(metadata={"identity": False})

    def place(self, folder: Path) -> Path:
        """Return its own folder."""
        return Path(self.folder)


@dataclass(frozen=True, eq=False)
class Choose(Step):
    """Some captions of each image, or the captions of some images."""

    kind = "captions"
    captions: Step
    each: int | None
    images: float | None
    seed: int

    @property
    def words(self) -> str:
        """What is made, in words."""
        whose = "every image" if self.images is None else _amount(self.images, "images")
        if self.each == 1:
            return f"one caption of {whose if self.images is None else f'each of {whose}'}"
        return f"{'all' if self.each is None else f'up to {self.each}'} captions of {whose}"

    def _make(self, work: Work, out: Path) -> None:
        from gmail_align.data.subsets import choose_captions

        captions = work.get(self.captions)
        choose_captions(captions, self.each, out, images=self.images, seed=self.seed)


_PARTS: Final = {"held": "(held out)", "rest": "(all that are not held out)"}


@dataclass(frozen=True, eq=False)
class HeldOut(Step):
    """The captions (or pairs) of images that are held out, or those of all others."""

    kind = "parts"
    captions: Step
    share: float
    part: Literal["held", "rest"]
    seed: int

    @property
    def words(self) -> str:
        """What is made, in words."""
        share = self.share if self.part == "held" else 1 - self.share
        return f"captions of {_amount(share, 'images')} {_PARTS[self.part]}"

    def _make(self, work: Work, out: Path) -> None:
        from gmail_align.data.subsets import hold_out

        source = work.get(self.captions)
        hold_out(source, self.share, out, held=self.part == "held", seed=self.seed)


@dataclass(frozen=True, eq=False)
class LeakCheck(Step):
    """The proof that no training image is among images that the run is judged by."""

    kind = "leaks"
    what = "check that no training image is a test image"
    train: Step
    judged: tuple[Step, ...]
    looks: bool

    def _make(self, work: Work, out: Path) -> None:
        from gmail_align.data.leaks import find_leaks, refuse_leaks

        train, judged = work.get(self.train), [work.get(step) for step in self.judged]
        inputs = {"train": train, **{f"judged{n}": one for n, one in enumerate(judged)}}
        leaks = find_leaks(train, judged, hashed=self.looks)
        refuse_leaks(leaks, train)
        for place in leaks.not_compared:
            say(f"cannot tell whether {place} has training images: ids of both mean nothing")
        draft = begin(out, "leaks", {"looks": self.looks}, inputs)
        if draft.complete is None:
            draft.finish({"compared": leaks.evaluation})


@dataclass(frozen=True, eq=False)
class Synthesis(Step):
    """Images generated from captions."""

    kind = "generated"
    what = "images that {model.name} generates from captions"
    captions: Step
    model: Model
    settings: Mapping[str, Any]
    """What the images depend on."""
    config: SynthesisConfig = field(metadata={"identity": False})
    family: str = not_identity("")
    """Name of known networks that the model has, for a plan."""
    judge: Model | None = None
    """CLIP that chooses among candidates."""

    @property
    def missing(self) -> list[Path]:
        """The generator's LoRA, where there is none."""
        files = [Path(self.config.adapter)] if self.config.adapter else []
        return [file for file in files if not file.is_file()]

    def _make(self, work: Work, out: Path) -> None:
        from gmail_align.synthesis.run import synthesize

        judge = "" if self.judge is None else self.judge.path
        config = self.config.model_copy(update={"model": self.model.path, "judge": judge})
        mirror = work.copy_of(self)
        synthesize(config, work.get(self.captions), out, work.engine, mirror=mirror)


@dataclass(frozen=True, eq=False)
class Pairs(Step):
    """Real and generated images of the same captions."""

    kind = "pairs"
    what = "pairs of real and generated images"
    captions: Step
    real: Step
    generated: Step
    texts: Step | None = None
    """Captions of the generated images, where these were not made from ``captions``."""
    seed: int = 0

    def _make(self, work: Work, out: Path) -> None:
        from gmail_align.data.pairs import make_pairs, make_pairs_by_text

        captions, real = work.get(self.captions), work.get(self.real)
        generated = work.get(self.generated)
        if self.texts is None:
            make_pairs(captions, real, generated, out)
        else:
            texts = work.get(self.texts)
            make_pairs_by_text(captions, real, generated, texts, out, seed=self.seed)


@dataclass(frozen=True, eq=False)
class ChosenPairs(Step):
    """All pairs of some real images."""

    kind = "pairs"
    pairs: Step
    images: float
    seed: int

    @property
    def words(self) -> str:
        """What is made, in words."""
        return f"pairs of {_amount(self.images, 'real images')}"

    def _make(self, work: Work, out: Path) -> None:
        from gmail_align.data.subsets import choose_pairs

        choose_pairs(work.get(self.pairs), self.images, out, seed=self.seed)


def existing(folder: Path, kind: str) -> Existing:
    """Return the step of an artifact that exists.

    Raises:
        ArtifactError: it is missing, unfinished or of another kind.
    """
    return Existing(load(folder, kind).fingerprint, str(folder))


def _amount(images: float, what: str) -> str:
    """Say how many images: a share below 1, or a number."""
    return f"{images:,.0f} {what}" if images > 1 else f"{100 * images:.3g}% of the {what}"


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)
