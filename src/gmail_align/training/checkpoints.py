"""The last checkpoint of a training: one safetensors file, and a folder of shards beside it.

Tensors that are sharded over processes (FSDP2) go into the folder by
``torch.distributed.checkpoint``, where every process writes its own part as safetensors. The file
is written last and names the folder, so a kill at any moment leaves a whole checkpoint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from gmail_align.artifacts import write_bytes
from gmail_align.errors import ArtifactError, damage_explained
from gmail_align.training.distributed import ranks

StateT = TypeVar("StateT")
CHECKPOINT = "checkpoint.safetensors"
_SHARDS = "checkpoint-"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def is_sharded(parameters: Mapping[str, nn.Parameter]) -> bool:
    """Tell whether every process holds a part of the parameters only."""
    return any(_is_part(parameter) for parameter in parameters.values())


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor of which every process holds a part, put together in all of them."""
    if not _is_part(tensor):
        return tensor
    part: Any = tensor
    joined: Tensor = part.full_tensor()
    return joined


def _is_part(tensor: Tensor) -> bool:
    """Tell whether a tensor is a DTensor; the class itself takes seconds to import."""
    return hasattr(tensor, "full_tensor")


def save_checkpoint(
    folder: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    best: Mapping[str, Tensor],
    state: Mapping[str, Any],
) -> None:
    """Write everything that a training needs in order to go on after ``state["step"]``."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"parameter.{name}"] = parameter.detach()
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}.{name}"] = value
    tensors |= {f"best.{name}": value for name, value in best.items()}
    shards = {name: value for name, value in tensors.items() if _is_part(value)}
    notes = {"state": json.dumps(dict(state))}
    if shards:
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import save as save_shards

        place = folder / f"{_SHARDS}{state['step']}"
        if ranks().first:
            shutil.rmtree(place, ignore_errors=True)  # what a killed run left of it
        ranks().wait()
        writer = HuggingFaceStorageWriter(str(place), save_distributed=True)
        save_shards(dict(shards), storage_writer=writer)
        notes |= {"shards": place.name, "sharded": json.dumps(sorted(shards))}
        ranks().wait()
    if not ranks().first:
        return
    rest = {n: value.contiguous() for n, value in tensors.items() if n not in shards}
    write_bytes(folder / CHECKPOINT, save(rest, notes))
    _remove_shards(folder, keep=notes.get("shards"))


def load_checkpoint(
    folder: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    best: dict[str, Tensor],
    make_state: Callable[..., StateT],
) -> StateT | None:
    """Load the last checkpoint of ``folder`` into everything; returns its state, None without one.

    Raises:
        ArtifactError: the checkpoint is damaged.
    """
    if not (folder / CHECKPOINT).exists():
        return None
    with _opened(folder / CHECKPOINT) as file, torch.no_grad():
        notes = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if "shards" in notes:
            if not is_sharded(parameters):
                raise ValueError("it is of a training that was sharded over processes")
            names = json.loads(notes["sharded"])
            tensors |= _load_shards(folder / notes["shards"], names, parameters)
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"parameter.{name}"])
            if f"exp_avg.{name}" in tensors:
                optimizer.state[parameter] = {
                    key: tensors[f"{key}.{name}"].to(
                        "cpu" if key == "step" else parameter.device, copy=True
                    )
                    for key in _MOMENTS
                }
            if f"best.{name}" in tensors:
                best[name] = tensors[f"best.{name}"].to(parameter.device, copy=True)
        return make_state(**json.loads(notes["state"]))


def remove_checkpoint(folder: Path) -> None:
    """Remove what :func:`save_checkpoint` wrote, when a training is complete."""
    (folder / CHECKPOINT).unlink(missing_ok=True)
    _remove_shards(folder)


def _remove_shards(folder: Path, keep: str | None = None) -> None:
    for old in folder.glob(f"{_SHARDS}*"):
        if old.name != keep:
            shutil.rmtree(old)


def _load_shards(
    place: Path, names: list[str], parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """Read this process's part of every sharded tensor."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    shards: dict[str, Any] = {
        name: torch.zeros_like(parameters[name.partition(".")[2]]) for name in names
    }
    load(shards, storage_reader=HuggingFaceStorageReader(str(place)))
    return shards


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a checkpoint; a failure inside the block says that it is damaged."""
    advice = "delete it, and the same command starts from step 0"
    with damage_explained(path, ArtifactError, advice), safe_open(path, framework="pt") as file:
        yield file
