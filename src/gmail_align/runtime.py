"""Where and with what a run happens: device, dtype, seeds, versions, the signal to end."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from gmail_align.errors import ConfigError, Terminated

if TYPE_CHECKING:
    import numpy as np
    import torch

_PACKAGES = ("gmail-align", "torch", "transformers", "peft", "diffusers", "numpy", "pillow")


def random_source(seed: int, part: int | None = None) -> np.random.Generator:
    """Return numpy's generator of a seed, or of one part of what is drawn by it.

    Unlike numpy's own, it takes negative seeds.
    """
    import numpy as np

    seed = seed if seed >= 0 else stable_seed(seed)
    return np.random.default_rng(seed if part is None else [seed, part])


def stable_seed(*parts: int | str) -> int:
    """Derive a 63-bit seed from ``parts``; the same parts give the same seed everywhere."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    return dict(_installed())


@cache
def _installed() -> dict[str, str]:
    """Read the versions once: a run asks for every artifact, and parsing metadata is slow."""
    installed = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def gpus() -> list[dict[str, Any]]:
    """Return the name and the memory of every GPU that torch sees."""
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    properties = (
        torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())
    )
    return [{"name": p.name, "memory_gb": round(p.total_memory / 1e9, 1)} for p in properties]


def resolve_device(name: str = "auto") -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:1`` into a device that exists.

    Raises:
        ConfigError: the device is unknown or not present.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{name!r} is not a device: use auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device {name!r} cannot be used: this machine does not have a CUDA device"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(f"device {name!r} cannot be used: the CUDA devices are 0 to {count - 1}")
    return device


def resolve_dtype(name: str) -> torch.dtype:
    """Turn ``float32``, ``float16`` or ``bfloat16`` into a torch dtype.

    Raises:
        ConfigError: another name.
    """
    import torch

    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if name not in known:
        raise ConfigError(f"{name!r} is not a dtype: use one of {', '.join(known)}")
    return known[name]


@dataclass
class _Termination:
    """What this process knows of SIGTERM."""

    requested: bool = False
    deferred: bool = False
    """Whether a piece of work looks at ``requested`` by itself."""


_termination = _Termination()


@contextmanager
def termination_raised() -> Iterator[None]:
    """Raise :class:`Terminated` inside the block when SIGTERM arrives.

    Only the main thread can do so. Child processes keep the system's way: they end at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def handle(number: int, frame: object) -> None:
        if os.getpid() != owner:
            os._exit(128 + number)
        _termination.requested = True
        if not _termination.deferred:
            raise Terminated

    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
        _termination.requested = False


@contextmanager
def termination_deferred() -> Iterator[Callable[[], bool]]:
    """Let the block end its step, and save, before the process ends at SIGTERM.

    Yields:
        Whether the signal has arrived; the block then saves and raises :class:`Terminated`.
    """
    _termination.deferred = True
    try:
        yield lambda: _termination.requested
    finally:
        _termination.deferred = False
