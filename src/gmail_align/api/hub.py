"""Encoders and captioners on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from gmail_align.api.places import Place, artifact_of
from gmail_align.artifacts import Artifact
from gmail_align.errors import ArtifactError, ConfigError, ModelError


def push_to_hub(
    source: Place,
    name: str,
    *,
    license: str,
    base_model: str | Sequence[str] | None = None,
    encoder: Place | None = None,
    private: bool | None = None,
) -> str:
    """Upload an encoder or a captioner with a model card, and return its address.

    ``from_pretrained("OWNER/NAME@main")`` of :class:`GmailEncoder` or :class:`Captioner` loads it.
    The login is huggingface_hub's: ``hf auth login``, or the variable ``HF_TOKEN``.

    Args:
        source: The encoder or the captioner.
        name: ``OWNER/NAME`` on the hub; it is created when it is new.
        license: Licence of the weights, such as ``mit``. That of the base binds you too.
        base_model: Hub ids of the models that it was made from; ``()`` for none. Needed unless the
            encoder names its base by a hub id.
        encoder: Of a captioner: the encoder that it reads with, which goes along.
        private: Whether only you see it.

    Raises:
        ArtifactError: the source holds something else.
        ConfigError: a captioner lacks its encoder, the base model is not known, or the name is not
            ``OWNER/NAME``.
        ModelError: the hub refuses it.

    Example:
        >>> push_to_hub("encoder", "me", license="mit")
        Traceback (most recent call last):
        gmail_align.errors.ConfigError: 'me' does not have the form OWNER/NAME
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    if name.count("/") != 1:
        raise ConfigError(f"{name!r} does not have the form OWNER/NAME")
    artifact = artifact_of(source)
    reader = None if encoder is None else artifact_of(encoder, "encoder")
    card = model_card(artifact, name, license=license, base_model=base_model, encoder=reader)
    files = dict(_files(artifact, reader))
    added = [CommitOperationAdd(place, path) for place, path in files.items()]
    api = HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        commit = api.create_commit(
            name,
            [CommitOperationAdd("README.md", card.encode()), *added],
            commit_message=f"Upload a gmail-align {artifact.kind}",
        )
    except Exception as error:  # whatever the network or the hub says
        raise ModelError(
            f"{name} cannot be uploaded ({type(error).__name__}: {error}): check the name, the "
            "network and hf auth login"
        ) from error
    return str(commit.repo_url)


def model_card(
    artifact: Artifact,
    name: str,
    *,
    license: str,
    base_model: str | Sequence[str] | None = None,
    encoder: Artifact | None = None,
) -> str:
    """Return the ``README.md`` of an encoder or a captioner on the hub.

    Raises:
        ArtifactError: it is neither.
        ConfigError: a captioner lacks its encoder, or the base model is not known.
    """
    from huggingface_hub import ModelCardData

    from gmail_align.export.card import recipe_lines

    if artifact.kind not in ("encoder", "captioner"):
        raise ArtifactError(f"{artifact.folder} holds {artifact.kind}: give a model here")
    if artifact.kind == "captioner" and encoder is None:
        raise ConfigError(f"{artifact.folder} is a captioner: name the encoder that it reads with")
    reader, captions = encoder or artifact, artifact.kind == "captioner"
    bases = _base(reader) if base_model is None else base_model
    texts = _reads_texts(reader)
    tag = "zero-shot-image-classification" if texts else "image-feature-extraction"
    data = ModelCardData(
        base_model=bases if isinstance(bases, str) else list(bases) or None,
        license=license,
        library_name="gmail-align",
        pipeline_tag="image-to-text" if captions else tag,
        tags=["gmail-align", "clip", "synthetic-data", *(["image-captioning"] * captions)],
    )
    opened = "Captioner" if captions else "GmailEncoder"
    use = '.caption(["photo.jpg"])' if captions else '.encode_images(["photo.jpg"], route="real")'
    lines = ["---", data.to_yaml(), "---", "", f"# {name}", ""]
    lines += [_sentence(artifact), "", "```python", "import gmail_align as ga", ""]
    lines += [f'model = ga.{opened}.from_pretrained("{name}@main")', f"print(model{use})", "```"]
    return "\n".join([*lines, "", *recipe_lines(reader)]) + "\n"


def _sentence(artifact: Artifact) -> str:
    """Say what was trained, and on how much."""
    counts = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in artifact.counts.items())
    what = "A captioner" if artifact.kind == "captioner" else "An image encoder with two routes"
    return f"{what}, trained with gmail-align on {counts}."


def _files(artifact: Artifact, encoder: Artifact | None) -> Iterator[tuple[str, Path]]:
    """Yield the place and the file of everything that is uploaded."""
    for root, prefix in ((artifact, ""), *(((encoder, "encoder/"),) if encoder else ())):
        for file in ("manifest.json", *root.manifest["files"]):
            yield f"{prefix}{file}", root.path(file)


def _base(encoder: Artifact) -> str:
    """Return the hub id of an encoder's base."""
    from gmail_align.encoders.folder import read_card

    card = read_card(encoder.folder)
    if card is None or "@" not in card.base:
        raise ConfigError(
            f"{encoder.folder} holds a copy of its base: name the models on the hub that it was "
            "made from with base_model, or give an empty list"
        )
    return card.base.partition("@")[0]


def _reads_texts(encoder: Artifact) -> bool:
    """Load an encoder, and say whether it reads texts too."""
    from gmail_align.encoders.encoder import GmailEncoder

    return GmailEncoder.from_pretrained(encoder.folder).has_texts
