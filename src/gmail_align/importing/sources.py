"""One function a format: paths on disk become a source that :func:`write_import` writes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Final

from gmail_align.artifacts import fingerprint
from gmail_align.data.classes import CLASS_SETS, class_set
from gmail_align.data.protocols import PROTOCOLS, find_protocol
from gmail_align.errors import DataError
from gmail_align.importing.formats.captioned import (
    list_beside,
    list_conceptual,
    list_karpathy,
    list_sharegpt4v,
    list_tokens,
)
from gmail_align.importing.formats.classes import list_cifake, list_classification, list_folders
from gmail_align.importing.formats.coco import list_coco
from gmail_align.importing.formats.questions import list_mmmu, list_scienceqa, list_scienceqa_table
from gmail_align.importing.formats.shards import Shards, list_webdataset
from gmail_align.importing.formats.tables import Columns, list_table
from gmail_align.importing.members import Members, open_several
from gmail_align.importing.run import Source
from gmail_align.importing.staging import Stage

TEMPLATE: Final = "a photo of a {}."
"""Text of the captions of images that have a class and nothing else."""

GENERATOR: Final = "CompVis/stable-diffusion-v1-4"
"""What made CIFAKE's generated side, by its paper."""


def coco(annotations: Path, images: Sequence[Path], *, split: str | None = None) -> Source:
    """COCO's captions of 2014 or 2017, or a json of that format."""
    stage, members = Stage(), _members(images)
    digest = list_coco(stage, annotations, members)
    name = split or annotations.name.partition(".")[0].removeprefix("captions_")
    config = {"format": "coco", "split": name}
    return Source(config=config, inputs={"annotations": digest}, stage=stage, members=members)


def karpathy(annotations: Path, images: Sequence[Path], *, splits: Collection[str] = ()) -> Source:
    """Karpathy's json of COCO, Flickr30k or Flickr8k."""
    stage, members = Stage(), _members(images)
    digest, dataset = list_karpathy(stage, annotations, members, splits)
    split = ",".join(sorted(splits)) or "all"
    config = {"format": "karpathy", "dataset": dataset, "split": split}
    return Source(config=config, inputs={"annotations": digest}, stage=stage, members=members)


def flickr30k(tokens: Path, images: Sequence[Path]) -> Source:
    """Flickr30k's (or Flickr8k's) token file, with every image in it."""
    stage, members = Stage(), _members(images)
    digest = list_tokens(stage, tokens, members)
    config = {"format": "flickr30k", "split": "all"}
    return Source(config=config, inputs={"annotations": digest}, stage=stage, members=members)


def conceptual(source: Path, images: Sequence[Path]) -> Source:
    """CC3M or CC12M: the TSV, or the shards that img2dataset made of it."""
    if source.is_dir() or source.suffix == ".tar":
        if images:
            raise DataError("shards of img2dataset hold their images: leave out --images")
        return webdataset([source], name="cc")
    stage, members = Stage(), _members(images)
    digest = list_conceptual(stage, source, members)
    config = {"format": "cc", "split": source.name.partition(".")[0]}
    return Source(config=config, inputs={"annotations": digest}, stage=stage, members=members)


def sharegpt4v(annotations: Path, images: Sequence[Path], *, split: str = "all") -> Source:
    """ShareGPT4V's long captions; its first thousand are the test split."""
    stage, members = Stage(), _members(images)
    digest = list_sharegpt4v(stage, annotations, members, split)
    config = {"format": "sharegpt4v", "split": split}
    return Source(config=config, inputs={"annotations": digest}, stage=stage, members=members)


def urban1k(sources: Sequence[Path]) -> Source:
    """Urban-1k, or any images with texts of the same names beside them."""
    stage, members = Stage(), open_several(sources)
    list_beside(stage, members)
    return _whole({"format": "urban1k", "split": "test"}, stage, members)


def folder(sources: Sequence[Path], *, template: str = TEMPLATE) -> Source:
    """Folders of images named by their class."""
    stage, members = Stage(), open_several(sources)
    names = list_folders(stage, members, template)
    config = {"format": "folder", "template": template}
    return _whole(config, stage, members, names=names or None, templates=[template])


def cifake(
    sources: Sequence[Path], *, generated: bool, split: str = "train", template: str = TEMPLATE
) -> Source:
    """One side of CIFAKE: its real or its generated images."""
    stage, members = Stage(), open_several(sources)
    names = list_cifake(stage, members, generated=generated, template=template)
    side = "generated" if generated else "real"
    config = {"format": "cifake", "side": side, "split": split, "template": template}
    origin = {"source": "generated", "generator": GENERATOR} if generated else {}
    return _whole(config, stage, members, names=names, templates=[template], origin=origin)


def classification(
    name: str, sources: Sequence[Path], *, split: str | None = None, template: str = TEMPLATE
) -> Source:
    """One of the eight sets, in the layout of its authors."""
    if name not in CLASS_SETS:
        raise DataError(
            f"no classification set is named {name!r}; use one of {', '.join(CLASS_SETS)}"
        )
    stage, members = Stage(), open_several(sources)
    split = split or PROTOCOLS[name].split
    names = list_classification(stage, name, members, split, template)
    config = {"format": name, "split": split, "template": template}
    templates = class_set(name).templates
    return _whole(config, stage, members, names=names, templates=templates)


def webdataset(
    sources: Sequence[Path],
    *,
    name: str = "webdataset",
    caption: str = "caption",
    shard_keys: bool = False,
) -> Source:
    """WebDataset shards, such as img2dataset's."""
    stage, paths = Stage(), _files(sources, (".tar",))
    list_webdataset(stage, paths, caption=caption, shard_keys=shard_keys)
    config = {"format": name, "caption": caption, **({"shard_keys": True} if shard_keys else {})}
    inputs = {
        "shards": fingerprint([[path.name, path.stat().st_size] for path in paths]),
        "listed": stage.fingerprint(),
    }
    return Source(config=config, inputs=inputs, stage=stage, members=Shards(paths))


def table(sources: Sequence[Path], columns: Columns, images: Sequence[Path]) -> Source:
    """Tables with named columns: Parquet, JSON lines or CSV."""
    stage = Stage()
    paths = _files(sources, (".parquet", ".jsonl", ".ndjson", ".csv", ".tsv", ".jsonl.gz"))
    members = list_table(stage, paths, columns, _members(images))
    config = {"format": "table", "columns": [columns.image, columns.caption, columns.id]}
    inputs = {
        "tables": fingerprint([[path.name, path.stat().st_size] for path in paths]),
        "listed": stage.fingerprint(),
    }
    return Source(config=config, inputs=inputs, stage=stage, members=members)


def scienceqa(
    source: Path, images: Sequence[Path], *, split: str = "test", with_image: bool = False
) -> Source:
    """ScienceQA: its ``problems.json`` and images, or Parquet with both."""
    stage, members = Stage(), _members(images)
    config = {"format": "scienceqa", "split": split, "with_image": with_image}
    if source.is_dir() and (source / "problems.json").exists():
        members = members or open_several([source])
        source = source / "problems.json"
    if source.name.endswith((".json", ".json.gz")):
        digest = list_scienceqa(stage, source, members, split, with_image=with_image)
    else:
        paths = _of_split(_files([source], (".parquet",)), split)
        members = list_scienceqa_table(stage, paths, split, with_image=with_image)
        digest = stage.fingerprint()
    return Source(config=config, inputs={"problems": digest}, stage=stage, members=members)


def mmmu(source: Path, images: Sequence[Path], *, split: str = "validation") -> Source:
    """MMMU: the Parquet files of its subjects, or JSON with images as files."""
    stage = Stage()
    paths = _of_split(_files([source], (".parquet", ".jsonl", ".json")), split)
    members = list_mmmu(stage, paths, _members(images))
    config = {"format": "mmmu", "split": split}
    return Source(
        config=config, inputs={"problems": stage.fingerprint()}, stage=stage, members=members
    )


def protocol_split(protocol: str | None, datasets: Collection[str]) -> str | None:
    """Return the split that a protocol asks for, None without one.

    Raises:
        DataError: there is no such protocol, or it is one of another data set.
    """
    if protocol is None:
        return None
    found = find_protocol(protocol)
    if found.dataset not in datasets:
        raise DataError(f"{protocol} is a protocol of {found.dataset}: import that data set")
    return found.split


def _whole(config: dict[str, Any], stage: Stage, members: Members, **more: Any) -> Source:
    """Make a source of a folder or archive that holds everything."""
    inputs = {"listed": stage.fingerprint()}
    return Source(config=config, inputs=inputs, stage=stage, members=members, **more)


def _members(images: Sequence[Path]) -> Members | None:
    return open_several(images) if images else None


def _files(sources: Sequence[Path], suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files themselves, and those in folders that have one of the suffixes, sorted."""
    found: list[Path] = []
    for source in sources:
        if source.is_dir():
            inside = [path for path in source.rglob("*") if path.name.endswith(suffixes)]
            found += sorted(inside, key=lambda path: path.as_posix())
        elif source.is_file():
            found.append(source)
        else:
            raise DataError(f"there is no file or folder at {source}")
    if not found:
        raise DataError(f"{sources[0]} holds no file that ends in {' or '.join(suffixes)}")
    return found


def _names_and_sizes(paths: Sequence[Path]) -> str:
    return fingerprint([[path.name, path.stat().st_size] for path in paths])


def _of_split(paths: list[Path], split: str) -> list[Path]:
    """Keep the files that name the split, where any does (as Parquet of the hub does)."""
    own = [path for path in paths if path.name.startswith(split)]
    others = [path for path in paths if path.name.startswith(("dev", "test", "train", "valid"))]
    if not own and others:
        raise DataError(f"none of the {len(paths)} files is of the split {split!r}: name another")
    return own or paths
