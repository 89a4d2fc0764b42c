"""The work folder: steps that make artifacts, named after what each is made from.

A :class:`Step` is a value that says how one artifact is made. Its key is a fingerprint of the
step's class and fields, of the steps that it reads and of the content of the models that it uses.
So equal steps of any rows, seeds and recipes share one folder, and a step whose model or setting
has changed has another one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Final

from gmail_align.artifacts import (
    MANIFEST,
    Artifact,
    canonical_json,
    fingerprint,
    load,
    sha256_file,
)
from gmail_align.config import Config
from gmail_align.encoders.shipped import model_path
from gmail_align.engine import Engine
from gmail_align.errors import ModelError
from gmail_align.leases import one_at_a_time
from gmail_align.mirror import Mirror
from gmail_align.progress import brief, say
from gmail_align.remote import state_of, url_of
from gmail_align.workflow.outline import Outline

_BLOB: Final = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_DESCRIPTIONS: Final = ("config.json", "model_index.json", MANIFEST)
_MODEL_FILES: Final = (".json", ".txt", ".model", ".safetensors", ".bin")
_RUN_ONLY: Final = frozenset(("device", "batch_size_of_features", "writers", "compile"))
"""Settings that change where and how fast a stage runs, and not what it makes."""


@dataclass(frozen=True)
class Work:
    """A work folder, and the engine that steps run on."""

    folder: Path
    engine: Engine = field(default_factory=lambda: Engine(workers=1))
    outline: Outline | None = None
    """All steps of the run, to number the finished ones by; None says nothing."""
    mirror: Mirror | None = None
    """Gets every artifact, and has those that this machine lacks."""
    cache_limit: int | None = None
    """Bytes of decoded pixels of one image store that the cache may keep; None is any number."""

    @property
    def cache(self) -> Path:
        """Folder of decoded pixels and frozen features that steps share."""
        return self.folder / "cache"

    def path(self, step: Step) -> Path:
        """Return the folder of what a step makes."""
        return step.place(self.folder)

    def done(self, step: Step) -> bool:
        """Whether a step's artifact is complete."""
        return (self.path(step) / MANIFEST).exists()

    def get(self, step: Step) -> Artifact:
        """Return what a step makes; it is made first, by one process, where it is missing."""
        copy = self.copy_of(step)
        if not self.done(step):
            with one_at_a_time(self.folder / ".turns" / step.key):
                if not self.done(step) and not (copy and copy.fetch(self.path(step))):
                    self._make(step)
        made = load(self.path(step))
        if copy is not None:
            copy.complete(made)
        return made

    def copy_of(self, step: Step) -> Mirror | None:
        """Return the mirror of what a step makes in this folder; None where there is none."""
        place = step.place(Path())
        return None if self.mirror is None or not step.kind else self.mirror.below(str(place))

    def _make(self, step: Step) -> None:
        if self.outline is None:
            step._make(self, self.path(step))
            return
        with brief():
            step._make(self, self.path(step))
        seconds = load(self.path(step)).manifest.get("seconds", 0.0)
        say(self.outline.line(step.words, seconds))


@dataclass(frozen=True, eq=False)
class Step:
    """How one artifact is made."""

    kind: ClassVar[str] = ""
    """Folder of the work folder that such artifacts are in."""
    what: ClassVar[str] = ""
    """What is made, in words, with the names of fields in braces."""
    trains: ClassVar[bool] = False
    """Whether making it trains a model."""

    @cached_property
    def key(self) -> str:
        """Fingerprint of everything that the artifact depends on."""
        return fingerprint([type(self).__name__, _plain_fields(self)])

    def __eq__(self, other: object) -> bool:
        """Two steps are equal where they make the same artifact."""
        return isinstance(other, Step) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the numbers in it; some of them need modules or data that may lack."""
        return ()

    @property
    def words(self) -> str:
        """What is made, in words."""
        return self.what.format(**{one.name: getattr(self, one.name) for one in fields(self)})

    def _make(self, work: Work, out: Path) -> None:
        """Make the artifact in ``out``, from artifacts that ``work`` returns."""
        raise NotImplementedError

    @property
    def missing(self) -> list[Path]:
        """Files and folders of the user that it reads, and that do not exist."""
        return []

    def place(self, folder: Path) -> Path:
        """Return the artifact's folder below a work folder."""
        return folder / self.kind / self.key

    @property
    def reads(self) -> list[Step]:
        """The steps that this one reads, directly."""
        return list(_steps([getattr(self, one.name) for one in fields(self)]))

    @cached_property
    def is_trained(self) -> bool:
        """Whether it trains a model, or depends on one that a run trains."""
        return self.trains or any(step.is_trained for step in self.reads)


def in_order(steps: Iterable[Step]) -> list[Step]:
    """Return steps and everything that they read, each once and after what it reads."""
    ordered: dict[str, Step] = {}

    def visit(step: Step) -> None:
        if step.key not in ordered:
            for one in step.reads:
                visit(one)
            ordered[step.key] = step

    for step in steps:
        visit(step)
    return list(ordered.values())


@dataclass(frozen=True)
class Model:
    """A model that a run starts from; two are the same where their files are."""

    name: str
    """As the recipe says it."""
    part: str
    """What it is: ``clip``, ``gpt2`` or ``diffusion``."""
    path: str
    """Folder, or hub id."""
    revision: str = ""

    @property
    def folder(self) -> Path | None:
        """The folder of its files on this machine; None where it is not here."""
        local = Path(self.path).expanduser()
        return local if local.is_dir() else cached_snapshot(self.path, self.revision)

    @cached_property
    def content(self) -> str:
        """Fingerprint of its files, or its id and revision where it is not here yet."""
        folder = self.folder
        return f"{self.path}@{self.revision}" if folder is None else model_content(folder)


@lru_cache(maxsize=64)
def find_model(name: str, part: str, home: Path, revision: str = "") -> Model:
    """Return the model that a recipe names: shipped, a folder, or a hub id.

    Equal names give one object, whose files are looked at once.

    Raises:
        ModelError: the name is empty, or names a folder that is not a model's.
    """
    if not name.strip():
        raise ModelError(f"a model ({part}) has an empty name: give a folder, a hub id or tabletop")
    path = model_path(name, part)
    if not revision and not path.is_dir() and not (home / path).is_dir():
        name, _, revision = name.partition("@")
        path = model_path(name, part)
    if not path.is_dir() and (home / path).is_dir():
        path = home / path
    if path.is_dir() and not any((path / file).is_file() for file in _DESCRIPTIONS):
        lacks = " or ".join(_DESCRIPTIONS)
        raise ModelError(f"{name!r} is not a model: the folder {path} does not have {lacks}")
    return Model(name, part, str(path), revision)


def models_of(steps: Iterable[Step]) -> list[Model]:
    """Return the models that steps use, each once."""
    models = {
        (model.path, model.revision): model
        for step in steps
        for one in fields(step)
        if isinstance(model := getattr(step, one.name), Model)
    }
    return list(models.values())


def cached_snapshot(name: str, revision: str = "") -> Path | None:
    """Return the folder of a hub id in the Hugging Face cache, or None."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = (
        Path(os.environ.get("HF_HUB_CACHE", home / "hub")) / f"models--{name.replace('/', '--')}"
    )
    reference = cache / "refs" / (revision or "main")
    commit = reference.read_text().strip() if reference.is_file() else revision
    folder = cache / "snapshots" / commit
    return folder if commit and folder.is_dir() else None


def model_content(folder: Path) -> str:
    """Return the fingerprint of a model folder's configuration, tokenizer and weights."""
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in _MODEL_FILES]
    return fingerprint([[str(path.relative_to(folder)), _file_content(path)] for path in files])


def files_state(path: Path) -> Any:
    """Return what changes with an input: the content of a file, or what a folder lists.

    Of a file that does not exist it is None.
    """
    if (url := url_of(path)) is not None:
        return state_of(url)
    if not path.exists():
        return None
    if path.is_file():
        return _file_content(path)
    digest = hashlib.sha256()
    for root, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            file = os.path.join(root, name)
            status = os.stat(file) if os.path.exists(file) else os.lstat(file)  # a dead link
            place = os.path.relpath(file, path)
            row = canonical_json([place, status.st_size, status.st_mtime_ns])
            digest.update(row.encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _file_content(path: Path) -> str:
    """Return the sha256 of a file; the Hugging Face cache names its files by it."""
    target = os.path.basename(os.path.realpath(path))
    if path.is_symlink() and _BLOB.fullmatch(target):
        return target
    status = path.stat()
    return _sha256(str(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _sha256(path: str, size: int, changed: int) -> str:
    return sha256_file(Path(path))


def plain_key(value: Any) -> str:
    """Return the fingerprint of a dataclass that steps hold, such as an import."""
    return fingerprint(_plain_fields(value))


def _plain_fields(value: Any) -> dict[str, Any]:
    return {
        one.name: _plain(getattr(value, one.name))
        for one in fields(value)
        if one.metadata.get("identity", True)
    }


def not_identity(default: Any) -> Any:
    """Declare a field that does not change what a step makes, such as a batch size."""
    return field(default=default, metadata={"identity": False})


def _plain(value: Any) -> Any:
    """Turn a field into JSON: a step into its key, a model into its content."""
    if isinstance(value, Step):
        return value.key
    if isinstance(value, Model):
        return value.content
    if isinstance(value, Config):
        return value.model_dump(mode="json", exclude=set(_RUN_ONLY))
    if is_dataclass(value):
        return _plain_fields(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return json.loads(json.dumps(value, default=str))


def _steps(values: Any) -> Iterator[Step]:
    for value in values:
        if isinstance(value, Step):
            yield value
        elif isinstance(value, list | tuple):
            yield from _steps(value)
        elif isinstance(value, Mapping):
            yield from _steps(value.values())
        elif is_dataclass(value) and not isinstance(value, type | Model):
            yield from _steps([getattr(value, one.name) for one in fields(value)])
