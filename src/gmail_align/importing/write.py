"""Writing: what an importer lists becomes artifacts of images, captions, classes and questions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from gmail_align.artifacts import Artifact, atomic_file, begin, read_jsonl, write_json, write_jsonl
from gmail_align.data.captions import Caption, write_captions
from gmail_align.data.classes import fill
from gmail_align.data.images import (
    QUARANTINE,
    Changed,
    Quarantined,
    Sample,
    check_quarantine,
    count_changes,
    finish_images,
    read_shard,
    shard_name,
    write_shard,
)
from gmail_align.data.protocols import checked_name, find_protocol
from gmail_align.data.questions import QUESTIONS, Question
from gmail_align.errors import DataError
from gmail_align.importing.ahead import read_ahead
from gmail_align.importing.options import ImportOptions
from gmail_align.importing.source import Source
from gmail_align.importing.staging import StagedImage, Staging
from gmail_align.progress import progress, say

LABELS, CLASSES = "labels.json", "classes.json"


def write_import(source: Source, out: Path, options: ImportOptions) -> dict[str, Artifact]:
    """Write what a source holds: ``out/captions``, ``out/images``, and so on, each where it is.

    Captions of images that were left out stay, so that images can be generated from them; under a
    protocol they go, so that its counts are those of what can be evaluated.

    Raises:
        DataError: a share above the limit cannot be used, or the counts are not the protocol's.
        ArtifactError: the output folders belong to other inputs.
    """
    staging, members, files = source.staging, source.members, ""
    config = {
        **source.config,
        **({"protocol": options.protocol} if options.protocol else {}),
        **({"subset": True} if options.subset else {}),
    }
    if members is not None:
        if members.serial:
            staging.sort_by_place(members)
        files = staging.drop_missing(members)
        _refuse_nothing(staging)
    if options.protocol:
        _apply_protocol(source, options)
    made: dict[str, Artifact] = {}
    left_out: set[str] = set()
    if members is not None and staging.count("images"):
        made["images"] = _write_images(source, config, files, out / "images", options)
        left_out = _left_out(staging, made["images"])
    dropped = left_out if options.protocol else set()
    if staging.count("captions") or staging.left_out_count("captions"):
        made["captions"] = _write_captions(source, config, out / "captions", options, dropped)
    if source.names is not None:
        made["classes"] = _write_classes(source, config, out / "classes", left_out)
    if staging.count("questions") or staging.left_out_count("questions"):
        made["questions"] = _write_questions(source, config, out / "questions", options, left_out)
    if not made:
        raise DataError("the source lists neither images nor captions: there is nothing to import")
    return made


def _left_out(staging: Staging, images: Artifact) -> set[str]:
    """Return the images that are not in the store; not those of which only a copy was left out."""
    broken = Counter(row["id"] for row in read_jsonl(images.path(QUARANTINE)))
    broken.subtract(fault.id for fault in staging.left_out("images"))
    return {name for name, times in broken.items() if times > 0} | staging.missing_images()


def _refuse_nothing(staging: Staging) -> None:
    faults = staging.left_out_count("images")
    if faults and not staging.count("images"):
        first = next(staging.left_out("images"))
        raise DataError(
            f"none of the {faults} listed images can be used (the first is {first.id}: "
            f"{first.reason}): give the folder, zip or tar that holds them"
        )


def _apply_protocol(source: Source, options: ImportOptions) -> None:
    """Keep the captions that a protocol uses, and check the counts before anything is written."""
    staging, protocol = source.staging, find_protocol(options.protocol or "")
    if protocol.captions_each:
        staging.keep_captions(protocol.captions_each)
    if source.members is not None and "captions" in protocol.counts:
        staging.drop_captions_without_image()
    counts = {kind: staging.count(kind) for kind in ("captions", "images", "questions")}
    checked_name(protocol, counts | _class_count(source), subset=options.subset)


def _write_images(
    source: Source, config: Mapping[str, Any], files: str, out: Path, options: ImportOptions
) -> Artifact:
    staging = source.staging
    total, missing = staging.count("images"), staging.left_out_count("images")
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
    listed = staging.images()
    with progress("import", total, "images") as bar:
        for index, chunk in enumerate(_chunks(listed, options.shard_size)):
            path = draft.path(shard_name(index))
            done = read_shard(path)
            faults = list(staging.left_out("images")) if index == 0 else []
            left_out += done[1] if done else _write_shard(path, chunk, source, options, faults)
            bar.advance(len(chunk))
            check_quarantine(left_out, total + missing, options.limit_quarantine)
    notes: dict[str, Any] = _passed_over(staging)
    if changes := count_changes(sorted(draft.path("shards").glob("*.tar"))):
        say("changed images: " + ", ".join(f"{n} {change}" for change, n in changes.items()))
        notes["changed"] = changes
    counts = {"images": total + missing - len(left_out), **_class_count(source)}
    if options.protocol and "captions" not in find_protocol(options.protocol).counts:
        notes |= _protocol_note(options, counts | {"questions": staging.count("questions")})
    return finish_images(draft, limit_quarantine=options.limit_quarantine, **notes)


def _passed_over(staging: Staging) -> dict[str, Any]:
    """Say how many files are no images by their suffix, and return that as a note."""
    if not staging.passed_over:
        return {}
    kinds = dict(sorted(staging.passed_over.items()))
    listed = ", ".join(f"{count} .{kind}" if kind else f"{count}" for kind, count in kinds.items())
    say(f"passed over files that are no images: {listed}")
    return {"passed_over": kinds}


def _write_shard(
    path: Path,
    images: Sequence[StagedImage],
    source: Source,
    options: ImportOptions,
    faults: Sequence[Quarantined],
) -> list[Quarantined]:
    """Write one shard while it is read, with ``faults`` among what was left out."""
    left_out, changed = list(faults), list[Changed]()

    def samples() -> Iterator[Sample]:
        for read, change in read_ahead(images, source, bool(options.convert)):
            if isinstance(read, Quarantined):
                left_out.append(read)
            else:
                if change:
                    changed.append(Changed(read[0].id, change))
                yield read

    write_shard(path, samples(), left_out, changed)
    return left_out


def _write_captions(
    source: Source, config: Mapping[str, Any], out: Path, options: ImportOptions, dropped: set[str]
) -> Artifact:
    staging = source.staging
    draft = begin(out, "captions", config, source.inputs)
    if draft.complete:
        return draft.complete
    faults = list(staging.left_out("captions"))
    total = staging.count("captions") + len(faults)
    check_quarantine(faults, total, options.limit_quarantine, "captions")
    images, last = 0, ""

    def rows() -> Iterator[Caption]:
        nonlocal images, last
        for caption in staging.captions():
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
        for image in source.staging.images():
            if image.image_id not in left_out:
                row = f"{json.dumps(image.image_id)}: {json.dumps(image.label, ensure_ascii=False)}"
                file.write(("," if count else "{").encode() + f"\n{row}".encode())
                count += 1
        file.write(b"\n}\n" if count else b"{}\n")
    return draft.finish({"images": count, "classes": len(names)})


def _write_questions(
    source: Source, config: Mapping[str, Any], out: Path, options: ImportOptions, left_out: set[str]
) -> Artifact:
    """Write ``questions.jsonl``; a question goes when one of its images was left out."""
    draft = begin(out, "questions", config, source.inputs)
    if draft.complete:
        return draft.complete
    faults = list(source.staging.left_out("questions"))
    count = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal count
        for row in source.staging.questions():
            question = Question.from_row(row)
            missing = [name for name in question.image_ids if name in left_out]
            if missing:
                reason = f"image {missing[0]} was left out"
                faults.append(Quarantined(question.question_id, reason))
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


def _protocol_note(options: ImportOptions, counts: Mapping[str, int]) -> dict[str, str]:
    """Return the name that numbers on this set may carry, as a note of the manifest."""
    assert options.protocol is not None
    protocol = find_protocol(options.protocol)
    return {"protocol": checked_name(protocol, counts, subset=options.subset)}


def _class_count(source: Source) -> dict[str, int]:
    return {} if source.names is None else {"classes": len(source.names)}


def _chunks(images: Iterator[StagedImage], size: int) -> Iterator[list[StagedImage]]:
    while chunk := list(islice(images, size)):
        yield chunk
