"""An IFCap on disk.

captioner/
├── gpt2/                 weights and tokenizer, as transformers saves them
├── fusion.safetensors    the fusion module's weights
├── datastore/            the captions that it looks up; see ``datastore``
├── config.json           its shape and settings, and where its features come from
└── events.jsonl          losses and validation scores of the training
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from gmail_align.artifacts import Artifact, write_json
from gmail_align.captioning.clipcap.folder import (
    CONFIG,
    GPT2,
    captioner_config,
    load_gpt2,
    save_gpt2,
    save_module,
)
from gmail_align.captioning.ifcap.config import IFCapConfig
from gmail_align.captioning.ifcap.datastore import read_datastore
from gmail_align.captioning.ifcap.model import IFCap
from gmail_align.captioning.ifcap.prompts import Reader
from gmail_align.errors import ArtifactError

FUSION = "fusion.safetensors"
DATASTORE = "datastore"


def save_ifcap(folder: Path, reader: Reader, origin: Mapping[str, str]) -> None:
    """Write a captioner's files beside its datastore."""
    save_gpt2(folder / GPT2, reader.model.gpt2, reader.tokenizer)
    save_module(folder / FUSION, reader.model.fusion)
    settings = reader.config.model_dump(mode="json", exclude={"device", "optim", "vocabulary"})
    shape = {"kind": "ifcap", "feature_width": reader.model.width}
    write_json(folder / CONFIG, {**shape, "settings": settings, "trained_on": dict(origin)})


def is_ifcap(artifact: Artifact) -> bool:
    """Say whether a captioner is an IFCap.

    Raises:
        ArtifactError: the artifact is no captioner, or damaged.
    """
    return captioner_config(artifact).get("kind") == "ifcap"


def open_reader(artifact: Artifact, device: torch.device) -> Reader:
    """Open an IFCap for prediction.

    Raises:
        ArtifactError: the artifact is none, or its files are damaged.
    """
    said = captioner_config(artifact)
    gpt2, tokenizer = load_gpt2(artifact.path(GPT2))
    try:
        config = IFCapConfig(**said["settings"])
        model = IFCap(
            gpt2,
            said["feature_width"],
            prefix_length=config.prefix_length,
            layers=config.layers,
            heads=config.heads,
        )
        model.fusion.load_state_dict(load_file(artifact.path(FUSION)))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ArtifactError(
            f"{artifact.folder} is damaged: {str(error).splitlines()[0]}; train it again"
        ) from error
    store = read_datastore(artifact.path(DATASTORE))
    return Reader(model.to(device).eval(), tokenizer, store, config)
