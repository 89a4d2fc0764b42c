"""The probe: inputs and features that are stored beside weights, so that a wrong load is an error.

Libraries that load a model under other names or with another activation warn, or say nothing, and
return noise. A folder with a probe says what its features have to be.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from gmail_align.artifacts import write_bytes
from gmail_align.errors import ModelError, damage_explained
from gmail_align.runtime import stable_seed, versions

PROBE = "probe.safetensors"
TOLERANCE = 1e-4
"""Largest difference of a feature's entry, in parts of the largest entry."""
_COUNT = 2


def probe_pixels(size: int, channels: int = 3) -> Tensor:
    """Return two fixed noise images, ready for a model: shape (2, channels, size, size)."""
    generator = torch.Generator().manual_seed(stable_seed("probe", size))
    return torch.randn((_COUNT, channels, size, size), generator=generator)


def probe_ids(vocabulary: int, length: int) -> Tensor:
    """Return two fixed texts of random tokens that end with the largest id, shape (2, length)."""
    generator = torch.Generator().manual_seed(stable_seed("probe", vocabulary, length))
    ids = torch.randint(1, max(2, vocabulary - 2), (_COUNT, length), generator=generator)
    ids[:, 0] = vocabulary - 2
    ids[0, length // 2 :] = vocabulary - 1
    ids[1, -1] = vocabulary - 1
    return ids


def write_probe(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Store inputs and features, with the versions that made them."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    notes = {"versions": json.dumps(versions())}  # several would come in an order of their own
    write_bytes(folder / PROBE, save(plain, notes))


def read_probe(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the stored tensors and the versions that made them.

    Raises:
        ModelError: there is none, or it is damaged.
    """
    path = folder / PROBE
    advice = "make the folder again"
    with damage_explained(path, ModelError, advice), safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads((file.metadata() or {}).get("versions", "{}"))


def compare(features: Tensor, expected: Tensor, what: str, tolerance: float = TOLERANCE) -> float:
    """Return the largest difference of two batches of features, in parts of the largest entry.

    Raises:
        ModelError: the shapes differ, an entry is not finite, or the difference is too large.
    """
    if features.shape != expected.shape:
        shapes = f"{tuple(features.shape)} instead of {tuple(expected.shape)}"
        raise ModelError(f"{what}: features of the probe have shape {shapes}")
    wide, target = features.detach().cpu().double(), expected.detach().cpu().double()
    difference = float((wide - target).abs().max() / target.abs().max())
    if not difference <= tolerance:
        raise ModelError(
            f"{what}: features of the probe differ by {difference:.1e} of their size, more than "
            f"the {tolerance:.0e} that rounding explains, so this is not the model it should be"
        )
    return difference


def named_versions(made: dict[str, str]) -> str:
    """Name the versions that a probe was made with, for an error."""
    names = ("gmail-align", "transformers", "torch")
    return ", ".join(f"{name} {made[name]}" for name in names if name in made)
