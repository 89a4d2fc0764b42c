"""``gmail-align synthesize`` and ``filter``: captions become generated images, the poor ones go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from gmail_align.api.places import open_encoder
from gmail_align.artifacts import load
from gmail_align.cli.options import Device, Folder, Model, Out, Place, Settings
from gmail_align.cli.shared import Shared, command
from gmail_align.encoders.shipped import model_path
from gmail_align.errors import ConfigError
from gmail_align.mirror import Mirror
from gmail_align.synthesis.config import HUB_COPIES, FilterConfig, SynthesisConfig


@command
def synthesize(
    shared: Shared,
    captions: Folder,
    out: Out,
    settings: Settings[SynthesisConfig],
    place: Place,
    model_path: Folder | None = None,
    fast: bool = False,
    mirror: Annotated[str, "URL"] | None = None,
) -> None:
    """Generate images from captions, shard by shard; a stopped run goes on where it was.

    Each visible GPU gets a process. Parts of a SLURM array (--shard-of slurm) share --out. The part
    that ends last finishes it. The same command without --shard-of does that too.
    `gmail-align plan` says what a run costs before it starts.

    Args:
        captions: Captions to generate from.
        model_path: Folder of a diffusers pipeline, in place of --model.
        fast: Use the preset's faster form, which draws other images.
        mirror: Object store that gets each finished shard and, last, the manifest; a run goes on
            from what is there.
    """
    config = generator_config(settings, model_path, fast=fast)
    source = load(captions, "captions")
    engine, part = place.open()
    copy = None if mirror is None else Mirror.at(mirror)
    if shared.dry_run:
        images = source.counts["captions"] * config.images_per_caption
        shared.show_plan("synthesize", out, config, captions=captions, images=images)
        return
    from gmail_align.synthesis.run import synthesize, synthesize_part

    if part is None:
        shared.show_artifact(synthesize(config, source, out, engine, mirror=copy))
    else:
        made = synthesize_part(config, source, out, part, engine, mirror=copy)
        shared.show_part(made, part, out, "images")


@command
def filter_images(
    shared: Shared,
    source: Folder,
    /,
    out: Out,
    config: FilterConfig,
    encoder: Model | None = None,
    photos: list[Folder] | None = None,
    device: Device = "auto",
) -> None:
    """Score generated images and write them again without those that fail, each with a reason.

    OUT/scores.parquet holds the scores of all images. OUT/quarantine.jsonl says why some were left
    out.

    Args:
        source: The generated images.
        encoder: CLIP that computes scores and cosines; tabletop is shipped.
        photos: Photos that no image may copy, such as a test set; may be repeated.
    """
    images = load(source, "images")
    others = [load(folder, "images") for folder in photos or []]
    if shared.dry_run:
        others_of = {"photos": photos or [], "encoder": encoder}
        shared.show_plan("filter", out, config, images=source, **others_of)
        return
    from gmail_align.synthesis.filters import count_reasons, filter_images

    model = None if encoder is None else open_encoder(encoder, device)
    made = filter_images(config, images, others, out, model)
    reasons = count_reasons(made)
    lines = [f"{out}: {made.counts['images']} images kept, {made.counts['quarantined']} left out"]
    lines += [f"  {count} {reason}" for reason, count in reasons.most_common()]
    shared.show({"folder": str(out), "counts": made.counts, "reasons": reasons}, "\n".join(lines))


def generator_config(
    settings: Settings[SynthesisConfig],
    folder: Path | None = None,
    *,
    fast: bool,
    planned: bool = False,
) -> SynthesisConfig:
    """Build the configuration of a generator that was named in one of the possible ways.

    Args:
        settings: What the command line says.
        folder: Folder of a pipeline, in place of ``--model``.
        fast: Whether the preset's faster form is asked for.
        planned: Whether a preset alone will do, whose family then stands for the model, and a
            model must be a folder.

    Raises:
        ConfigError: no generator is named, or two are, or ``fast`` is asked of no preset.
    """
    preset, model = settings.preset, settings.given.get("model")
    name = f"{preset}_fast" if fast else None
    if fast and preset is None:
        raise ConfigError("--fast is a form of a preset: name one with --preset")
    if folder is not None and model is not None:
        raise ConfigError("--model and --model-path both name a generator: leave out one")
    if folder is None and model is None:
        if planned and preset is not None:
            return settings.build(name, {"model": preset.removesuffix("_fast")})
        if planned:
            raise ConfigError("nothing is named to plan: give a recipe, --preset sd2 or --model")
        copies = HUB_COPIES.get((preset or "").removesuffix("_fast"))
        seen = f" (copies of {preset} were seen at {copies}; trust them or not)" if copies else ""
        raise ConfigError(
            "no generator is named: use --model tabletop (shipped), --model-path FOLDER, or "
            f"--model OWNER/NAME of a diffusers pipeline on the Hugging Face hub{seen}"
        )
    path = folder or model_path(str(model), "diffusion")
    if (planned or folder is not None) and not path.expanduser().is_dir():
        raise ConfigError(f"there is no folder {path}: give the folder that holds model_index.json")
    return settings.build(name, {"model": str(path.expanduser() if planned else path)})
