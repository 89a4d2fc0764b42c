"""Croissant metadata of generated images: for machines, what the dataset card is for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from gmail_align.artifacts import sha256_file
from gmail_align.data.image_index import INDEX, INDEX_SCHEMA
from gmail_align.data.images import ImageRecord
from gmail_align.synthesis.config import SynthesisConfig

CROISSANT: Final = "croissant.json"
_TERMS: Final = (
    *("citeAs", "column", "equivalentProperty", "extract", "field", "fileObject", "fileProperty"),
    *("fileSet", "format", "includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField"),
    *("path", "recordSet", "references", "regex", "repeated", "replace", "samplingRate"),
    *("separator", "source", "subField", "transform"),
)
_CONTEXT: Final[dict[str, Any]] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{term: f"cr:{term}" for term in _TERMS},
}
"""The terms of Croissant 1.0, which every file repeats."""


def croissant(
    config: SynthesisConfig, index: Path, images: int, first: ImageRecord | None
) -> dict[str, Any]:
    """Describe a finished set of shards by Croissant 1.0; the same set gives the same values.

    Args:
        config: Settings of the synthesis.
        index: The finished ``index.parquet``.
        images: How many images there are.
        first: The first image; None where there is none.
    """
    maker = "" if first is None else f" by {first.generator}, revision {first.revision}"
    suffix = "png" if config.image_format == "png" else "jpeg"
    mime = f"image/{suffix}"
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": "generated-images",
        "description": f"{images} images, each generated from a caption{maker}; none is a photo.",
        "keywords": ["synthetic", "text-to-image", "webdataset"],
        "rai:dataCollection": "A diffusion model generated every image from its prompt.",
        "distribution": [
            {
                **_named("cr:FileObject", INDEX),
                "contentUrl": INDEX,
                "encodingFormat": "application/x-parquet",
                "sha256": sha256_file(index),
            },
            {
                **_named("cr:FileSet", "shards"),
                "encodingFormat": "application/x-tar",
                "includes": "shards/*.tar",
            },
            {
                **_named("cr:FileSet", "image-files"),
                "containedIn": {"@id": "shards"},
                "encodingFormat": mime,
                "includes": "*.png" if suffix == "png" else "*.jpg",
            },
        ],
        "recordSet": [_rows()],
    }


def _named(kind: str, name: str) -> dict[str, str]:
    return {"@type": kind, "@id": name, "name": name}


def _rows() -> dict[str, Any]:
    """Return the rows of the index: what made each image, and where it lies."""
    fields = [
        {
            **_named("cr:Field", f"images/{column.name}"),
            "dataType": _type_of(column.type),
            **({"repeated": True} if pa.types.is_list(column.type) else {}),
            "source": {"fileObject": {"@id": INDEX}, "extract": {"column": column.name}},
        }
        for column in INDEX_SCHEMA
    ]
    return {**_named("cr:RecordSet", "images"), "key": {"@id": "images/id"}, "field": fields}


def _type_of(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        kind = kind.value_type
    known = {
        "sc:Integer": pa.types.is_integer,
        "sc:Float": pa.types.is_floating,
        "sc:Boolean": pa.types.is_boolean,
    }
    return next((name for name, matches in known.items() if matches(kind)), "sc:Text")
