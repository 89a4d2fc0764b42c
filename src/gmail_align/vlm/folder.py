"""LLaVA's folder.

Where the language model sees patches, the folder is one that transformers reads:
``LlavaForConditionalGeneration.from_pretrained`` and ``AutoProcessor.from_pretrained``. The designs
``pooled`` and ``dense`` read images in a way that a plain LLaVA does not. Their weights lie in the
folder ``llava`` inside, so that nothing opens them as what they are not.

``gmail_align.json`` names the template, the design, and what the model was trained on.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    GenerationConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from gmail_align.artifacts import Artifact, fingerprint, sha256_file, write_bytes, write_json
from gmail_align.encoders.folder import no_bars
from gmail_align.encoders.language import language_model_fingerprint
from gmail_align.encoders.preprocess import Preprocess
from gmail_align.encoders.route import Route
from gmail_align.encoders.stored import load_whole, require_finite
from gmail_align.errors import ArtifactError, ConfigError, ModelError, damage_explained
from gmail_align.vlm.config import VisualTokens
from gmail_align.vlm.connector import PLAIN, Connector
from gmail_align.vlm.model import Llava
from gmail_align.vlm.templates import TEMPLATES

OWN = "gmail_align.json"
CONNECTOR = "connector.safetensors"
_INSIDE = "llava"
_HEAD = "head"


def weights_folder(folder: Path) -> Path:
    """Return where the weights of a LLaVA, or of a language model, lie."""
    inside = folder / _INSIDE
    return inside if inside.is_dir() and (folder / OWN).exists() else folder


def start_fingerprint(folder: Path) -> str:
    """Return the identity of a language model's, or a LLaVA's, files.

    Raises:
        ModelError: the folder does not hold a model.
    """
    inside = weights_folder(folder)
    own = language_model_fingerprint(inside)
    return own if inside == folder else fingerprint([own, sha256_file(folder / CONNECTOR)])


def save_llava(folder: Path, llava: Llava, trained_on: dict[str, Any], reads: Route) -> None:
    """Write the model, its processor, its template and what it was trained on."""
    connector, end = llava.connector, llava.layout.end_id()
    plain = connector.design in PLAIN
    place = folder if plain else folder / _INSIDE
    connector.fold(llava.first, reads)
    llava.model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=end)
    config = llava.model.config
    strategy = config.vision_feature_select_strategy
    with no_bars():
        llava.model.save_pretrained(place)
    write_json(place / "preprocessor_config.json", llava.preprocess.to_config())
    processor = LlavaProcessor(
        image_processor=AutoImageProcessor.from_pretrained(place, local_files_only=True),
        tokenizer=llava.tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(strategy == "default") + connector.extra,
    )
    processor.save_pretrained(place)
    own = {name: value.detach().contiguous() for name, value in connector.state_dict().items()}
    own |= {} if llava.head is None else {_HEAD: llava.head.contiguous()}
    if own:
        write_bytes(folder / CONNECTOR, save(own, {"format": "pt"}))
    card = {
        "template": llava.template,
        "visual_tokens": connector.design,
        "pooled_tokens": connector.extra,
        "plain_transformers": plain,
        "trained_on": trained_on,
    }
    write_json(folder / OWN, card)


def load_llava(artifact: Artifact, device: torch.device) -> Llava:
    """Open what :func:`save_llava` wrote.

    Raises:
        ArtifactError: the artifact is not a multimodal language model, or is damaged.
        ConfigError: the template in it is not known here.
    """
    if artifact.kind != "vlm":
        raise ArtifactError(f"{artifact.folder} holds {artifact.kind}, and a vlm is needed here")
    folder, place = artifact.folder, weights_folder(artifact.folder)
    with damage_explained(folder, ArtifactError, "train the model again"):
        own = json.loads((folder / OWN).read_text(encoding="utf-8"))
        if own["template"] not in TEMPLATES:
            raise ConfigError(f"{folder} has the unknown template {own['template']!r}")
        model: Any = load_whole(LlavaForConditionalGeneration, place, "train the model again")
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
        llava = Llava(model, tokenizer, Preprocess.from_folder(place), own["template"])
        if place != folder:
            connector = connector_for(llava, own["visual_tokens"], own["pooled_tokens"])
            tensors = load_file(folder / CONNECTOR)
            require_finite(tensors.items(), folder / CONNECTOR, "train the model again")
            head = tensors.pop(_HEAD).to(device)
            connector.load_state_dict(tensors)
            llava = replace(llava, connector=connector.to(device), head=head)
    model.to(device).eval()
    return llava


def connector_for(
    llava: Llava,
    design: VisualTokens,
    pooled_tokens: int,
    routes: frozenset[Route] = frozenset(),
    seed: int = 0,
) -> Connector:
    """Make a connector of a design that fits a model."""
    words = llava.model.config.text_config.hidden_size
    return Connector(design, llava.first.in_features, words, pooled_tokens, routes, seed)


def continue_connector(folder: Path, connector: Connector) -> None:
    """Let a connector go on from the one of a LLaVA's folder, where there is one.

    Raises:
        ModelError: the folder's model was trained to see something else.
    """
    card = folder / OWN
    before, tensors = "patches", dict[str, Tensor]()
    with damage_explained(folder, ModelError, "train the model again"):
        if card.exists():
            before = json.loads(card.read_text(encoding="utf-8")).get("visual_tokens", before)
        if (folder / CONNECTOR).exists():
            tensors = load_file(folder / CONNECTOR)
    allowed = {before} | ({"pooled", "residual"} if before == "patches" else set())
    if connector.design not in allowed:
        raise ModelError(
            f"{folder} was trained with visual_tokens={before}, and not with"
            f" {connector.design}: use that, or begin with a language model"
        )
    own = connector.state_dict()
    for name, value in tensors.items():
        if name in own and own[name].shape != value.shape:
            raise ModelError(f"{folder} has another number of pooled_tokens: use the same")
    connector.load_state_dict({n: v for n, v in tensors.items() if n in own}, strict=False)
