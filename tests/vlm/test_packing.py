"""Packed samples are planned once, and do not see each other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from gmail_align.encoders.route import Route
from gmail_align.errors import DataError
from gmail_align.vlm.connector import Connector, Seen
from gmail_align.vlm.conversations import Conversation, Turn
from gmail_align.vlm.fitting import piecewise_loss
from gmail_align.vlm.loss import Objective
from gmail_align.vlm.model import Llava
from gmail_align.vlm.packing import PackedRows, Plan, Sample, pack

TALKS = (
    Conversation("a", (Turn("<image>\nWhat?", "a red ball"), Turn("More?", "nothing.")), ("x",)),
    Conversation("b", (Turn("<image> and <image>?", "two cubes"),), ("y", "x")),
    Conversation("c", (Turn("Say a word", "cone"),)),
)
PATCHES = torch.randn(3, 16, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def samples(llava: Llava) -> list[Sample]:
    return [Sample.make(talk, llava.layout, 400) for talk in TALKS]


def seen(tokens: torch.Tensor) -> Seen:
    return Seen(tokens, (Route.FROZEN,) * len(tokens))


def logits(llava: Llava, rows: PackedRows, patches: torch.Tensor) -> torch.Tensor:
    projected = llava.model.model.multi_modal_projector(patches)
    return llava.model(
        input_ids=rows.ids,
        position_ids=rows.positions,
        mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=list(projected))},
        use_cache=False,
    ).logits


def test_every_sample_comes_once_an_epoch_and_rows_keep_to_their_budget() -> None:
    lengths = torch.randint(1, 60, (500,), generator=torch.Generator().manual_seed(1)).tolist()
    plan = Plan(lengths, 100, seed=3)
    for epoch in (0, 1):
        rows = plan.epoch(epoch)
        assert sorted(sample for row in rows for sample in row) == list(range(500))
        assert all(sum(lengths[sample] for sample in row) <= 100 for row in rows)
        assert len(rows) < 1.1 * sum(lengths) / 100
    assert plan.epoch(0) != plan.epoch(1)
    assert plan.epoch(1) == Plan(lengths, 100, seed=3).epoch(1)
    assert plan.epoch(0) != Plan(lengths, 100, seed=4).epoch(0)


def test_steps_go_through_the_rows_of_one_epoch_after_another() -> None:
    plan = Plan([5, 6, 7, 5, 6, 7, 9], 10, seed=0)
    stream = [*plan.epoch(0), *plan.epoch(1), *plan.epoch(2)]
    for step in (0, 1, 2, 3):
        assert plan.batch(step, 4) == stream[4 * step : 4 * step + 4]
    assert plan.steps(1.0, 4) == -(-len(plan.epoch(0)) // 4)


def test_another_sample_in_the_row_changes_nothing_to_the_last_bit(
    llava: Llava, samples: list[Sample]
) -> None:
    """Tokens and image of sample A change; sample B's logits stay as they were."""
    a, b, c = samples
    other = replace(a, ids=a.ids.clone())
    text = other.ids != llava.layout.image_id()
    other.ids[text] = other.ids[text].flip(0)
    assert not torch.equal(other.ids, a.ids)
    changed = PATCHES.clone()
    changed[0] += 1
    start, stop = len(a.ids), len(a.ids) + len(b.ids)
    with torch.no_grad():
        before = logits(llava, pack([[a, b, c]]), PATCHES)
        after = logits(llava, pack([[other, b, c]]), changed)
        alone = logits(llava, pack([[b]]), PATCHES[1:])
    assert not torch.equal(before[0, :start], after[0, :start])
    assert torch.equal(before[0, start:], after[0, start:])
    assert torch.allclose(before[0, start:stop], alone[0], atol=1e-5)


def test_the_loss_is_that_of_an_independent_computation_in_float64(
    llava: Llava, samples: list[Sample]
) -> None:
    rows = [[samples[0], samples[2]], [samples[1]]]
    order = torch.tensor([0, 1, 2])
    with torch.no_grad():
        found = Objective(llava.model, Connector())(pack(rows), seen(PATCHES[order]))
        double = llava.model.double()
        expected, image = 0.0, 0
        for sample in (samples[0], samples[2], samples[1]):
            used = len(sample.image_ids)
            own = double.model.multi_modal_projector(PATCHES[image : image + used].double())
            image += used
            words = double.get_input_embeddings()(sample.ids.long())
            words[sample.ids == llava.layout.image_id()] = own.flatten(0, 1)
            scores = double(inputs_embeds=words[None]).logits[0].log_softmax(-1)
            for place in range(1, len(sample.ids)):
                if sample.learnt[place]:
                    expected -= float(scores[place - 1, sample.ids[place]])
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_a_batch_in_pieces_has_the_loss_and_the_gradient_of_the_whole(
    llava: Llava, samples: list[Sample]
) -> None:
    patches = {"x": PATCHES[0], "y": PATCHES[1]}
    objective = Objective(llava.model, Connector())

    def summed(rows: PackedRows) -> torch.Tensor:
        images = [patches[name] for sample in rows.samples for name in sample.image_ids]
        tokens = torch.stack(images) if images else torch.zeros(0, 16, 32)
        return objective(rows, seen(tokens))

    gradients, totals = [], []
    for at_once in (3, 1):
        loss = piecewise_loss([[samples[0]], [samples[1]], [samples[2]]], at_once, summed)
        llava.model.zero_grad()
        for piece in loss.pieces:
            piece.backward()
        totals.append(float(loss.terms["total"]))
        gradients.append(llava.model.lm_head.weight.grad.clone())
    assert totals[0] == pytest.approx(totals[1], rel=1e-5)
    assert torch.allclose(*gradients, atol=1e-6)


@pytest.mark.parametrize("most", [5, 400])
def test_samples_that_cannot_be_trained_are_named(llava: Llava, most: int) -> None:
    talk = Conversation("s7", (Turn("What?", "red" if most == 5 else None),))
    with pytest.raises(DataError, match="sample s7"):
        Sample.make(talk, llava.layout, most)
