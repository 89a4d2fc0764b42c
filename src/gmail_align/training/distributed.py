"""Several processes that train one model: what they share, and what one does for all.

``torchrun --nproc-per-node N -m gmail_align ...`` starts them; accelerate reads what torchrun says
and opens the process group (nccl on GPUs, gloo on CPUs).
"""

from __future__ import annotations

import atexit
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

T = TypeVar("T")
_PATIENCE = timedelta(hours=12)
"""How long processes wait for the one that decodes and embeds for all."""


@dataclass(frozen=True)
class Ranks:
    """The processes of this run, seen from one of them."""

    index: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and says what happens."""
        return self.index == 0

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            dist.barrier()

    def first_alone(self, make: Callable[[], T]) -> T:
        """Let the first process make and cache something, and the others read it then."""
        if not self.first:
            self.wait()
        made = make()
        if self.first:
            self.wait()
        return made

    def part(self, size: int) -> slice:
        """Return this process's part of ``size`` rows; parts follow one another."""
        return slice(self.index * size // self.count, (self.index + 1) * size // self.count)

    def gather(self, rows: Float[Tensor, "p d"]) -> Float[Tensor, "b d"]:
        """Join the parts of all processes, in order.

        The gradient reaches this process's own rows, times the number of processes: averaged over
        them (:meth:`average_gradients`), gradients are those of one process with all rows. So
        nothing is sent backwards.
        """
        if self.count == 1:
            return rows
        join: Any = _Gather.apply
        joined: Tensor = join(rows, self)
        return joined

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average gradients over the processes, all in one message."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.count == 1 or not gradients:
            return
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.count
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def total(self, value: Tensor) -> Tensor:
        """Return the sum of all processes' values."""
        if self.count > 1:
            value = value.to(_device(), copy=True)
            dist.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """Tell whether any process says so; all are told the same."""
        return flag if self.count == 1 else bool(self.total(torch.tensor(int(flag))) > 0)

    def from_first(self, make: Callable[[], Mapping[str, float]]) -> dict[str, float]:
        """Let the first process compute values, and return them to all, so that all decide alike.

        Names and values travel as JSON, which holds every double exactly.
        """
        if self.count == 1:
            return dict(make())
        device = _device()
        data = json.dumps(dict(make())).encode() if self.first else b""
        size = torch.tensor([len(data)], device=device)
        dist.broadcast(size, src=0)
        sent = torch.zeros(int(size), dtype=torch.uint8, device=device)
        if self.first:
            sent.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        dist.broadcast(sent, src=0)
        values: dict[str, float] = json.loads(bytes(sent.tolist()))
        return values


def _device() -> str:
    """Return where what is sent between processes has to be."""
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


@cache
def ranks() -> Ranks:
    """Return the processes that torchrun started, or the one there is."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Ranks()
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)
    atexit.register(_leave)
    return Ranks(int(state.process_index), int(state.num_processes))


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


class _Gather(torch.autograd.Function):
    """All processes' rows; backwards, the own part of the gradient times their number."""

    @staticmethod
    def forward(context: Any, rows: Tensor, here: Ranks) -> Tensor:
        sizes = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(here.count)]
        dist.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
        counts = [int(size) for size in sizes]
        longest = max(counts)
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        context.start, context.length, context.count = (
            sum(counts[: here.index]),
            len(rows),
            here.count,
        )
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        start, stop = context.start, context.start + context.length
        return gradients[0][start:stop] * context.count, None
