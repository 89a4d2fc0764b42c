"""Where a diffusers pipeline lies, and the fingerprint of what it is made of."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from gmail_align.artifacts import fingerprint, sha256_file
from gmail_align.config import load_json
from gmail_align.encoders.hub import HUB_ID, ask_hub, refuse_mistyped
from gmail_align.errors import ModelError, first_line
from gmail_align.extras import require

COPY_AGAIN: Final = "copy the pipeline again"
"""What to do about a damaged file of a pipeline."""
_BLOB: Final = re.compile(r"[0-9a-f]{64}")
_UNUSED: Final = {"safety_checker", "feature_extractor"}


def find_pipeline(model: str, revision: str = "", variant: str = "") -> Path:
    """Return the folder of a pipeline, fetching a hub id into the Hugging Face cache.

    Raises:
        ModelError: there is no such folder, it is not a pipeline, or the hub does not have it.
        MissingExtraError: diffusers is needed to fetch it and is not installed.
    """
    folder = Path(model).expanduser()
    if folder.exists():
        read_index(folder)
        return folder
    if not HUB_ID.fullmatch(model):
        raise ModelError(
            f"there is no folder {model}, and it is not a hub id (owner/name): give either one"
        )
    pipeline: Any = require("diffusers", "synthesis").DiffusionPipeline
    refuse_mistyped(model, revision)
    options = {"revision": revision or None, "variant": variant or None, "use_safetensors": True}
    with suppress(OSError, ValueError):
        return Path(pipeline.download(model, local_files_only=True, **options))
    ask_hub(model, revision, "a revision too, --set revision=main for example")
    try:
        folder = pipeline.download(model, **options)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"could not find {model} here or on the Hugging Face hub ({first_line(error)}): check "
            f"your connection, use the id of a mirror{_mirrors(model)}, or pass a local copy with "
            "--model-path FOLDER"
        ) from error
    return Path(folder)


def read_index(folder: Path) -> dict[str, Any]:
    """Return a pipeline's ``model_index.json``.

    Raises:
        ModelError: the folder is not a diffusers pipeline.
    """
    path = folder / "model_index.json"
    if not path.exists():
        raise ModelError(
            f"{folder} is not a diffusers pipeline: it does not have a model_index.json; give the "
            "folder that save_pretrained wrote"
        )
    index = load_json(path, ModelError, COPY_AGAIN)
    if not isinstance(index.get("_class_name"), str):
        raise ModelError(f"{path} does not name a pipeline class: copy the pipeline again")
    for name, part in index.items():
        if isinstance(part, list) and not all(isinstance(word, str | None) for word in part):
            raise ModelError(f"{path} is damaged at {name}: copy the pipeline again")
    return index


def weights_fingerprint(folder: Path, variant: str = "") -> str:
    """Return the fingerprint of the weights and configurations that a pipeline is made of.

    Covers the safetensors, json and txt files of the components named in ``model_index.json``.
    Files that the hub's cache names by their sha256 are not read again.

    Raises:
        ModelError: the folder is not a pipeline or lacks safetensors weights.
    """
    index = read_index(folder)
    components = [name for name, value in index.items() if isinstance(value, list) and any(value)]
    digests = {
        str(path.relative_to(folder)): _digest(path)
        for name in sorted(set(components) - _UNUSED)
        for path in sorted((folder / name).glob("*"))
        if _counts(path, variant)
    }
    if not any(name.endswith(".safetensors") for name in digests):
        kind = f"{variant!r} safetensors" if variant else "safetensors"
        raise ModelError(
            f"{folder} does not hold {kind} weights: save the pipeline in that form first"
        )
    return fingerprint({"class": index["_class_name"], "files": digests})


def _mirrors(model: str) -> str:
    """Name what else to try when a model is known to have left its home on the hub."""
    if not re.fullmatch(r"stabilityai/stable-diffusion-2(-1)?(-base)?", model):
        return " that you trust"
    name = model.partition("/")[2]
    return (
        " that you trust (Stable Diffusion 2 has left its home on the hub; copies were seen at "
        f"sd2-community/{name} and Manojb/{name})"
    )


def _counts(path: Path, variant: str) -> bool:
    if path.suffix in (".json", ".txt"):
        return not path.name.endswith(".safetensors.index.json")
    marked = (
        re.search(rf"\.{re.escape(variant)}[.-]", path.name) if variant else "." not in path.stem
    )
    return path.suffix == ".safetensors" and bool(marked)


def _digest(path: Path) -> str:
    target = Path(os.path.realpath(path)).name
    return target if path.is_symlink() and _BLOB.fullmatch(target) else sha256_file(path)
