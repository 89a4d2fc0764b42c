"""Imports: what a format lists becomes artifacts of images, captions, classes and questions."""

from __future__ import annotations

import json
import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

from gmail_align.artifacts import Artifact, atomic_file, begin, read_jsonl, write_json, write_jsonl
from gmail_align.data.captions import Caption, write_captions
from gmail_align.data.classes import fill
from gmail_align.data.images import (
    QUARANTINE,
    Quarantined,
    Sample,
    admit,
    check_quarantine,
    finish_images,
    read_shard,
    shard_name,
    write_shard,
)
from gmail_align.data.protocols import checked_name, find_protocol
from gmail_align.data.questions import QUESTIONS, Question
from gmail_align.errors import DataError
from gmail_align.importing.formats.coco import list_coco
from gmail_align.importing.members import Members, open_members
from gmail_align.importing.staging import Listed, Stage
from gmail_align.progress import progress

LABELS, CLASSES = "labels.json", "classes.json"

_WINDOW: Final = 32  # images that are read ahead of the one that is written


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a format found.

    ``config`` and ``inputs`` become part of every manifest: what was asked for, and the hashes of
    the files that say what there is. Without ``members`` there are captions and no images.
    ``names`` are the classes' (key -> name) and ``templates`` their prompts. ``origin`` is kept
    with every image.
    """

    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    stage: Stage
    members: Members | None = None
    names: Mapping[str, str] | None = None
    templates: Sequence[str] = ()
    origin: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How any source is written.

    ``limit_quarantine`` is the largest share of images, or captions, that may be left out;
    ``convert`` takes images that need a conversion (see :func:`gmail_align.data.images.admit`);
    ``protocol`` names the evaluation whose counts the result must have, ``subset`` allows less.
    """

    limit_quarantine: float = 0.01
    shard_size: int = 1000
    convert: bool = False
    protocol: str | None = None
    subset: bool = False


def import_coco(
    annotations: Path,
    images: Path,
    out: Path,
    *,
    split_name: str,
    limit_quarantine: float = 0.01,
    shard_size: int = 1000,
) -> tuple[Artifact, Artifact]:
    """Import COCO captions and their images (COCO 2014, 2017, or any json of that format).

    Images are ordered by id, captions by image id and then annotation id. An image that does not
    decode is left out and listed in ``quarantine.jsonl``; its captions stay.

    Args:
        annotations: COCO's ``captions_*.json``.
        images: Folder, zip or tar with the files that the json names.
        out: Output folder; the artifacts are ``out/captions`` and ``out/images``.
        split_name: Name of the split (``"val2017"``), kept in both manifests.
        limit_quarantine: Largest share of images, and of captions, that may be left out.
        shard_size: Images a shard.

    Returns:
        The captions and the images.

    Raises:
        DataError: a file is missing, malformed or of another kind, or too much is broken.
        ArtifactError: the output folders belong to other inputs.
    """
    stage, members = Stage(), open_members(images)
    digest = list_coco(stage, annotations, members)
    source = Source(
        config={"format": "coco", "split": split_name},
        inputs={"annotations": digest},
        stage=stage,
        members=members,
    )
    options = Options(limit_quarantine=limit_quarantine, shard_size=shard_size)
    made = write_import(source, out, options)
    return made["captions"], made["images"]


def write_import(source: Source, out: Path, options: Options) -> dict[str, Artifact]:
    """Write what a source holds: ``out/captions``, ``out/images``, and so on, each where it is.

    Captions of images that were left out stay, so that images can be generated from them; under a
    protocol they go, so that its counts are those of what can be evaluated.

    Raises:
        DataError: a share above the limit cannot be used, or the counts are not the protocol's.
        ArtifactError: the output folders belong to other inputs.
    """
    stage, members, files = source.stage, source.members, ""
    config = {
        **source.config,
        **({"protocol": options.protocol} if options.protocol else {}),
        **({"subset": True} if options.subset else {}),
    }
    if members is not None:
        if members.serial:
            stage.sort_by_place(members)
        files = stage.drop_missing(members)
        _refuse_nothing(stage)
    if options.protocol:
        _apply_protocol(source, options)
    made: dict[str, Artifact] = {}
    left_out: set[str] = set()
    if members is not None and stage.count("images"):
        made["images"] = _write_images(source, config, files, out / "images", options)
        left_out = _left_out(stage, made["images"])
    dropped = left_out if options.protocol else set()
    if stage.count("captions") or stage.left_out_count("captions"):
        made["captions"] = _write_captions(source, config, out / "captions", options, dropped)
    if source.names is not None:
        made["classes"] = _write_classes(source, config, out / "classes", left_out)
    if stage.count("questions") or stage.left_out_count("questions"):
        made["questions"] = _write_questions(source, config, out / "questions", options, left_out)
    if not made:
        raise DataError("the source lists neither images nor captions: there is nothing to import")
    return made


def _left_out(stage: Stage, images: Artifact) -> set[str]:
    """Return the images that are not in the store; not those of which only a copy was left out."""
    broken = Counter(row["id"] for row in read_jsonl(images.path(QUARANTINE)))
    broken.subtract(fault.id for fault in stage.left_out("images"))
    return {name for name, times in broken.items() if times > 0} | stage.gone()


def _refuse_nothing(stage: Stage) -> None:
    faults = stage.left_out_count("images")
    if faults and not stage.count("images"):
        first = next(stage.left_out("images"))
        raise DataError(
            f"none of the {faults} listed images can be used (the first is {first.id}: "
            f"{first.reason}): give the folder, zip or tar that holds them"
        )


def _apply_protocol(source: Source, options: Options) -> None:
    """Keep the captions that a protocol uses, and check the counts before anything is written."""
    stage, protocol = source.stage, find_protocol(options.protocol or "")
    if protocol.captions_each:
        stage.keep_captions(protocol.captions_each)
    if source.members is not None and "captions" in protocol.counts:
        stage.drop_strangers()
    counts = {kind: stage.count(kind) for kind in ("captions", "images", "questions")}
    checked_name(protocol, counts | _class_count(source), subset=options.subset)


def _write_images(
    source: Source, config: Mapping[str, Any], files: str, out: Path, options: Options
) -> Artifact:
    stage = source.stage
    total, missing = stage.count("images"), stage.left_out_count("images")
    draft = begin(
        out,
        "images",
        {
            **config,
            "shard_size": options.shard_size,
            **({"convert": True} if options.convert else {}),
        },
        {**source.inputs, "files": files},
    )
    if draft.complete:
        return draft.complete
    left_out: list[Quarantined] = []
    listed = stage.images()
    with progress("import", total, "images") as bar:
        for index, chunk in enumerate(_chunks(listed, options.shard_size)):
            path = draft.path(shard_name(index))
            done = read_shard(path)
            faults = list(stage.left_out("images")) if index == 0 else []
            left_out += done[1] if done else _write_shard(path, chunk, source, options, faults)
            bar.advance(len(chunk))
            check_quarantine(left_out, total + missing, options.limit_quarantine)
    notes: dict[str, Any] = {}
    counts = {"images": total + missing - len(left_out), **_class_count(source)}
    if options.protocol and "captions" not in find_protocol(options.protocol).counts:
        notes = _protocol_note(options, counts | {"questions": stage.count("questions")})
    return finish_images(draft, limit_quarantine=options.limit_quarantine, **notes)


def _write_shard(
    path: Path,
    images: Sequence[Listed],
    source: Source,
    options: Options,
    faults: Sequence[Quarantined],
) -> list[Quarantined]:
    """Write one shard while it is read, with ``faults`` among what was left out."""
    left_out = list(faults)

    def samples() -> Iterator[Sample]:
        for read in _read_ahead(images, source, options.convert):
            if isinstance(read, Quarantined):
                left_out.append(read)
            else:
                yield read

    write_shard(path, samples(), left_out)
    return left_out


def _read_ahead(
    images: Sequence[Listed], source: Source, convert: bool
) -> Iterator[Sample | Quarantined]:
    """Yield the images in order; some are read and decoded ahead in threads."""
    members = source.members
    assert members is not None

    def load(image: Listed, data: bytes | DataError | None) -> Sample | Quarantined:
        try:
            if isinstance(data, DataError):
                raise data
            found = members.read(image.place) if data is None else data
            record, kept = admit(image.image_id, found, name=image.place, convert=convert)
        except DataError as error:
            return Quarantined(image.image_id, str(error))
        return replace(record, prompt=image.prompt, **dict(source.origin)), kept  # type: ignore[arg-type]

    waiting: deque[Future[Sample | Quarantined]] = deque()
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for image in images:
            data = _read_now(members, image) if members.serial else None
            waiting.append(pool.submit(load, image, data))
            if len(waiting) == _WINDOW:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _read_now(members: Members, image: Listed) -> bytes | DataError:
    try:
        return members.read(image.place)
    except DataError as error:
        return error


def _write_captions(
    source: Source, config: Mapping[str, Any], out: Path, options: Options, dropped: set[str]
) -> Artifact:
    stage = source.stage
    draft = begin(out, "captions", config, source.inputs)
    if draft.complete:
        return draft.complete
    faults = list(stage.left_out("captions"))
    total = stage.count("captions") + len(faults)
    check_quarantine(faults, total, options.limit_quarantine, "captions")
    images, last = 0, ""

    def rows() -> Iterator[Caption]:
        nonlocal images, last
        for caption in stage.captions():
            if caption.image_id not in dropped:
                images += caption.image_id != last  # an image's captions come together
                last = caption.image_id
                yield caption

    count = write_captions(draft, rows())
    if faults:
        write_jsonl(draft.path(QUARANTINE), [asdict(fault) for fault in faults])
    counts = {"captions": count, "images": images}
    notes: dict[str, Any] = {}
    if options.protocol and "captions" in find_protocol(options.protocol).counts:
        notes = _protocol_note(options, counts)
    left_out = {"quarantined": len(faults)} if faults else {}
    return draft.finish(counts | left_out, **notes)


def _write_classes(
    source: Source, config: Mapping[str, Any], out: Path, left_out: set[str]
) -> Artifact:
    """Write ``labels.json`` (image id -> class) and ``classes.json`` (class -> prompts)."""
    names, templates = source.names or {}, list(source.templates)
    draft = begin(
        out, "classes", {**config, "names": dict(names), "templates": templates}, source.inputs
    )
    if draft.complete:
        return draft.complete
    write_json(draft.path(CLASSES), fill(names, tuple(templates)))
    count = 0
    with atomic_file(draft.path(LABELS)) as file:
        for image in source.stage.images():
            if image.image_id not in left_out:
                row = f"{json.dumps(image.image_id)}: {json.dumps(image.label, ensure_ascii=False)}"
                file.write(("," if count else "{").encode() + f"\n{row}".encode())
                count += 1
        file.write(b"\n}\n" if count else b"{}\n")
    return draft.finish({"images": count, "classes": len(names)})


def _write_questions(
    source: Source, config: Mapping[str, Any], out: Path, options: Options, left_out: set[str]
) -> Artifact:
    """Write ``questions.jsonl``; a question goes when one of its images was left out."""
    draft = begin(out, "questions", config, source.inputs)
    if draft.complete:
        return draft.complete
    faults = list(source.stage.left_out("questions"))
    count = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal count
        for row in source.stage.questions():
            question = Question.from_row(row)
            gone = [name for name in question.image_ids if name in left_out]
            if gone:
                faults.append(Quarantined(question.question_id, f"image {gone[0]} was left out"))
            else:
                count += 1
                yield asdict(question)

    write_jsonl(draft.path(QUESTIONS), rows())
    check_quarantine(faults, count + len(faults), options.limit_quarantine, "questions")
    if faults:
        write_jsonl(draft.path(QUARANTINE), [asdict(fault) for fault in faults])
    counts = {"questions": count}
    notes = _protocol_note(options, counts) if options.protocol else {}
    return draft.finish({**counts, **({"quarantined": len(faults)} if faults else {})}, **notes)


def _protocol_note(options: Options, counts: Mapping[str, int]) -> dict[str, str]:
    """Return the name that numbers on this set may carry, as a note of the manifest."""
    assert options.protocol is not None
    protocol = find_protocol(options.protocol)
    return {"protocol": checked_name(protocol, counts, subset=options.subset)}


def _class_count(source: Source) -> dict[str, int]:
    return {} if source.names is None else {"classes": len(source.names)}


def _chunks(images: Iterator[Listed], size: int) -> Iterator[list[Listed]]:
    while chunk := list(islice(images, size)):
        yield chunk
