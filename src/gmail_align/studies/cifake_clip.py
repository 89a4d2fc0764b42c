"""What generated images are worth on real photos: CIFAKE, a CLIP trained from scratch on photos.

The CLIP learns from the training photos and their classes' prompts, so it has seen no generated
image. A recipe then does what ``gmail-align run`` does with anyone's class folders: a linear probe
learns from photos, or from generated images as they are, moved by each training-free map, through
the control adapter, or through GMAIL's adapter and head. It is tested on photos that neither the
CLIP nor any row has seen. GMAIL chooses by itself whether and at which step it is applied.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoTokenizer, CLIPConfig, CLIPModel

from gmail_align.alignment.config import ScratchConfig
from gmail_align.alignment.scratch import train_clip
from gmail_align.alignment.training_free import MAPS
from gmail_align.artifacts import Artifact, fingerprint, write_json
from gmail_align.data.subsets import hold_out
from gmail_align.encoders.shipped import model_path
from gmail_align.importing.options import ImportOptions
from gmail_align.importing.run import import_data
from gmail_align.pipeline import engine_of, make, steps_of
from gmail_align.recipe import Recipe, recipe_of
from gmail_align.runtime import versions
from gmail_align.studies.cifake_features import zip_of
from gmail_align.studies.result import Number, ShownColumn, ShownRow, StudyResult, TestedClaim
from gmail_align.studies.run import StudyOptions, numbers_of
from gmail_align.training.config import OptimConfig
from gmail_align.workflow.summary import summarise
from gmail_align.workflow.work import Work

SEEDS: Final = 5
TEST_SHARE: Final = 0.1
HOLDOUT: Final = 0.2
"""Share of the photos that the guard judges by: a probe's accuracy needs many."""
SEED: Final = 0
"""Of the choice of photos: the recipe tests on those that the CLIP did not learn from."""
COLUMNS: Final = (
    ShownColumn(name="accuracy", label="Accuracy"),
    ShownColumn(name="steps_kept", label="Step kept", unit="count"),
)
ROWS: Final[tuple[tuple[str, str, str, Mapping[str, str]], ...]] = (
    ("real", "Photos", "the bound", {"images": "real"}),
    ("raw", "Generated as real", "no alignment at all", {}),
    ("control", "Generated with LoRA", "no real image", {"align": "control"}),
    ("mean_shift", "Mean shift", "training-free", {"align": "mean_shift"}),
    ("shift_scale", "Shift and scale", "training-free, as in ReAlign", {"align": "shift_scale"}),
    ("coral", "CORAL", "training-free", {"align": "coral"}),
    ("gmail", "GMAIL", "as it chooses by itself", {"align": "gmail"}),
    ("by_loss", "GMAIL by its loss", "the step of its lowest loss", {"align": "by_loss"}),
    ("heads", "GMAIL, heads alone", "as it chooses by itself", {"align": "heads"}),
    ("real_few", "A tenth of the photos", "", {"images": "real", "pairs": "few"}),
    ("shift_few", "Mean shift, a tenth", "", {"align": "mean_shift", "pairs": "few"}),
    ("gmail_few", "GMAIL, a tenth of the photos", "", {"align": "gmail", "pairs": "few"}),
    ("raw_mixed", "Photos and generated, as real", "half of each", {"images": "mixed"}),
    (
        "gmail_mixed",
        "Photos and GMAIL",
        "half of each",
        {"images": "mixed", "align": "gmail"},
    ),
)
"""Name, label, detail and what the recipe says of each row."""
CLAIMS: Final = (
    ("GMAIL beats generated images taken for real", "gmail", "raw"),
    ("GMAIL beats the control", "gmail", "control"),
    ("GMAIL beats the mean shift", "gmail", "mean_shift"),
    ("By its loss, GMAIL beats generated images taken for real", "by_loss", "raw"),
    ("With a tenth of the photos, GMAIL beats those photos alone", "gmail_few", "real_few"),
    ("With the photos, GMAIL beats generated images taken for real", "gmail_mixed", "raw_mixed"),
)


@dataclass(frozen=True)
class ClipBudget:
    """How much of everything; the defaults are those of the study."""

    clip_steps: int = 1500
    """Steps of 128 photos that the CLIP learns for."""
    side: int = 32
    patch: int = 4
    width: int = 96
    layers: int = 4
    photos: int = 1200
    """Photos that rows may use, with as many generated images."""
    few: int = 120
    judged: int = 1500
    """Photos that the probes are tested on."""
    align_steps: int = 190
    seeds: int = SEEDS


def cifake_clip(data: Path, options: StudyOptions) -> StudyResult:
    """Run what is missing, and return the table.

    Args:
        data: Folder with ``*real.zip`` and ``*fake.zip``, or a folder ``cifake`` with them.
        options: How many seeds there are, and the work folder.

    Raises:
        DataError: a file is missing or damaged.
    """
    return cifake_clip_within(ClipBudget(), data, options)


def cifake_clip_within(budget: ClipBudget, data: Path, options: StudyOptions) -> StudyResult:
    """Run the study with sizes and steps of one's own."""
    home = options.work / "cifake-clip" / fingerprint(asdict(budget))[:16]
    base = _base(data, budget, home)
    recipe = _recipe(base, budget, options.seeds or budget.seeds)
    steps = steps_of(recipe, Path.cwd())
    work = Work(home / "work", engine_of(recipe, options.engine, options.jobs))
    make(steps, work)
    keys = fingerprint([step.key for step in steps.targets])
    return _result(summarise(recipe, steps, work), keys)


@dataclass(frozen=True)
class _Base:
    """Folders of the photos, of the generated images, and of the CLIP."""

    real: Path
    generated: Path
    clip: Path


def _base(data: Path, budget: ClipBudget, home: Path) -> _Base:
    """Import both kinds, and train the CLIP on the photos that the recipe does not test on."""
    real, fake = (_side(data, kind, home) for kind in ("real", "fake"))
    learnt = hold_out(real["captions"], TEST_SHARE, home / "learnt", held=False, seed=SEED)
    config = ScratchConfig(
        positives="sum",
        optim=OptimConfig(
            steps=budget.clip_steps,
            lr=1e-3,
            schedule="cosine",
            warmup=min(100, budget.clip_steps - 1),
            weight_decay=0.05,
            checkpoint_every=100,
            evaluate_every=max(budget.clip_steps // 5, 1),
        ),
    )
    shape = _shape(budget, home / "shape")
    train_clip(config, learnt, real["images"], shape, home / "clip")
    return _Base(home / "real", fake["images"].folder, home / "clip")


def _side(data: Path, kind: str, home: Path) -> dict[str, Artifact]:
    """Import one zip."""
    options = {"source": [zip_of(data, kind)], "real": kind == "real", "generated": kind == "fake"}
    return import_data("cifake", options, home / kind, ImportOptions())


def _shape(budget: ClipBudget, folder: Path) -> Path:
    """Write a CLIP for small images, whose shape and tokenizer the training takes."""
    if (folder / "preprocessor_config.json").exists():
        return folder
    shipped = model_path("tabletop", "clip")
    tokenizer = AutoTokenizer.from_pretrained(shipped)
    text = CLIPConfig.from_pretrained(shipped).text_config.to_dict()
    tower = {
        "hidden_size": budget.width,
        "intermediate_size": 4 * budget.width,
        "num_hidden_layers": budget.layers,
        "num_attention_heads": max(budget.width // 32, 1),
        "image_size": budget.side,
        "patch_size": budget.patch,
    }
    torch.manual_seed(0)
    config = CLIPConfig(vision_config=tower, text_config=text, projection_dim=128)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    known = json.loads((shipped / "preprocessor_config.json").read_text(encoding="utf-8"))
    known |= {"size": {"shortest_edge": budget.side}}
    known |= {"crop_size": {"height": budget.side, "width": budget.side}}
    write_json(folder / "preprocessor_config.json", known)
    return folder


def _alignments(steps: int) -> dict[str, dict[str, Any]]:
    """Return the alignments of all rows."""
    trained = {
        "batch_size": 64,
        "temperature": 0.12,
        "weights": {"text_generated": 0.5, "text_real": 0.0},
        "lora": {"rank": 16, "alpha": 32.0},
        "encoder": {"trunk": "frozen_real"},
        "optim": {
            "steps": steps,
            "lr": 2e-3,
            "schedule": "cosine",
            "warmup": min(18, steps - 1),
            "checkpoint_every": max(steps // 2, 1),
            "evaluate_every": max(steps // 4, 1),
        },
    }
    chosen = {**trained, "holdout": HOLDOUT}
    blind = {**trained, "preset": "lora_only", "weights": {"align": 0.0, "text_generated": 1.0}}
    return {
        "gmail": chosen,
        "by_loss": {**chosen, "select": "loss", "apply": "best"},
        "heads": {**chosen, "encoder": {"trunk": "frozen_real", "tune": "none"}},
        "control": {**blind, "keep_real": "none"},
        **{name: {"method": name, "apply": "always"} for name in MAPS},
    }


def _recipe(base: _Base, budget: ClipBudget, seeds: int) -> Recipe:
    """Return the recipe of all rows."""
    tables = {
        "title": "GMAIL on CIFAKE with a CLIP from scratch",
        "seed": SEED,
        "seeds": seeds,
        "data": {
            "train": {"artifacts": str(base.real), "limit": budget.photos},
            "validation": {"share": 0.1, "limit": max(budget.photos // 6, 2)},
            "test": {"share": TEST_SHARE, "limit": budget.judged},
        },
        "generator": {"artifacts": str(base.generated)},
        "encoder": {"base": str(base.clip)},
        "subsets": {"few": {"images": budget.few}},
        "align": _alignments(budget.align_steps),
        "learn": {"probe": {"kind": "probe"}},
        "row": [
            {"name": name, "label": label, "detail": detail, "learn": "probe", **own}
            for name, label, detail, own in ROWS
        ],
        "claim": [
            {"name": name, "better": better, "worse": worse, "metric": "accuracy"}
            for name, better, worse in CLAIMS
        ],
        "evaluate": {"probe": "test", "gap": False},
    }
    return recipe_of(tables)


def _result(summary: Mapping[str, Any], keys: str) -> StudyResult:
    """Gather the table from a run's summary."""
    rows: Sequence[Mapping[str, Any]] = summary["rows"]
    return StudyResult(
        study="cifake-clip",
        title="What generated images are worth on real photos: CIFAKE, a CLIP from scratch",
        about=(
            "Accuracy on photos that were held back, of a probe on features of a CLIP that learnt "
            "from CIFAKE's photos alone."
        ),
        scale="real data",
        seeds=summary["seeds"],
        columns=COLUMNS,
        rows=tuple(_row(row) for row in rows),
        claims=tuple(
            TestedClaim(
                **{key: claim[key] for key in ("name", "better", "worse", "metric", "verdict")},
                difference=claim["difference"] and Number(**claim["difference"]),
            )
            for claim in summary["claims"]
        ),
        counts=summary["counts"],
        seconds=round(sum(summary["seconds"].values()), 1),
        notes=tuple(summary["limits"]),
        made_from=keys,
        versions=versions(),
    )


def _row(row: Mapping[str, Any]) -> ShownRow:
    numbers = numbers_of(row, None)
    names = [column.name for column in COLUMNS]
    mark = {"gmail": "ours", "real": "bound"}.get(row["name"], "")
    values = {name: Number(**numbers[name]) for name in names if name in numbers}
    told = {"name": row["name"], "label": row["label"], "detail": row["detail"], "mark": mark}
    return ShownRow.model_validate({**told, "values": values, "seeds": row["per_seed"]})
