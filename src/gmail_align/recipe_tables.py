"""The tables of a recipe: data, generators, encoders, alignments, learners, rows and claims."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from pydantic import Field, SerializeAsAny, model_validator

from gmail_align.alignment.config import AlignConfig
from gmail_align.captioning.config import CaptionerConfig, PredictConfig
from gmail_align.captioning.kinds import CAPTIONERS
from gmail_align.config import Config, build, merge, nearest
from gmail_align.encoders.shipped import SHIPPED
from gmail_align.errors import ConfigError
from gmail_align.report.names import HEADLINE
from gmail_align.synthesis.config import FilterConfig, SynthesisConfig
from gmail_align.vlm.config import AnswerConfig, LlavaConfig

NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
_OWN_KEYS: Final = ("captions_per_image", "limit", "expect", "about", "prompts")
_OF_LLAVA: Final = ("kind", "model", "says", "conversations", "questions", "answer")
Table = Mapping[str, Any]
if TYPE_CHECKING:
    LearnerKind = str
else:
    LearnerKind = Literal[(*CAPTIONERS, "llava", "probe", "none")]


class Prompts(Config):
    """What writes captions: of photos a captioner, of captions of classes a language model."""

    language_model: str | None = None
    """Goes on from the captions that the set has, such as those of classes."""
    captioner: str | None = None
    """Folder of a trained captioner, for photos without captions."""
    encoder: str | None = None
    """The encoder that the captioner was trained on."""
    route: Literal["frozen", "real"] = "frozen"
    """Which of the encoder's weights the photos go through."""
    each: int = Field(1, ge=1)
    """Captions of each photo, or of each caption of a class."""
    predict: PredictConfig = PredictConfig(method="nucleus")
    """How captions are drawn."""

    @model_validator(mode="after")
    def _one_writer(self) -> Self:
        ways = [self.language_model is not None, self.captioner is not None]
        if sum(ways) != 1 or (self.captioner is None) != (self.encoder is None):
            raise ValueError("name language_model alone, or captioner and encoder")
        return self


class Source(Config):
    """Where one set of images and captions comes from: exactly one of the first four."""

    importer: str | None = None
    """Name of an importer, the key ``import``; ``options`` are its own."""
    artifacts: str | None = None
    """Folder that an import wrote: it holds captions/, images/ and perhaps classes/."""
    tabletop: int | None = Field(None, ge=2, le=10_000_000)
    """Images drawn of the tabletop world (``kind = "tabletop"`` and ``images``)."""
    share: float | None = Field(None, gt=0, lt=1)
    """Share of the training images that is held out for this set."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the importer."""
    expect: dict[Literal["images", "captions"], int] = Field(default_factory=dict)
    """Counts that the import must have, up to a hundredth; a plan uses them before the import."""
    about: dict[Literal["images", "captions"], int] = Field(default_factory=dict)
    """Estimates for a plan, from which the import may differ."""
    captions_per_image: int | None = Field(None, ge=1)
    """Captions of each image that an image is generated from; None is all of them."""
    limit: int | None = Field(None, ge=2)
    """Use at most this many images, chosen by the recipe's seed."""
    prompts: Prompts | None = None
    """What writes the captions of a set that has none, or captions of classes alone."""

    @classmethod
    def parse(cls, place: str, table: Table) -> Self:
        """Read the table at ``place``, such as ``data.train``.

        Raises:
            ConfigError: it names no source, or several, or a key is unknown.
        """
        data = dict(table)
        ways: list[str] = [k for k in ("import", "artifacts", "kind", "share") if k in data]
        if len(ways) != 1:
            raise ConfigError(
                f'{place} must have exactly one of import = "...", artifacts = "...", '
                f'kind = "tabletop" or share = 0.1; it has {" and ".join(ways) or "none"}'
            )
        own: dict[str, Any] = {key: data.pop(key) for key in _OWN_KEYS if key in data}
        way = ways[0]
        value = data.pop(way)
        if value is None:
            raise ConfigError(f"{place}.{way} does not have a value: give one")
        if way == "import":
            return build(cls, {**own, "importer": value, "options": data}, place)
        if way == "kind":
            if value != SHIPPED:
                raise ConfigError(f'{place}.kind is {value!r}; the only kind is "tabletop"')
            if "images" not in data:
                raise ConfigError(f"{place} does not say how many images: add images = 1000")
            way, value = "tabletop", data.pop("images")
        refuse_unknown(place, data, ("images", *_OWN_KEYS))
        return build(cls, {**own, way: value}, place)


class Filter(FilterConfig):
    """Which generated images are left out, and whether captions are assigned to others."""

    encoder: str | None = None
    """CLIP that scores and assigns; ``tabletop`` is the shipped one."""

    @model_validator(mode="after")
    def _has_encoder(self) -> Self:
        if self.encoder is None and (self.reassign or self.min_clip_score is not None):
            raise ValueError("reassign and min_clip_score need an encoder: add encoder")
        return self


class Generator(Config):
    """What makes generated images: settings of synthesis, or images that exist."""

    settings: SynthesisConfig | None = None
    filter: Filter | None = None
    """How the images are filtered; None keeps all."""
    source: Source | None = None
    family: str = ""
    """The preset's family, whose networks are known without their files."""

    @classmethod
    def parse(cls, place: str, table: Table) -> Self:
        """Read the table at ``place``; see :meth:`Source.parse` for images that exist."""
        if "import" in table or "artifacts" in table:
            return cls(source=Source.parse(place, table))
        data = with_preset(place, table, SynthesisConfig)
        chosen = data.pop("filter", None)
        if "model" not in data:
            raise ConfigError(f'{place} names no model: add model = "FOLDER or hub id"')
        family = str(table.get("preset", "")).removesuffix("_fast")
        filtered = None if chosen is None else build(Filter, chosen, f"{place}.filter")
        settings = build(SynthesisConfig, data, place)
        return cls(settings=settings, filter=filtered, family=family)


class Encoder(Config):
    """The encoder that a row starts from."""

    base: str = SHIPPED
    """Folder or hub id of a CLIP, SigLIP or Long-CLIP; ``tabletop`` is the shipped CLIP, and
    ``tabletop/siglip`` and ``tabletop/long_clip`` are its siblings."""
    batch_size: int = Field(64, ge=1)
    """Images embedded at once."""


def uses_real_images(config: AlignConfig) -> bool:
    """Whether real images have a say in what an alignment learns, or in which step is kept."""
    weights = config.weights.model_dump()
    learned = any(value > 0 for name, value in weights.items() if name != "text_generated")
    blind = config.guarded in ("text_generated", "objective") and config.keep_real is None
    return learned or config.method != "gmail" or config.data != "synthetic" or not blind


def uses_generated_images(config: AlignConfig) -> bool:
    """Whether generated images have a say in what an alignment learns, or in which step is kept."""
    of_real = ("text_real", "distill_real")
    weights = config.weights.model_dump()
    learned = any(value > 0 for name, value in weights.items() if name not in of_real)
    blind = config.guarded in (*of_real, "objective", "retrieval", "zeroshot")
    return (learned and config.data != "real") or config.method != "gmail" or not blind


class Learner(Config):
    """What learns from a row's images: a captioner, a LLaVA, a linear probe, or nothing."""

    kind: LearnerKind
    model: str = SHIPPED
    """Language model: a folder or hub id; ``tabletop`` is the shipped GPT-2, or for a LLaVA the
    shipped Llama."""
    settings: SerializeAsAny[CaptionerConfig] | None = None
    """Settings of a captioner."""
    predict: PredictConfig = PredictConfig()
    """How captions of the test images are searched for."""
    llava: LlavaConfig | None = None
    """Settings of a LLaVA."""
    says: tuple[Literal["captions", "answers"], ...] = ("captions",)
    """What a LLaVA learns to say about its images."""
    conversations: str | None = None
    """File in LLaVA's format about the real images, for ``answers``; an image that was generated
    from a real image's caption takes its place. The tabletop world asks its own questions."""
    questions: int = Field(5, ge=1)
    """Most questions about a picture of the tabletop world."""
    answer: AnswerConfig = AnswerConfig()
    """How a LLaVA writes captions and answers."""
    train: str | None = None
    """Data set whose real images a probe learns from, instead of those of its row."""
    test: str | None = None
    """Data set that a probe is judged on; None is the test set."""
    protocol: str | None = None
    """Protocol of a probe; None is that of ``[evaluate]``."""

    @classmethod
    def parse(cls, place: str, table: Table) -> Self:
        """Read the table at ``place``: own keys, and a preset with settings over it."""
        if table.get("kind") == "llava":
            own = {key: table[key] for key in _OF_LLAVA if key in table}
            data = {key: value for key, value in table.items() if key not in own}
            llava = build(LlavaConfig, with_preset(place, data, LlavaConfig), place)
            return build(cls, {**own, "llava": llava}, place)
        own = {key: table[key] for key in ("kind", "model", "predict") if key in table}
        data = {key: value for key, value in table.items() if key not in own}
        kind = CAPTIONERS.get(str(own.get("kind")))
        if kind is None:
            sets = ("train", "test", "protocol") if own.get("kind") == "probe" else ()
            known = ("kind", "model", "predict", *sets)
            refuse_unknown(place, {k: v for k, v in data.items() if k not in sets}, known)
            return build(cls, {**own, **data}, place)
        settings = build(kind.config, with_preset(place, data, kind.config), place)
        return build(cls, {**own, "settings": settings}, place)


class Subset(Config):
    """A named part of the training pairs."""

    images: float = Field(gt=0)
    """Real images whose pairs are kept: a share below 1, or a number."""


class Row(Config):
    """One line of the result: what learns, from which images, through which alignment."""

    name: str = Field(pattern=NAME)
    """Name of the row, which claims and ``index.json`` use."""
    label: str = ""
    """Name in tables and figures; the row's name when empty."""
    detail: str = ""
    """A second, quieter line: what the row stands for."""
    mark: Literal["", "ours", "bound"] = ""
    """How figures show it: the method under test, or a bound that does not compete."""
    learn: str = "none"
    """Name of a learner."""
    images: Literal["generated", "real", "mixed"] = "generated"
    """What the learner is trained on."""
    real_share: float = Field(0.5, gt=0, lt=1)
    """Share of real images among ``mixed`` ones."""
    pairs: str | None = None
    """Named subset of the pairs, whose real images are the only ones that this row may see."""
    align: str | None = None
    """Name of the alignment that generated images go through; None leaves them as they are."""
    reads: Literal["frozen", "real", "real_head"] = "frozen"
    """Route by which the learner reads real test images."""
    encoder: str = "default"
    """Name of one of several encoders, such as ``[encoder.long_clip]``."""
    generator: str = "default"
    """Name of one of several generators, such as ``[generator.flux]``."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Keys of the recipe that have another value for this row alone."""

    @property
    def title(self) -> str:
        """The label, or the name."""
        return self.label or self.name


class Claim(Config):
    """A sentence that the run tests: one row is better than another by one metric."""

    name: str = Field(min_length=1)
    """The sentence."""
    better: str
    """Name of the row that is claimed to score more."""
    worse: str
    """Name of the row that it is compared with."""
    metric: str = HEADLINE
    """What both rows are compared by: a metric of captions, retrieval, classes or answers."""

    @model_validator(mode="after")
    def _two_rows(self) -> Self:
        if self.better == self.worse:
            raise ValueError(f"{self.better!r} is compared with itself: name another row")
        return self


class Evaluate(Config):
    """What every row and every alignment is judged by; counts of known protocols are asserted."""

    captions: str = "captions"
    """Protocol of the captions of the test images."""
    retrieval: tuple[str, ...] = ()
    """Protocols of retrieval: of the data set of that name, or of the test images."""
    zeroshot: tuple[str, ...] = ()
    """Protocols of classification: of the data set of that name, or of the test images' classes;
    ``tabletop`` stands for the class sets of the tabletop world."""
    answers: tuple[str, ...] = ()
    """Protocols of question answering, for rows of a LLaVA: of the data set of that name, or
    questions about the test scenes of the tabletop world."""
    probe: str = "linear_probe"
    """Protocol of linear probes of the test images."""
    subset: bool = False
    """The sets are declared parts of their protocols' sets."""
    gap: bool = True
    """Measure the gap before and after every alignment, on the validation pairs."""
    gap_texts: bool = False
    """Measure the cosines of those images and their captions, too; the encoder reads texts."""
    leaks: Literal["looks", "ids", "off"] = "looks"
    """How training images are compared with test images before anything is trained."""


def with_preset(place: str, table: Table, stage: type[Config]) -> dict[str, Any]:
    """Put the settings of a table over those of the preset that it names, key by key.

    Raises:
        ConfigError: there is no such preset.
    """
    data = dict(table)
    if "preset" not in data:
        return data
    name = str(data.pop("preset"))
    if name not in stage.presets:
        raise ConfigError(f"{place}.preset is {name!r}; {nearest(name, stage.presets)}")
    return merge(stage.preset_keys(name), data)


def refuse_unknown(place: str, table: Table, known: Iterable[str]) -> None:
    """Refuse the keys that are left in a table.

    Raises:
        ConfigError: there is one; its nearest neighbour is named.
    """
    for key in table:
        raise ConfigError(f"unknown key '{place}.{key}'; {nearest(key, known)}")
