"""Generated images as a modality of their own: measure the gap, align encoders, use the result.

Python loads each public name on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import functools
import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gmail_align.errors import GmailAlignError, UserError

if TYPE_CHECKING:
    from gmail_align.alignment.losses import alignment_loss
    from gmail_align.api.hub import push_to_hub
    from gmail_align.api.multimodal import ask, predict_answers, train_llava
    from gmail_align.api.places import load
    from gmail_align.api.runs import plan, run, study
    from gmail_align.api.scores import (
        compare,
        evaluate_answers,
        evaluate_captions,
        evaluate_probe,
        evaluate_retrieval,
        evaluate_zeroshot,
        measure_gap,
    )
    from gmail_align.api.stages import (
        align,
        align_features,
        choose_captions,
        export,
        extract,
        import_data,
        pair,
        predict_captions,
        synthesize,
        train_captioner,
        write_tabletop,
    )
    from gmail_align.captioning.pretrained import Captioner
    from gmail_align.encoders.encoder import GmailEncoder
    from gmail_align.encoders.route import Route

__version__ = "0.1.0"

__all__ = [
    "GmailEncoder",
    "Captioner",
    "Route",
    "alignment_loss",
    "load",
    "write_tabletop",
    "import_data",
    "choose_captions",
    "synthesize",
    "pair",
    "align",
    "align_features",
    "extract",
    "measure_gap",
    "train_captioner",
    "predict_captions",
    "train_llava",
    "predict_answers",
    "ask",
    "evaluate_captions",
    "evaluate_retrieval",
    "evaluate_zeroshot",
    "evaluate_probe",
    "evaluate_answers",
    "compare",
    "export",
    "push_to_hub",
    "run",
    "plan",
    "study",
    "GmailAlignError",
    "UserError",
    "__version__",
]

_HOMES = {
    "GmailEncoder": "gmail_align.encoders.encoder",
    "Captioner": "gmail_align.captioning.pretrained",
    "push_to_hub": "gmail_align.api.hub",
    "Route": "gmail_align.encoders.route",
    "alignment_loss": "gmail_align.alignment.losses",
    "load": "gmail_align.api.places",
    "train_llava": "gmail_align.api.multimodal",
    "predict_answers": "gmail_align.api.multimodal",
    "ask": "gmail_align.api.multimodal",
    "compare": "gmail_align.api.scores",
    "measure_gap": "gmail_align.api.scores",
    "run": "gmail_align.api.runs",
    "plan": "gmail_align.api.runs",
    "study": "gmail_align.api.runs",
}
"""Public name -> the module that defines it, unless its name says so (see :func:`_home`)."""


def _home(name: str) -> str:
    evaluation = name.startswith("evaluate_")
    return _HOMES.get(name, f"gmail_align.api.{'scores' if evaluation else 'stages'}")


class _Package(ModuleType):
    """Keeps public names when a module of the same name, such as the room ``export``, is loaded."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(_home(name))
    value = getattr(home, name)
    if home.__name__.startswith(f"{__name__}.api."):
        value = _ends_if_failed(value)
    globals()[name] = value
    return value


def _ends_if_failed(function: Any) -> Any:
    """Return a stage that ends its locks when it fails, though a notebook keeps the error."""
    from gmail_align.leases import ended_if_failed

    @functools.wraps(function)
    def call(*given: Any, **options: Any) -> Any:
        with ended_if_failed():
            return function(*given, **options)

    return call


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
