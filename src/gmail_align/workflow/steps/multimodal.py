"""Steps of LLaVA: conversations about a row's images, the training, captions and answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from gmail_align.data.protocols import Task
from gmail_align.vlm.config import AnswerConfig, LlavaConfig
from gmail_align.workflow.steps.data import World
from gmail_align.workflow.steps.encoders import image_ids, open_encoder
from gmail_align.workflow.work import Model, Step, Work, not_identity

if TYPE_CHECKING:
    from gmail_align.artifacts import Artifact
    from gmail_align.vlm.instructions import TurnsOf


@dataclass(frozen=True, eq=False)
class Instructions(Step):
    """Conversations about one side of pairs."""

    kind = "conversations"
    what = "conversations about {side} images"
    pairs: Step
    side: Literal["real", "generated"]
    prompt: str | None
    """Asks for the caption; None leaves captions out."""
    world: World | None = None
    """The tabletop world whose scenes are asked about."""
    questions: int = 0
    """Questions about each scene, of those that its caption answers."""
    content: str | None = None
    """Content of ``talks``."""
    talks: str | None = not_identity(None)
    """A file in LLaVA's format about the real images."""

    @property
    def missing(self) -> list[Path]:
        """The file of conversations, where there is none."""
        files = [] if self.talks is None else [Path(self.talks)]
        return [file for file in files if not file.is_file()]

    def _make(self, work: Work, out: Path) -> None:
        from gmail_align.vlm.instructions import talks_of, write_instructions

        asked: TurnsOf | None = None
        inputs: dict[str, Artifact | str] = {}
        if self.world is not None:
            inputs["world"] = work.get(self.world)
            asked = self._scene_questions(work)
        elif self.talks is not None:
            inputs["talks"] = str(self.content)
            asked = talks_of(Path(self.talks))
        write_instructions(
            work.get(self.pairs),
            self.side,
            out,
            prompt=self.prompt,
            asked=asked,
            inputs=inputs,
            settings={"questions": self.questions},
        )

    def _scene_questions(self, work: Work) -> TurnsOf:
        from gmail_align.tabletop.run import caption_questions
        from gmail_align.vlm.conversations import Turn

        assert self.world is not None
        drawn = caption_questions(work.get(self.world), self.world.split, self.questions)
        return lambda pair: [Turn(*one) for one in drawn(pair.real_image_id, pair.text)]


@dataclass(frozen=True)
class TalkedImages:
    """Images that a LLaVA is shown, and what is said about them."""

    conversations: Instructions
    images: Step
    route: str

    @property
    def pairs(self) -> Step:
        """The pairs that the conversations are about."""
        return self.conversations.pairs

    @property
    def side(self) -> Literal["real", "generated"]:
        """Whether they are real or generated."""
        return self.conversations.side


@dataclass(frozen=True, eq=False)
class TrainedLlava(Step):
    """A LLaVA."""

    kind = "vlms"
    what = "LLaVA, seed {seed}"
    trains = True
    settings: LlavaConfig
    model: Model
    """The language model."""
    encoder: Step | Model
    images: tuple[TalkedImages, ...]
    validation: TalkedImages
    seed: int

    def _make(self, work: Work, out: Path) -> None:
        from gmail_align.encoders.route import Route
        from gmail_align.vlm.sets import ConversationSet
        from gmail_align.vlm.training import train_llava

        *sets, held = (
            ConversationSet(work.get(one.conversations), work.get(one.images), Route(one.route))
            for one in (*self.images, self.validation)
        )
        encoder, words = open_encoder(work, self.encoder), Path(self.model.path)
        train_llava(self.settings, sets, encoder, words, out, validation=held, seed=self.seed)


@dataclass(frozen=True, eq=False)
class LlavaCaptions(Step):
    """Captions of test images by a LLaVA."""

    kind = "predictions"
    what = "captions of the test images by a {captioner.words}"
    captioner: TrainedLlava
    images: Step
    of: Step | None
    settings: AnswerConfig

    def _make(self, work: Work, out: Path) -> None:
        from gmail_align.vlm.answers import predict_answers

        ids = None if self.of is None else image_ids(work.get(self.of), "real")
        vlm, images = work.get(self.captioner), work.get(self.images)
        predict_answers(vlm, None, out, self.settings, images=images, of=ids)


@dataclass(frozen=True, eq=False)
class WorldQuestions(Step):
    """Questions about the scenes of a tabletop world."""

    kind = "questions"
    what = "{each} questions about each of {world.images} scenes"
    world: World
    each: int

    def _make(self, work: Work, out: Path) -> None:
        from gmail_align.tabletop.run import write_questions

        write_questions(work.get(self.world), self.world.split, self.each, out)


@dataclass(frozen=True, eq=False)
class Answered(Step):
    """Answers of a LLaVA to questions."""

    kind = "predictions"
    what = "answers of a {vlm.words}"
    vlm: TrainedLlava
    questions: Step
    images: Step
    settings: AnswerConfig

    def _make(self, work: Work, out: Path) -> None:
        from gmail_align.vlm.answers import predict_answers

        vlm, questions = work.get(self.vlm), work.get(self.questions)
        predict_answers(vlm, questions, out, self.settings, images=work.get(self.images))


@dataclass(frozen=True, eq=False)
class AnswerScores(Step):
    """Accuracy of a LLaVA's answers."""

    kind = "results"
    what = "question answering: {protocol}"
    task: ClassVar[Task] = "answers"
    measures = "accuracy", "chance", "last_answer_accuracy"  # the last is MMMU's
    answers: Answered
    protocol: str
    subset: bool

    def _make(self, work: Work, out: Path) -> None:
        from gmail_align.evaluation.answers import evaluate_answers

        said, questions = work.get(self.answers), work.get(self.answers.questions)
        evaluate_answers(said, questions, out, protocol=self.protocol, subset=self.subset)
