"""What a step is said to cost is what is counted of tiny models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.language import load_language_model
from gmail_align.encoders.route import Route
from gmail_align.training.loop import trained_parameters
from gmail_align.vlm.config import LanguageLora, LlavaConfig
from gmail_align.vlm.connector import Seen
from gmail_align.vlm.costs import LlavaShape, Meter, known_peak, read_shape
from gmail_align.vlm.fitting import choose_trained, prepare
from gmail_align.vlm.loss import Objective
from gmail_align.vlm.model import build_llava
from gmail_align.vlm.packing import Sample, pack

CPU = torch.device("cpu")
LENGTH, IMAGE, LEARNT = 120, 16, 40


def settings(tune: str, **changes: object) -> LlavaConfig:
    lora = LanguageLora(rank=4, alpha=8.0, dropout=0.0)
    return LlavaConfig(tune=tune, lora=lora, row_tokens=2 * LENGTH, batch_rows=3, **changes)


def ready(encoder: GmailEncoder, llama: Path, config: LlavaConfig) -> tuple[Objective, LlavaShape]:
    llava = build_llava(encoder, load_language_model(llama), "vicuna_v1", Route.FROZEN, 0)
    shape = LlavaShape.of(llava.model.config.to_dict())
    choose_trained(llava.model, config, 0)
    return prepare(llava, config, CPU), shape


def full_rows(image: int, rows: int = 3) -> list[list[Sample]]:
    """Rows without padding, of two samples with an image each."""
    ids = torch.full((LENGTH,), 7, dtype=torch.int32)
    ids[:IMAGE] = image
    learnt = torch.arange(LENGTH) >= LENGTH - LEARNT
    return [[Sample("s", ids, learnt, ("x",))] * 2 for _ in range(rows)]


def loss(objective: Objective, config: LlavaConfig) -> torch.Tensor:
    rows = pack(full_rows(objective.model.config.image_token_id))
    seen = Seen(torch.randn(6, IMAGE, 32), (Route.FROZEN,) * 6)
    with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
        made: torch.Tensor = objective(rows, seen)
    return made


@pytest.mark.parametrize("tune", ["projector", "lora", "full"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("recompute", [False, True])
def test_memory_is_what_tensors_take(
    encoder: GmailEncoder, llama: Path, tune: str, precision: str, recompute: bool
) -> None:
    """Weights, and what the forward pass keeps, are counted storage by storage."""
    config = settings(tune, precision=precision, recompute_layers=recompute)
    objective, shape = ready(encoder, llama, config)
    said = shape.memory(config, guarded=False)
    trained = sum(p.numel() for p in trained_parameters(objective).values())
    assert said.updates == 12 * trained
    assert said.weights == pytest.approx(sum(p.nbytes for p in objective.parameters()), rel=1e-6)
    own = {p.untyped_storage().data_ptr() for p in objective.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            kept[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        made = loss(objective, config)
    counted = {
        logits: sum(
            tensor.untyped_storage().nbytes()
            for tensor in kept.values()
            if (tensor.shape[-1:] == (shape.vocabulary,)) == logits
        )
        for logits in (False, True)
    }
    assert made.requires_grad
    assert counted[True] <= said.logits
    if recompute:  # what is computed again, of one layer at a time, is not kept
        inputs = 2 * shape.layers * shape.width * 3 * 2 * LENGTH
        assert inputs <= counted[False] < said.kept < 0.8 * _without(config, shape)
    else:
        assert counted[False] == pytest.approx(said.kept, rel=0.2)


def _without(config: LlavaConfig, shape: LlavaShape) -> float:
    """Return what the forward pass keeps if nothing is computed again."""
    whole = config.model_copy(update={"recompute_layers": False})
    return shape.memory(whole, guarded=False).kept


@pytest.mark.parametrize("tune", ["projector", "full"])
def test_operations_are_those_that_are_counted(
    encoder: GmailEncoder, llama: Path, tune: str
) -> None:
    """torch counts attention as whole squares of rows; that part is set aside."""
    config = settings(tune)
    objective, shape = ready(encoder, llama, config)
    with FlopCounterMode(display=False) as counter:
        loss(objective, config).backward()
    table = counter.get_flop_counts()["Global"]
    counted = sum(flops for name, flops in table.items() if "attention" not in str(name))
    rows = full_rows(objective.model.config.image_token_id)
    attention = 6 * 3 * 2.0 * shape.layers * shape.query * LENGTH**2
    assert shape.step_flops(rows, config) - attention == pytest.approx(counted, rel=0.05)


def test_the_progress_line_counts_tokens_padding_and_use(
    encoder: GmailEncoder, llama: Path
) -> None:
    config = settings("full")
    _, shape = ready(encoder, llama, config)
    row = full_rows(1, 1)[0]
    meter = Meter(shape, config, 1e9, reads=True)
    meter.count([row, row[:1]], 2)
    work = shape.step_flops([row, row[:1]], config) + 3 * shape.image_flops()
    assert meter.note(1, 2.0) == (
        f"{3 * LENGTH / 2:.0f} tokens/s, {3 * LEARNT / 2:.0f} learnt/s, 25% padding,"
        f" {work / 2e9:.1%} MFU"
    )
    assert "MFU" not in Meter(shape, config, None, reads=True).note(1, 1.0)
    assert known_peak("NVIDIA H200") == 989e12
    assert known_peak("a card of tomorrow") is None


def test_sizes_are_read_from_folders(
    encoder: GmailEncoder, clip_folder: Path, llama: Path, tmp_path: Path
) -> None:
    _, shape = ready(encoder, llama, settings("full"))
    known = read_shape(clip_folder, llama)
    assert known is not None
    assert (known.width, known.layers, known.patches) == (shape.width, shape.layers, shape.patches)
    GmailEncoder.from_clip(clip_folder).save(tmp_path / "ours")
    assert read_shape(tmp_path / "ours", llama) == known
    assert read_shape(tmp_path, llama) is None
