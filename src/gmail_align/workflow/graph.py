"""From a recipe to steps: what each row needs, and what rows have in common.

Nothing is made here and no model is opened, so that a plan takes no time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from gmail_align.encoders.route import Route
from gmail_align.errors import ConfigError
from gmail_align.recipe import Recipe
from gmail_align.recipe_tables import (
    Filter,
    Generator,
    Learner,
    Row,
    Source,
    uses_generated_images,
    uses_real_images,
)
from gmail_align.synthesis.config import FilterConfig
from gmail_align.workflow.datasets import DataSets
from gmail_align.workflow.rows import JudgedEncoder, RowSteps
from gmail_align.workflow.steps.data import (
    Choose,
    ChosenPairs,
    HeldOut,
    Pairs,
    Synthesis,
    World,
    existing,
)
from gmail_align.workflow.steps.encoders import (
    Aligned,
    Filtered,
    Gap,
    ImageFeatures,
    Retrieval,
    TextFeatures,
    ZeroShot,
)
from gmail_align.workflow.steps.learners import (
    LearnerImages,
    Predictions,
    Probe,
    TrainedCaptioner,
)
from gmail_align.workflow.steps.multimodal import (
    Answered,
    AnswerScores,
    Instructions,
    LlavaCaptions,
    TalkedImages,
    TrainedLlava,
    WorldQuestions,
)
from gmail_align.workflow.work import Model, Step, files_state, find_model

Side = Literal["real", "generated"]
_NOT_IDENTITY = {
    *("model", "revision", "variant", "device", "dtype", "batch_size", "compile", "writers"),
    *("limit_quarantine", "judge"),
}
"""Settings of synthesis that the weights' content stands for, or that change rounding at most."""


class Graph:
    """The steps of one recipe, as one row sees it.

    Args:
        recipe: The recipe, with the row's own values of keys.
        home: Folder that relative paths of the recipe start from.

    Raises:
        UserError: an input does not exist, or a setting does not fit what it is used for.
    """

    def __init__(self, recipe: Recipe, home: Path) -> None:
        self.recipe, self.home = recipe, home
        self.data = DataSets(recipe, home)
        self.sets = self.data.sets

    def encoder(self, row: Row) -> Model:
        """Return the encoder that a row starts from."""
        return find_model(self.recipe.encoder[row.encoder].base, "clip", self.home)

    def prompts(self, split: str) -> Step:
        """Return the captions of a set that images are generated from."""
        captions, each = self.sets[split].captions, self.recipe.data[split].captions_per_image
        if each is None and self.recipe.data[split].share is not None:
            each = self.recipe.data["train"].captions_per_image
        return captions if each is None else Choose(captions, each, None, self.recipe.seed)

    def generated(self, split: str, row: Row) -> tuple[Step, Step | None]:
        """Return the generated images of a set, and their captions where they have their own."""
        table: Generator = self.recipe.generator[row.generator]
        if table.source is not None:
            return self._pool(split, row.generator, table.source)
        config = table.settings
        assert config is not None
        settings = config.model_dump(mode="json", exclude=_NOT_IDENTITY)
        if config.adapter:
            path = self.home / Path(config.adapter).expanduser()
            config = config.model_copy(update={"adapter": str(path)})
            settings["adapter"] = files_state(path)
        model = find_model(config.model, "diffusion", self.home, config.revision)
        judge = find_model(config.judge, "clip", self.home) if config.best_of > 1 else None
        made = Synthesis(self.prompts(split), model, settings, config, table.family, judge)
        return (made if table.filter is None else self._filtered(made, table.filter)), None

    def _filtered(self, images: Synthesis, chosen: Filter) -> Step:
        judge = None if chosen.encoder is None else find_model(chosen.encoder, "clip", self.home)
        settings = FilterConfig(**chosen.model_dump(exclude={"encoder"}))
        return Filtered(images, settings, judge)

    def _pool(self, split: str, name: str, source: Source) -> tuple[Step, Step | None]:
        """Return images that exist; a part of them is kept for validation."""
        if source.artifacts is not None:
            folder = self.home / source.artifacts
            if not (folder / "captions").is_dir():
                return existing(folder, "images"), None
        pool = self.data.read_set(f"generator.{name}", source)
        if source.importer == "cifake":  # whose ids name the real image that shares the class
            return pool.images, None
        part: Literal["held", "rest"] = "held" if split == "validation" else "rest"
        return pool.images, HeldOut(pool.captions, 0.1, part, self.recipe.seed)

    def pairs(self, split: str, row: Row) -> Step:
        """Return the pairs of a set; of the training set, those of the row's subset."""
        images, texts = self.generated(split, row)
        pairs: Step = Pairs(
            self.prompts(split), self.sets[split].images, images, texts, self.recipe.seed
        )
        if row.pairs is None or split != "train":
            return pairs
        return ChosenPairs(pairs, self.recipe.subsets[row.pairs].images, self.recipe.seed)

    def real_features(self, split: str, encoder: Step | Model, route: str, row: Row) -> Step:
        """Return features of a set's real images."""
        images = self.sets[split]
        size = self.recipe.encoder[row.encoder].batch_size
        return ImageFeatures(images.images, encoder, route, images.of, "real", size)

    def generated_features(self, split: str, row: Row, seed: int) -> Step:
        """Return features of a set's generated images, as the row's learner reads them."""
        images = self.generated(split, row)[0]
        of = None  # images that were made for these captions are all embedded
        if not isinstance(images, Synthesis | Filtered):
            of = self.pairs(split, row.model_copy(update={"pairs": None}))
        size = self.recipe.encoder[row.encoder].batch_size
        aligned = self.aligned(row, seed)
        if aligned is None:
            return ImageFeatures(images, self.encoder(row), "frozen", of, "generated", size)
        return ImageFeatures(images, aligned, "generated", of, "generated", size)

    def aligned(self, row: Row, seed: int) -> Aligned | None:
        """Return the row's aligned encoder; None where it has no alignment."""
        if row.align is None:
            return None
        alignment = self.recipe.align[row.align]
        return Aligned(
            self.pairs("train", row),
            self.sets["train"].images,
            self.generated("train", row)[0],
            self.encoder(row),
            alignment,
            seed,
            uses_real_images(alignment),
            uses_generated_images(alignment),
        )

    def row_steps(self, row: Row, seed: int) -> RowSteps:
        """Return what one row of one seed is made of."""
        learner = self.recipe.learn[row.learn]
        judged = None
        aligned = self.aligned(row, seed)
        if aligned is not None:
            of = "" if row.pairs is None else f" on {row.pairs}"
            judged = self.judge(f"{row.align}{of}", row, aligned, seed)
        judges = judged or self.plain_encoder(row)
        reader = self.encoder(row) if aligned is None or row.reads == "frozen" else aligned
        test = self.real_features("test", reader, row.reads, row)
        if learner.kind == "probe":
            probe = self._probe(learner, row, seed, reader)
            return RowSteps(row, seed, probe, probe, judged, judges)
        if learner.llava is not None:
            llava = self._llava(learner, row, seed)
            captions = self._llava_captions(llava, learner)
            answers = self._answers(llava, learner)
            return RowSteps(row, seed, llava, captions, judged, judges, answers)
        if learner.settings is None:
            return RowSteps(row, seed, None, None, judged, judges)
        captioner = self._captioner(learner, row, seed)
        predictions = Predictions(captioner, test, learner.predict)
        return RowSteps(row, seed, captioner, predictions, judged, judges)

    def _probe(self, learner: Learner, row: Row, seed: int, reader: Step | Model) -> Step:
        """Return a probe of the row's images, or of the labelled sets that the learner names."""
        names = [learner.train or "train", learner.test or "test"]
        unknown = [name for name in names if name not in self.sets]
        plain = [name for name in names if name in self.sets and self.sets[name].classes is None]
        if unknown or plain:
            raise ConfigError(
                f"learn.{row.learn} needs images with classes, which data.{(unknown + plain)[0]} "
                "does not have: import class folders"
            )
        classes = [one for name in names if (one := self.sets[name].classes)]
        test = self.real_features(names[1], reader, row.reads, row)
        evaluate = self.recipe.evaluate
        train = None
        seen: tuple[LearnerImages, ...] = ()
        if learner.train is not None:
            train = self.real_features(names[0], reader, row.reads, row)
        else:
            seen = tuple(self._learner_images("train", one, row, seed) for one in _sides(row))
        return Probe(
            train,
            classes[0],
            test,
            classes[1],
            learner.protocol or evaluate.probe,
            evaluate.subset,
            seed,
            seen,
        )

    def _captioner(self, learner: Learner, row: Row, seed: int) -> Step:
        model = find_model(learner.model, "gpt2", self.home)
        assert learner.settings is not None
        settings = learner.settings
        sides = _sides(row)[:1] if settings.reads_texts else _sides(row)
        validation = self._learner_images("validation", sides[0], row, seed)
        images = tuple(self._learner_images("train", one, row, seed) for one in sides)
        texts: tuple[Step, ...] = ()
        if settings.reads_texts:
            prompts = self.prompts("train")
            texts = prompts, TextFeatures(prompts, self.encoder(row))
        shown = images if settings.reads_images else ()
        return TrainedCaptioner(settings, model, shown, validation, seed, *texts)

    def _llava(self, learner: Learner, row: Row, seed: int) -> TrainedLlava:
        assert learner.llava is not None
        if row.align is not None and self.recipe.align[row.align].method != "gmail":
            raise ConfigError(
                f"row {row.name!r}: a LLaVA reads patches, which align.{row.align} leaves as they "
                'are: give the alignment method = "gmail"'
            )
        settings = learner.llava.model_copy(update={"reads": Route(row.reads)})
        model = find_model(learner.model, "llama", self.home)
        images = tuple(self._talked(learner, "train", one, row, seed) for one in _sides(row))
        held = self._talked(learner, "validation", _sides(row)[0], row, seed)
        encoder = self.aligned(row, seed) or self.encoder(row)
        return TrainedLlava(settings, model, encoder, images, held, seed)

    def _talked(
        self, learner: Learner, split: str, side: Side, row: Row, seed: int
    ) -> TalkedImages:
        """Return images of one side with the conversations that the learner has about them."""
        assert learner.llava is not None
        own, seen = self.sets[split], self._learner_images(split, side, row, seed)
        talks = learner.conversations if split == "train" else None
        file = None if talks is None else self.home / talks
        answers = "answers" in learner.says
        if answers and own.world is None and learner.conversations is None:
            raise ConfigError(
                f"learn.{row.learn} says answers, and data.{split} does not have any: name a file"
                " in LLaVA's format, conversations"
            )
        captions = "captions" in learner.says or (file is None and own.world is None)
        talked = Instructions(
            seen.pairs,
            side,
            learner.llava.prompt if captions else None,
            own.world if answers else None,
            learner.questions if answers else 0,
            None if file is None else files_state(file),
            None if file is None else str(file),
        )
        if side == "real":
            return TalkedImages(talked, own.images, "frozen")
        route = "frozen" if row.align is None else "generated"
        return TalkedImages(talked, self.generated(split, row)[0], route)

    def _llava_captions(self, llava: TrainedLlava, learner: Learner) -> LlavaCaptions:
        assert learner.llava is not None
        test = self.sets["test"]
        how = learner.answer.model_copy(update={"prompt": learner.llava.prompt})
        return LlavaCaptions(llava, test.images, test.of, how)

    def _answers(self, llava: TrainedLlava, learner: Learner) -> dict[str, Step]:
        """Return the scores of a LLaVA's answers, by protocol."""
        scores: dict[str, Step] = {}
        for protocol in self.recipe.evaluate.answers:
            images = self.sets[protocol if protocol in self.sets else "test"]
            if images.world is not None:
                questions: Step = WorldQuestions(images.world, learner.questions)
            elif images.questions is not None:
                questions = images.questions
            else:
                raise ConfigError(
                    f"evaluate.answers names {protocol!r}, and no data set of that name has"
                    " questions: import ScienceQA or MMMU, or draw a tabletop test set"
                )
            said = Answered(llava, questions, images.images, learner.answer)
            scores[protocol] = AnswerScores(said, protocol, self.recipe.evaluate.subset)
        return scores

    def _learner_images(self, split: str, side: Side, row: Row, seed: int) -> LearnerImages:
        """Return one side of a set as a learner sees it; of mixed training images, its share."""
        if side == "real":
            features = self.real_features(split, self.encoder(row), "frozen", row)
            pairs = self.pairs(split, row)
        else:  # generated images cost no real ones: a row may learn from all of them
            features = self.generated_features(split, row, seed)
            pairs = self.pairs(split, row.model_copy(update={"pairs": None}))
        if row.images == "mixed" and split == "train":
            part: Literal["held", "rest"] = "held" if side == "real" else "rest"
            pairs = HeldOut(pairs, row.real_share, part, self.recipe.seed)
        return LearnerImages(features, pairs, side)

    def plain_encoder(self, row: Row) -> JudgedEncoder:
        """Return the encoder that a row starts from, and what it is judged by."""
        return self.judge("frozen", row, self.encoder(row), self.recipe.seed, "frozen")

    def judge(
        self, name: str, row: Row, encoder: Step | Model, seed: int, route: str = "real"
    ) -> JudgedEncoder:
        """Return what an encoder is judged by, real images going through ``route``."""
        evaluate, gap = self.recipe.evaluate, None
        if evaluate.gap and self.recipe.generator:
            whole = row.model_copy(update={"pairs": None})
            real = self.real_features("validation", self.encoder(row), "frozen", row)
            own = row if isinstance(encoder, Step) else row.model_copy(update={"align": None})
            generated = self.generated_features("validation", own, seed)
            texts = None
            if evaluate.gap_texts:
                texts = TextFeatures(self.prompts("validation"), self.encoder(row))
            gap = Gap(self.pairs("validation", whole), real, generated, texts)
        retrieval = {n: self._retrieval(n, row, encoder, route) for n in evaluate.retrieval}
        zeroshot: dict[str, Step] = {}
        for protocol in evaluate.zeroshot:
            zeroshot |= self._zeroshot(protocol, row, encoder, route)
        return JudgedEncoder(name, encoder, gap, retrieval, zeroshot)

    def _retrieval(self, protocol: str, row: Row, encoder: Step | Model, route: str) -> Step:
        split = protocol if protocol in self.sets else "test"
        captions = self.sets[split].captions
        texts = TextFeatures(captions, self.encoder(row))
        if isinstance(encoder, Aligned) and encoder.settings.lora.adapts_texts:
            texts = TextFeatures(captions, encoder, "real")
        images = self.real_features(split, encoder, route, row)
        return Retrieval(images, texts, captions, protocol, self.recipe.evaluate.subset)

    def _zeroshot(
        self, protocol: str, row: Row, encoder: Step | Model, route: str
    ) -> dict[str, Step]:
        split = protocol if protocol in self.sets else "test"
        images, subset = self.sets[split], self.recipe.evaluate.subset
        features = self.real_features(split, encoder, route, row)
        if images.world is not None:
            return {
                f"tabletop_{name}": ZeroShot(
                    features, encoder, images.world, f"tabletop_{name}", subset, name
                )
                for name in _sets_with_labels(images.world)
            }
        if images.classes is None:
            raise ConfigError(
                f"evaluate.zeroshot names {protocol!r}, but the images of data.{split} have no "
                "classes: import them as class folders"
            )
        return {protocol: ZeroShot(features, encoder, images.classes, protocol, subset)}


def _sides(row: Row) -> tuple[Side, ...]:
    """Return the kinds of images that a row's learner is trained on."""
    if row.images == "mixed":
        return "generated", "real"
    return ("real",) if row.images == "real" else ("generated",)


def _sets_with_labels(world: World) -> list[str]:
    """Return the class sets that some scene of a world has a class of."""
    from gmail_align.tabletop.classes import class_label, class_sets
    from gmail_align.tabletop.scenes import sample_scene

    return [
        name
        for name in class_sets()
        if any(
            class_label(sample_scene(number, world.split), name) is not None
            for number in range(world.images)
        )
    ]
