"""``gmail-align export``, ``convert`` and ``convert-clipcap``: weights go out and come in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from gmail_align.artifacts import load
from gmail_align.cli.options import File, Folder, Out
from gmail_align.cli.shared import Shared, command
from gmail_align.convert.config import ConvertConfig
from gmail_align.encoders.shipped import model_path
from gmail_align.export.config import ExportConfig


@command
def export(
    shared: Shared,
    encoder: str,
    /,
    out: Out,
    config: ExportConfig,
    data: list[Folder] | None = None,
    result: list[Folder] | None = None,
) -> None:
    """Write one route of an encoder in a format that works without gmail-align.

    The library of that format then loads it, and its features are compared with the encoder's.

    Args:
        encoder: An aligned encoder, a plain CLIP, or a head of features.
        data: Training images or pairs, for the model card; repeatable.
        result: A result for the model card; repeatable.
    """
    if shared.dry_run:
        shared.show_plan("export", out, config, encoder=encoder)
        return
    from gmail_align.export.run import export

    described = [load(folder) for folder in data or []]
    results = [load(folder, "result") for folder in result or []]
    folder = model_path(encoder, "clip")
    shared.show_artifact(export(config, folder, out, data=described, results=results))


@command
def convert(
    shared: Shared, source: str, /, out: Out, config: ConvertConfig, tokenizer: Path | None = None
) -> None:
    """Write weights as a folder that align takes as its --base, and compare their features.

    Nothing is unpickled. A file that must run code to be read is refused.

    Args:
        source: Weights of OpenAI, open_clip, Long-CLIP or SynCLR (.pt, .safetensors); or a CLIP
            folder to stretch.
        tokenizer: Tokenizer folder, or OpenAI's bpe_simple_vocab_16e6.txt.gz.
    """
    if shared.dry_run:
        shared.show_plan("convert", out, config, source=source, tokenizer=tokenizer)
        return
    from gmail_align.convert.convert import convert

    shared.show_artifact(convert(source, out, config, tokenizer=tokenizer))


@command
def convert_clipcap(
    shared: Shared,
    weights: File,
    /,
    gpt2: Folder,
    out: Out,
    normalise: Annotated[bool, "--normalise/--raw"] | None = None,
    norm: float | None = None,
) -> None:
    """Turn ClipCap's released weights into a captioner; no code of the file runs.

    Args:
        weights: ClipCap's .pt file.
        gpt2: GPT-2's configuration and tokenizer.
        normalise: Features it reads; by default raw for the MLP, unit length for the transformer.
        norm: Scale features to this length, for aligned ones before the MLP.
    """
    if shared.dry_run:
        shared.show_plan("convert-clipcap", out, weights=weights, gpt2=gpt2)
        return
    from gmail_align.captioning.clipcap.convert import convert_clipcap as convert

    shared.show_artifact(convert(weights, gpt2, out, normalise=normalise, norm=norm))
