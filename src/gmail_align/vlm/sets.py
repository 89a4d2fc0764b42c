"""Sets of conversations, each with its images and the route by which they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gmail_align.artifacts import Artifact, sha256_file
from gmail_align.data.images import ImageStore
from gmail_align.encoders.route import Route
from gmail_align.errors import ConfigError, DataError
from gmail_align.vlm.conversations import (
    CONVERSATIONS,
    Conversation,
    caption_conversations,
    read_conversations,
)


@dataclass(frozen=True)
class ConversationSet:
    """Conversations, their images, and the route by which the images are read."""

    conversations: Path | Artifact
    """A file in LLaVA's format, or an artifact of kind ``conversations``, ``captions`` or
    ``pairs``."""
    images: Artifact | None = None
    """The images; None where the conversations do not have any."""
    route: Route = Route.FROZEN
    """Weights of the encoder that the images go through: ``generated`` for generated images."""

    def read(self, prompt: str) -> Iterator[Conversation]:
        """Yield the conversations; ``prompt`` asks for captions.

        Raises:
            DataError: a sample is not a conversation, or its image is missing.
        """
        known = ImageStore(self.images) if self.images else None
        if isinstance(self.conversations, Path) or self.conversations.kind == CONVERSATIONS:
            stream = read_conversations(self.conversations, known or ())
        elif known is None:
            raise ConfigError(f"{self.conversations.folder} holds captions: give their images")
        else:
            stream = caption_conversations(tuple(known.ids), self.conversations, prompt)
        for conversation in stream:
            for name in conversation.image_ids:
                if known is None or name not in known:
                    raise DataError(
                        f"sample {conversation.sample_id} has the image {name}, which is not among"
                        f" the images of {self.images.folder if self.images else 'this training'}"
                    )
            yield conversation


def inputs_of(sets: Mapping[str, ConversationSet]) -> dict[str, Artifact | str]:
    """Name what a model is made from, by role."""
    inputs: dict[str, Artifact | str] = {}
    for name, part in sets.items():
        source = part.conversations
        content = sha256_file(source) if isinstance(source, Path) else source
        inputs[f"{name}_conversations"] = content
        inputs |= {f"{name}_images": part.images} if part.images else {}
    return inputs
