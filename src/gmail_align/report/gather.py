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
            curve = read_curve(artifact)
            result["encoders"].append(_encoder(name, artifact, curve))
            curves |= {name: curve} if curve.losses else {}
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


def _encoder(name: str, encoder: Artifact, curve: Curve) -> dict[str, Any]:
    """Return what the guard kept of an aligned encoder."""
    notes = encoder.manifest["notes"]
    return {
        "name": name,
        "label": name,
        "steps": curve.steps,
        "best_steps": [notes["best_step"]] if "best_step" in notes else [],
        "applied": [notes["applied"]] if "applied" in notes else [],
        "refusals": [notes["message"]] if "message" in notes else [],
    }


def read_curve(trained: Artifact) -> Curve:
    """Read the events of a training; a map that was fitted without steps has none."""
    points: dict[str, list[dict[str, float]]] = {"loss": [], "score": []}
    path = trained.path(_EVENTS)
    for row in read_jsonl(path) if path.exists() else ():
        points[row.pop("event")].append(row)
    return Curve(
        points["loss"], points["score"], trained.manifest.get("notes", {}).get("best_step")
    )
