"""Results, gaps and encoders that someone made one by one, gathered for one page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from gmail_align.artifacts import Artifact, load, read_jsonl
from gmail_align.errors import ArtifactError
from gmail_align.report.data import Curve, ReportData
from gmail_align.results import Result, estimate_table, read_result
from gmail_align.runtime import versions

_EVENTS: Final = "events.jsonl"
_NOTE: Final = (
    "These results were made one by one. Their differences are not tested here: compare two of "
    "equal protocol with gmail-align compare."
)


def gather(folders: Sequence[Path], title: str, command: str) -> ReportData:
    """Read results, gaps and aligned encoders; each is called by its folder.

    Raises:
        ArtifactError: a folder holds something else, or is damaged.
    """
    result: dict[str, Any] = {
        "gathered": len(folders),
        "rows": [],
        "encoders": [],
        "unavailable": {},
        "limits": [_NOTE],
    }
    curves: dict[str, Curve] = {}
    provenance = {f"version of {name}": value for name, value in versions().items()}
    for name, folder in zip(_names(folders), folders, strict=True):
        artifact = load(folder)
        if artifact.kind == "encoder":
            result["encoders"].append(_encoder(name, artifact))
            curves |= _curve(name, artifact)
        elif artifact.kind == "result":
            read = read_result(artifact)
            _add(result, name, read)
            counts = ", ".join(f"{count} {what}" for what, count in read.n.items())
            provenance[name] = f"{read.protocol}: {counts}"
        else:
            raise ArtifactError(
                f"{folder} holds {artifact.kind}: give results, gaps and aligned encoders, or the "
                "folder of one finished run"
            )
    return ReportData(title, command, result, curves=curves, provenance=provenance)


def _names(folders: Sequence[Path]) -> list[str]:
    """Call a folder by its name, or by its path where two have the same name."""
    times = Counter(folder.resolve().name for folder in folders)
    names = [folder.resolve().name for folder in folders]
    return [
        str(folder) if times[name] > 1 else name
        for name, folder in zip(names, folders, strict=True)
    ]


def _add(gathered: dict[str, Any], name: str, result: Result) -> None:
    """Put one result where its kind of numbers is shown."""
    metrics = estimate_table(result.metrics)
    gathered["unavailable"] |= {
        f"{what} of {name}": why for what, why in result.unavailable.items()
    }
    judged = {"name": name, "label": name}
    if result.protocol.startswith("gap_"):
        gathered["encoders"].append({**judged, "gap": metrics})
    elif "i2t_r1" in metrics or "t2i_r1" in metrics:
        gathered["encoders"].append({**judged, "retrieval": {result.protocol: metrics}})
    elif "classes" in result.fingerprints:
        accuracy = {result.protocol: metrics["accuracy"]}
        gathered["encoders"].append({**judged, "zeroshot": accuracy})
    elif "systems" in result.details:
        systems = result.details["systems"]
        for system, scores in systems.items():
            label = name if len(systems) == 1 else f"{name}: {system}"
            gathered["rows"].append({"name": label, "detail": result.protocol, "metrics": scores})
    else:
        gathered["rows"].append({"name": name, "detail": result.protocol, "metrics": metrics})


def _encoder(name: str, encoder: Artifact) -> dict[str, Any]:
    """Return what the guard kept of an aligned encoder."""
    notes = encoder.manifest["notes"]
    steps = [int(row["step"]) for row in _events(encoder) if row["event"] == "loss"]
    return {
        "name": name,
        "label": name,
        "steps": max(steps, default=0),
        "best_steps": [notes["best_step"]] if "best_step" in notes else [],
        "applied": [notes["applied"]] if "applied" in notes else [],
        "refusals": [notes["message"]] if "message" in notes else [],
    }


def _curve(name: str, encoder: Artifact) -> dict[str, Curve]:
    points: dict[str, list[dict[str, float]]] = {"loss": [], "score": []}
    for row in _events(encoder):
        points[row.pop("event")].append(row)
    best = encoder.manifest["notes"].get("best_step")
    return {name: Curve(points["loss"], points["score"], best)} if points["loss"] else {}


def _events(encoder: Artifact) -> list[dict[str, Any]]:
    path = encoder.path(_EVENTS)
    return list(read_jsonl(path)) if path.exists() else []
