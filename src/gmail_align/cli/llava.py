"""LLaVA: ``train llava``, ``predict answers`` and ``ask``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from gmail_align.artifacts import MANIFEST, load
from gmail_align.cli.options import EncoderName, Folder, Out, Seed
from gmail_align.cli.shared import Shared, command, require_there
from gmail_align.encoders.route import Route
from gmail_align.encoders.shipped import model_path
from gmail_align.errors import ConfigError
from gmail_align.vlm.config import AnswerConfig, AskConfig, LlavaConfig
from gmail_align.vlm.costs import read_shape

if TYPE_CHECKING:
    from gmail_align.vlm.sets import ConversationSet

AnyPath = Annotated[Path, "PATH"]
NO_IMAGES = Path("none")


@dataclass(frozen=True)
class ConversationOptions:
    """Conversations with their images, and held-out ones.

    Attributes:
        conversations: A JSON file in LLaVA's format; or captions or pairs, whose texts become
            answers.
        images: The images of each --conversations, in the same order; the word none for a set
            without images.
        route: Route that the images of each set go through, in the same order; frozen by default.
        validation_conversations: Held-out conversations, to pick the best step.
        validation_images: Images of the held-out conversations; they are read by the route of
            --reads.
    """

    conversations: list[AnyPath]
    images: list[Folder]
    route: list[Annotated[Route, "ROUTE"]] | None = None
    validation_conversations: AnyPath | None = None
    validation_images: Folder | None = None

    def open(self, reads: Route) -> tuple[list[ConversationSet], ConversationSet | None]:
        """Open the sets to train on, and the held-out set, whose images are read by ``reads``."""
        routes = self.route or [Route.FROZEN] * len(self.images)
        if not len(self.conversations) == len(self.images) == len(routes):
            raise ConfigError(
                "--conversations, --images and --route come together: give all for every set"
            )
        held = self.validation_conversations
        if self.validation_images is not None and held is None:
            raise ConfigError("--validation-images is given without --validation-conversations")
        sets = zip(self.conversations, self.images, routes, strict=True)
        validation = _conversations(held, self.validation_images, reads) if held else None
        return [_conversations(*part) for part in sets], validation


def _conversations(talks: Path, folder: Path | None, route: Route) -> ConversationSet:
    from gmail_align.vlm.sets import ConversationSet

    source = load(talks) if (talks / MANIFEST).exists() else talks
    images = None if folder in (None, NO_IMAGES) else load(folder, "images")
    return ConversationSet(source, images, route)


@command
def train_llava(
    shared: Shared,
    talks: ConversationOptions,
    encoder: EncoderName,
    language_model: Annotated[str, "DIR"],
    out: Out,
    config: LlavaConfig,
    seed: Seed = 0,
) -> None:
    """Train LLaVA on conversations about images, or on captions of them.

    Repeat --conversations, --images and --route to train on several sets, each read by its own
    route, such as generated and real images.

    Args:
        language_model: A language model of Llama's format, or a LLaVA to train further.
    """
    sets, validation = talks.open(config.reads)
    if shared.dry_run:
        inputs: dict[str, Any] = {"conversations": talks.conversations, "images": talks.images}
        inputs["language_model"] = language_model
        folders = model_path(encoder, "clip"), model_path(language_model, "llama")
        shape = read_shape(*folders)
        if shape is not None:
            inputs["memory"] = shape.memory(config, guarded=validation is not None).sentence()
        shared.show_plan("train llava", out, config, **inputs)
        return
    from gmail_align.encoders.encoder import GmailEncoder
    from gmail_align.training.distributed import ranks
    from gmail_align.vlm import training

    model = GmailEncoder.from_pretrained(model_path(encoder, "clip"))
    words = model_path(language_model, "llama")
    made = training.train_llava(config, sets, model, words, out, validation=validation, seed=seed)
    if ranks().first:
        shared.show_artifact(made)


@command
def predict_answers(
    shared: Shared,
    vlm: Folder,
    out: Out,
    config: AnswerConfig,
    questions: Folder | None = None,
    images: Folder | None = None,
) -> None:
    """Answer every question of a set, or --prompt about every image.

    Score the answers to questions with evaluate answers, those to --prompt with evaluate captions.

    Args:
        vlm: What train llava made.
        questions: The questions that an import made.
        images: The images that they are about.
    """
    model = load(vlm, "vlm")
    asked = None if questions is None else load(questions, "questions")
    shown = None if images is None else load(images, "images")
    if shared.dry_run:
        inputs = {"vlm": vlm, "questions": questions, "images": images}
        shared.show_plan("predict answers", out, config, **inputs)
        return
    from gmail_align.vlm import answers

    shared.show_artifact(answers.predict_answers(model, asked, out, config, images=shown))


@command
def ask(
    shared: Shared,
    images: Annotated[list[Path], "IMAGE..."],
    question: Annotated[str, "QUESTION"],
    /,
    vlm: Folder,
    config: AskConfig,
) -> None:
    """Ask a trained LLaVA a question about image files.

    Args:
        images: Image files.
        question: The question.
        vlm: What train llava made.
    """
    model = load(vlm, "vlm")
    if shared.dry_run:
        require_there(images)
        shared.show_plan("ask", vlm, config, images=len(images), question=question)
        return
    from gmail_align.vlm import answers

    text = answers.ask(model, images, question, config)
    shared.show({"question": question, "answer": text}, text)
