"""A tiny random GPT-2 with a tokenizer of its own, and features written by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from gmail_align.artifacts import Artifact, begin, write_bytes, write_jsonl
from gmail_align.captioning.clipcap.clipcap import ClipCap
from gmail_align.captioning.clipcap.folder import load_gpt2
from gmail_align.captioning.clipcap.run import train_clipcap
from gmail_align.captioning.config import ClipCapConfig
from gmail_align.captioning.shape import MapperShape
from gmail_align.training.config import OptimConfig

CAPTIONS = (
    "a red ball on a wooden floor.",
    "two cubes, one of them blue!",
    "A small shiny cone next to a grey cylinder, on grass",
    "nothing.",
)
END = "<|endoftext|>"


def build_gpt2(folder: Path, *, end: str | None = END, positions: int = 64) -> Path:
    """Write a random GPT-2 (2 layers, 32 wide, no dropout) and a byte-level tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CAPTIONS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": positions}
    quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=len(fast), bos_token_id=0, eos_token_id=0, **shape, **quiet)
        GPT2LMHeadModel(config).save_pretrained(folder)
    fast.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture
def clipcap(gpt2: Path) -> ClipCap:
    """An untrained captioner of features 8 wide, with a prefix of 3."""
    torch.manual_seed(1)
    return ClipCap(load_gpt2(gpt2)[0], 8, MapperShape(prefix_length=3)).eval()


MakeFeatures = Callable[..., Artifact]


def write_features(folder: Path, ids: list[str], array: Tensor, **config: str) -> Artifact:
    """Write a ``features`` artifact."""
    origin = {"what": "image", "encoder": "clip", "weights": "clip", "route": "frozen"}
    draft = begin(folder, "features", origin | config)
    write_jsonl(draft.path("ids.jsonl"), ids)
    write_bytes(draft.path("features.safetensors"), save({"features": array.contiguous()}))
    return draft.finish({"rows": len(ids)})


@pytest.fixture
def make_features(tmp_path: Path) -> MakeFeatures:
    """Write features into a folder of the test's own."""

    def make(name: str, ids: list[str], array: Tensor, **config: str) -> Artifact:
        return write_features(tmp_path / name, ids, array, **config)

    return make


def quick(steps: int, **optim: object) -> ClipCapConfig:
    """A small captioner for a few steps."""
    settings = {"lr": 5e-3, "schedule": "constant", "weight_decay": 0.0, **optim}
    return ClipCapConfig(
        prefix_length=3,
        max_tokens=40,
        batch_size=4,
        device="cpu",
        optim=OptimConfig(steps=steps, **settings),
    )


@pytest.fixture(scope="session")
def four(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Four random features."""
    torch.manual_seed(2)
    return write_features(tmp_path_factory.mktemp("four"), list("abcd"), torch.randn(4, 8))


@pytest.fixture(scope="session")
def captioner(gpt2: Path, four: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A captioner that knows the four captions of the four features by heart."""
    rows = list(zip("abcd", CAPTIONS, strict=True))
    out = tmp_path_factory.mktemp("captioner") / "out"
    return train_clipcap(quick(120), four, rows, gpt2, out)
