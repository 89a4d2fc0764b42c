"""Transfer against scikit-learn and against loops over cosines in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from gmail_align.errors import UserError
from gmail_align.metrics.transfer import DECAY, caption_transfer, class_transfer


def blobs(rng, count, shift):
    labels = rng.integers(0, 4, count)
    centres = np.random.default_rng(9).normal(size=(4, 6))
    return centres[labels] + rng.normal(size=(count, 6)) * 1.2 + shift, labels


def test_the_probe_is_scikit_learns():
    rng = np.random.default_rng(0)
    (train, own), (test, theirs) = blobs(rng, 150, 0.4), blobs(rng, 300, 0.0)
    centre = train.mean(0)
    scale = np.sqrt(((train - centre) ** 2).mean())
    peer = LogisticRegression(C=1 / (DECAY * len(train)), tol=1e-10, max_iter=5000)
    peer.fit((train - centre) / scale, own)
    expected = peer.predict((test - centre) / scale) == theirs
    inputs = [torch.from_numpy(one) for one in (train, own, test, theirs)]
    assert class_transfer(*inputs).numpy().tolist() == expected.tolist()
    single = [one.float() if one.is_floating_point() else one for one in inputs]
    assert np.mean(class_transfer(*single).numpy() != expected) < 0.01
    assert 0.4 < expected.mean() < 0.95


def test_classes_that_are_not_trained_on_are_missed():
    rng = np.random.default_rng(1)
    train, own = blobs(rng, 60, 0)
    hits = class_transfer(
        torch.from_numpy(train),
        torch.from_numpy(own),
        torch.from_numpy(train[:3]),
        torch.full((3,), 7),
    )
    assert hits.tolist() == [0, 0, 0]
    with pytest.raises(UserError):
        class_transfer(
            torch.ones(3, 2), torch.zeros(3).long(), torch.ones(1, 2), torch.zeros(1).long()
        )


def test_captions_are_looked_for_both_ways():
    rng = np.random.default_rng(2)
    captions = np.repeat(np.arange(12), 2)
    real = rng.normal(size=(12, 5))
    made = real[captions] + 0.8 * rng.normal(size=(24, 5))
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in (real, made)]
    cosines = unit[0] @ unit[1].T
    there = captions[cosines.argmax(1)] == np.arange(12)
    back = cosines.argmax(0) == captions
    expected = there / 2 + back.reshape(12, 2).mean(1) / 2
    result = caption_transfer(
        torch.from_numpy(made), torch.from_numpy(captions), torch.from_numpy(real), torch.arange(12)
    )
    assert result.numpy() == pytest.approx(expected)
    assert 0 < expected.mean() < 1
