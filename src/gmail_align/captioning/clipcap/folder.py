"""A captioner on disk, and the GPT-2 folder it starts from.

    captioner/
    ├── gpt2/                 weights and tokenizer, as transformers saves them
    ├── mapper.safetensors    the mapper's weights
    ├── config.json           its shape, and the encoder and route of its features
    └── events.jsonl          losses and validation scores of the training

Nothing of it is our own format but ``config.json``: transformers and safetensors read the rest.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    GPT2LMHeadModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from gmail_align.artifacts import Artifact, fingerprint, sha256_file, write_bytes, write_json
from gmail_align.captioning.clipcap.clipcap import ClipCap, Scaling
from gmail_align.captioning.config import ClipCapConfig
from gmail_align.captioning.shape import MapperShape
from gmail_align.encoders.folder import no_bars
from gmail_align.errors import ArtifactError, ConfigError, ModelError
from gmail_align.runtime import stable_seed

GPT2 = "gpt2"
MAPPER = "mapper.safetensors"
CONFIG = "config.json"
_GPT2_FILES = (".json", ".safetensors", ".bin", ".txt", ".model")


Origin = Path | Artifact
"""What a training starts from: a folder in GPT-2's format, or a captioner to go on with."""


@dataclass(frozen=True)
class Captioner:
    """A ClipCap ready to predict."""

    model: ClipCap
    tokenizer: PreTrainedTokenizerBase
    config: dict[str, Any]
    """What ``config.json`` says."""


def gpt2_fingerprint(folder: Path) -> str:
    """Return the identity of a GPT-2 folder's files.

    Raises:
        ModelError: the folder is missing or holds another architecture.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(
            f"{folder} is no GPT-2 folder (it holds no config.json): get one with"
            f" 'hf download gpt2 --local-dir {folder}'"
        )
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{path} is damaged: {error}; download the model again") from error
    if kind != "gpt2":
        raise ModelError(f"{folder} holds a {kind!r} model: a captioner needs one of type 'gpt2'")
    files = sorted(file for file in folder.iterdir() if file.suffix in _GPT2_FILES)
    return fingerprint({file.name: sha256_file(file) for file in files})


def load_gpt2(folder: Path) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerBase]:
    """Load the language model and the tokenizer of a folder in GPT-2's format, in float32.

    Raises:
        ModelError: files are missing, weights do not fit, or the tokenizer has no end-of-text.
    """
    tokenizer = load_tokenizer(folder)
    try:
        with no_bars(), _no_report():
            loaded: Any = GPT2LMHeadModel.from_pretrained(
                folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
    except RuntimeError as error:
        raise ModelError(
            f"the weights in {folder} are not of the shapes that its config.json says, or are"
            " damaged: download the model again"
        ) from error
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"the weights in {folder} hold more than tensors, or are damaged, and are not opened:"
            " get them as safetensors"
        ) from error
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"{folder} cannot be loaded as GPT-2: {_first_line(error)}; get the model again"
        ) from error
    model, missing = loaded[0], sorted(loaded[1]["missing_keys"])
    if missing:
        raise ModelError(f"{folder} lacks {len(missing)} weights of GPT-2, the first {missing[0]}")
    if len(tokenizer) > model.config.vocab_size:
        raise ModelError(
            f"the tokenizer of {folder} has {len(tokenizer)} tokens and its model"
            f" {model.config.vocab_size}: use a tokenizer that belongs to the model"
        )
    model.config.pad_token_id = None  # with one, transformers warns of padding that is masked
    return fuse_gelu(model), tokenizer


@contextmanager
def _no_report() -> Iterator[None]:
    """Keep transformers from listing weights that do not fit: an error of ours says so."""
    logging: Any = transformers_logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def fuse_gelu(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """Let GPT-2's tanh GELU run as one operation of torch, where transformers takes eight."""
    if model.config.activation_function == "gelu_new":
        for block in model.transformer.h:
            block.mlp.act = torch.nn.GELU(approximate="tanh")
    return model


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder in GPT-2's format.

    Raises:
        ModelError: it cannot be loaded, or has no end-of-text token.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"the tokenizer of {folder} cannot be loaded: {_first_line(error)}"
        ) from error
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:
        raise ModelError(
            f"{folder} holds no tokenizer: put the tokenizer.json of its model there, or vocab.json"
            " and merges.txt"
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of {folder} has no end-of-text token, so captions could not end:"
            " set eos_token in its tokenizer_config.json"
        )
    return tokenizer


def gpt2_folder(origin: Origin) -> Path:
    """Return where the GPT-2 of ``origin`` is.

    Raises:
        ArtifactError: it is an artifact, and no captioner.
    """
    if isinstance(origin, Path):
        return origin
    require_captioner(origin)
    return origin.path(GPT2)


def build(
    config: ClipCapConfig,
    origin: Origin,
    gpt2: GPT2LMHeadModel,
    width: int,
    norm: float | None,
    seed: int,
) -> ClipCap:
    """Put a mapper for features of ``width`` before a GPT-2: freshly drawn, or the captioner's.

    Raises:
        ModelError: the GPT-2 has too few positions, or its width does not divide into heads.
        ConfigError: the captioner that is gone on with has another shape than ``config`` says.
    """
    require_positions(gpt2, config.prefix_length, config.max_tokens)
    shape, hidden = config.shape, gpt2.config.n_embd
    if shape.kind == "transformer" and hidden % shape.heads:
        raise ModelError(
            f"this GPT-2 is {hidden} wide, which {shape.heads} heads do not divide: set heads"
        )
    faults = config.compat
    scaling = Scaling(config.normalise, norm, bool(faults and faults.norm_mismatch))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_seed(seed, "mapper"))
        model = ClipCap(gpt2, width, shape, scaling=scaling, tune_gpt2=config.trains_gpt2)
    if isinstance(origin, Artifact):
        _go_on_with(model, load_captioner(origin, torch.device("cpu")).model, origin.folder)
    return model


def _go_on_with(model: ClipCap, earlier: ClipCap, folder: Path) -> None:
    """Copy the mapper of a captioner into a model of the same shape."""
    for name in ("width", "shape", "scaling"):
        was, now = getattr(earlier, name), getattr(model, name)
        if was != now:
            raise ConfigError(
                f"the captioner in {folder} has {name} {was} and this training {now}: train it on"
                " with its own settings"
            )
    model.mapper.load_state_dict(earlier.mapper.state_dict())


def require_positions(gpt2: GPT2LMHeadModel, prompt: int, max_tokens: int) -> None:
    """Refuse a GPT-2 with too few positions for a prompt and a caption."""
    positions = gpt2.config.n_positions
    if prompt + max_tokens > positions:
        raise ModelError(
            f"this GPT-2 has {positions} positions, and a prompt of {prompt} with max_tokens"
            f" {max_tokens} needs {prompt + max_tokens}: set max_tokens to {positions - prompt} or"
            " less"
        )


def save_gpt2(folder: Path, gpt2: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a language model and its tokenizer as transformers does."""
    end = tokenizer.eos_token_id
    gpt2.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=end)
    with no_bars():
        gpt2.save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))


def save_module(path: Path, module: torch.nn.Module) -> None:
    """Write a module's weights."""
    weights = {name: value.cpu().contiguous() for name, value in module.state_dict().items()}
    write_bytes(path, save(weights))


def save_captioner(
    folder: Path, model: ClipCap, tokenizer: PreTrainedTokenizerBase, config: Mapping[str, Any]
) -> None:
    """Write a captioner's files into ``folder``; ``config`` says where its features come from."""
    save_gpt2(folder / GPT2, model.gpt2, tokenizer)
    save_module(folder / MAPPER, model.mapper)
    shape = {"feature_width": model.width, "tune_gpt2": model.tune_gpt2, "mapper": model.shape.kind}
    said = {**asdict(model.shape), **asdict(model.scaling), **shape, **config, "kind": "clipcap"}
    write_json(folder / CONFIG, said)


def load_captioner(artifact: Artifact, device: torch.device) -> Captioner:
    """Open a ClipCap for prediction.

    Raises:
        ArtifactError: the artifact is no captioner, or its files are damaged.
        ModelError: the GPT-2 inside is damaged.
    """
    config = captioner_config(artifact)
    if config.get("kind") == "ifcap":
        raise ArtifactError(f"{artifact.folder} holds an IFCap, and a ClipCap is needed here")
    gpt2, tokenizer = load_gpt2(artifact.path(GPT2))
    try:
        model = ClipCap(
            gpt2,
            config["feature_width"],
            MapperShape(**_known(MapperShape, {**config, "kind": config.get("mapper", "mlp")})),
            scaling=Scaling(**_known(Scaling, config)),
            tune_gpt2=config.get("tune_gpt2", True),
        )
        model.mapper.load_state_dict(load_file(artifact.path(MAPPER)))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ArtifactError(
            f"{artifact.folder} is damaged: {_first_line(error)}; train it again"
        ) from error
    return Captioner(model.to(device).eval(), tokenizer, config)


def require_captioner(artifact: Artifact) -> None:
    """Refuse an artifact that is no captioner.

    Raises:
        ArtifactError: it holds something else.
    """
    if artifact.kind != "captioner":
        raise ArtifactError(f"{artifact.folder} holds {artifact.kind}: a captioner is needed here")


def captioner_config(artifact: Artifact) -> dict[str, Any]:
    """Return what a captioner's ``config.json`` says.

    Raises:
        ArtifactError: the artifact is no captioner, or the file is damaged.
    """
    require_captioner(artifact)
    try:
        config: dict[str, Any] = json.loads(artifact.path(CONFIG).read_text(encoding="utf-8"))
        config["trained_on"]["encoder"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{artifact.path(CONFIG)} is damaged ({_first_line(error)}): train the captioner again"
        ) from error
    return config


def _known(kind: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``config`` says of the fields of a dataclass."""
    return {field.name: config[field.name] for field in fields(kind) if field.name in config}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
