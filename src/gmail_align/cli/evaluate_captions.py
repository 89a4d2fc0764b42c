"""``gmail-align evaluate captions``: predicted captions against human ones."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gmail_align.artifacts import load
from gmail_align.cli.on_files import OutOrNot, keep_answer, show_answer
from gmail_align.cli.options import Protocol, Seed
from gmail_align.cli.shared import Shared, command
from gmail_align.errors import ConfigError
from gmail_align.progress import say

if TYPE_CHECKING:
    from gmail_align.evaluation.clipscore import ClipEncoder, ClipFiles
    from gmail_align.metrics.captions import WordVectors

Metrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metrics", "--metric", help="Only these, as in BLEU4,CIDEr; may be repeated. [all]"
    ),
]
Vectors = Annotated[
    str | None,
    typer.Option(
        "--word-vectors",
        metavar="FILE",
        help="Word vectors for WMD: word2vec (.bin or text) or GloVe; or the word 'references' to "
        "train them on the human captions, as --metrics WMD does without.",
    ),
]
RawVectors = Annotated[
    bool, typer.Option("--raw-vectors", help="WMD: leave word vectors at the length they have.")
]


ClipImages = Annotated[
    Path | None,
    typer.Option(metavar="F.npy", help="CLIPScore: features of the images, a row a prediction."),
]
ClipCaptions = Annotated[
    Path | None,
    typer.Option(metavar="F.npy", help="CLIPScore: of 'A photo depicts CAPTION', in their order."),
]
ClipReferences = Annotated[
    Path | None,
    typer.Option(metavar="F.npy", help="RefCLIPScore: the same of the references, in their order."),
]


@command
def captions(
    shared: Shared,
    references: Annotated[
        Path,
        typer.Option(
            metavar="PATH", help="Human captions: COCO's annotations, or a folder of captions."
        ),
    ],
    folders: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=]DIR", help="Predictions; several are compared in pairs."),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Or a file: COCO results, or JSON lines."),
    ] = None,
    out: OutOrNot = None,
    protocol: Protocol = "captions",
    metrics: Metrics = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="A file: score only the images that it predicts.")
    ] = False,
    vectors: Vectors = None,
    raw_vectors: RawVectors = False,
    clip_images: ClipImages = None,
    clip_captions: ClipCaptions = None,
    clip_references: ClipReferences = None,
    encoder: Annotated[
        str | None, typer.Option(metavar="MODEL", help="CLIPScore by this encoder, on --images.")
    ] = None,
    images: Annotated[Path | None, typer.Option(metavar="DIR", help="The images.")] = None,
    seed: Seed = 0,
) -> None:
    """Score captions: BLEU, METEOR, ROUGE-L, CIDEr, SPICE and WMD, each with its interval.

    Give --predictions FILE, of which every image of --references must have one, or folders of
    predictions with --out; then images are those of the first, and every one needs a human caption.
    """
    shared.refuse_configuration()
    if predictions is not None and metrics and folders:
        metrics, folders = [*metrics, *folders], None  # --metrics BLEU4 CIDEr
    clip = clip_source(clip_images, clip_captions, clip_references, encoder, images)
    if bool(folders) == (predictions is not None):
        raise ConfigError("give predictions once: --predictions FILE, or [NAME=]DIR and --out")
    chosen = chosen_metrics(metrics)
    how = {"protocol": protocol, "metrics": chosen, "seed": seed}
    if predictions is not None:
        if vectors is None and "WMD" in (chosen or ()):
            say("WMD: no --word-vectors, so they are trained on the human captions")
            vectors = "references"
        how |= {"partial": partial, "vectors": vectors, "raw_vectors": raw_vectors}
        _of_files(shared, (predictions, references), out, how, clip)
    elif partial or vectors or raw_vectors or clip:
        raise ConfigError("only --predictions go with --partial, --word-vectors and CLIPScore")
    elif out is None:
        raise ConfigError("--out is missing: folders of predictions make a folder of results")
    else:
        _of_artifacts(shared, named_folders(folders or []), references, out, how)


def _of_files(
    shared: Shared,
    paths: tuple[Path, Path],
    out: Path | None,
    how: Mapping[str, Any],
    clip: ClipFiles | ClipEncoder | None,
) -> None:
    """Score one file of predictions."""
    if shared.dry_run:
        plan = {"predictions": paths[0], "references": paths[1], **how}
        shared.show_plan("evaluate captions", out or Path("standard output"), **plan)
        return
    from gmail_align.evaluation.caption_files import CaptionOptions, captions_of_files
    from gmail_align.metrics.captions import METRICS

    options = CaptionOptions(
        metrics=how["metrics"] or METRICS,
        protocol=how["protocol"],
        partial=how["partial"],
        word_vectors=word_vectors(how["vectors"], raw=how["raw_vectors"]),
        seed=how["seed"],
    )
    found, items = captions_of_files(*paths, options, clip)
    keep_answer(found, items, out)
    show_answer(shared, found, None)


def _of_artifacts(
    shared: Shared,
    folders: Mapping[str, Path],
    references: Path,
    out: Path,
    how: Mapping[str, Any],
) -> None:
    """Score artifacts of predictions side by side."""
    from gmail_align.artifacts import read_jsonl
    from gmail_align.data.captions import read_captions

    systems = {name: load(folder, "predictions") for name, folder in folders.items()}
    first = next(iter(systems.values()))
    images = {row["image_id"] for row in read_jsonl(first.path("predictions.jsonl"))}
    human: dict[str, list[str]] = {}
    for caption in read_captions(load(references, "captions")):
        if caption.image_id in images:
            human.setdefault(caption.image_id, []).append(caption.text)
    if shared.dry_run:
        shared.show_plan("evaluate captions", out, systems=dict(folders), images=len(images))
        return
    from gmail_align.evaluation.captions import evaluate_captions
    from gmail_align.metrics.captions import METRICS

    result = evaluate_captions(
        systems,
        human,
        out,
        protocol=how["protocol"],
        paired=[(later, earlier) for earlier, later in pairwise(systems)],
        metrics=how["metrics"] or METRICS,
        seed=how["seed"],
    )
    shared.show_artifact(result)


def chosen_metrics(given: list[str] | None) -> list[str] | None:
    """Return the metrics named by ``--metrics``, in any case, once each; None for all."""
    if not given:
        return None
    from gmail_align.metrics.captions import METRICS

    known = {name.lower(): name for name in METRICS}
    names = [name.strip() for text in given for name in text.split(",")]
    names = [known.get(name.lower(), name) for name in names if name]
    return list(dict.fromkeys(names)) or None


def word_vectors(given: str | None, *, raw: bool = False) -> WordVectors | None:
    """Return what ``--word-vectors`` names; None without it.

    Raises:
        ConfigError: ``--raw-vectors`` is given alone.
        DataError: the file cannot be read as word vectors.
    """
    if given is None:
        if raw:
            raise ConfigError("--raw-vectors needs --word-vectors: say which")
        return None
    from gmail_align.metrics.captions import WordVectors
    from gmail_align.metrics.wmd import load_word_vectors

    if given == "references":
        return WordVectors(None, normalise=not raw)
    return WordVectors(load_word_vectors(Path(given)), normalise=not raw, source=given)


def clip_source(
    images: Path | None,
    captions: Path | None,
    references: Path | None,
    encoder: str | None,
    folder: Path | None,
) -> ClipFiles | ClipEncoder | None:
    """Return where CLIPScore's features come from; None where it is not asked for.

    Raises:
        ConfigError: what is given is not enough, or too much.
    """
    by_file, by_encoder = (images, captions, references) != (None,) * 3, (encoder, folder)
    if by_encoder != (None, None):
        if by_file or encoder is None or folder is None:
            raise ConfigError("CLIPScore takes --encoder and --images, or --clip-... features")
        from gmail_align.cli.shared import model_of
        from gmail_align.evaluation.clipscore import ClipEncoder

        return ClipEncoder(str(model_of(encoder, "clip")), folder)
    if not by_file:
        return None
    if images is None or captions is None:
        raise ConfigError("CLIPScore needs both --clip-images and --clip-captions")
    from gmail_align.evaluation.clipscore import ClipFiles

    return ClipFiles(images, captions, references)


def named_folders(texts: list[str]) -> dict[str, Path]:
    """Read ``NAME=DIR`` or ``DIR``, whose name is the folder's.

    Raises:
        ConfigError: two have one name.
    """
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        path = Path(folder if equals else text)
        key = name if equals else path.resolve().name
        if key in found:
            raise ConfigError(f"two predictions are named {key!r}: name them, as in a={path}")
        found[key] = path
    return found
