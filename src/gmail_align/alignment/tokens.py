"""Token ids of texts, made once: what training reads where the text tower moves.

A row is the number of tokens, and then the tokens, padded to the text tower's full length.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy.typing as npt
import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor
from torch.nn.functional import pad

from gmail_align.alignment.config import AlignConfig
from gmail_align.artifacts import Artifact, begin
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.features.rows import RowFile, fill_rows
from gmail_align.features.run import read_texts

TOKENS = "tokens.i32"
_BATCH = 1024


def extract_tokens(captions: Artifact, encoder: GmailEncoder, out: Path) -> Artifact:
    """Tokenize captions, row by row; an artifact of kind ``tokens``.

    Raises:
        ModelError: the encoder has no usable tokenizer.
        ArtifactError: ``out`` was made from something else.
    """
    draft = begin(out, "tokens", {"encoder": encoder.base_fingerprint}, {"captions": captions})
    if draft.complete is not None:
        return draft.complete
    texts = read_texts(captions).lines

    def make(batch: object) -> npt.NDArray[Any]:
        rows: npt.NDArray[Any] = pack(encoder, cast("list[str]", batch)).numpy()
        return rows

    length = _length(encoder)
    fill_rows(
        _file(out, len(texts), length),
        _BATCH,
        lambda rows: texts[rows.start : rows.stop],
        make,
        label="tokens",
        unit="captions",
    )
    return draft.finish({"rows": len(texts)}, length=length)


def read_tokens(artifact: Artifact) -> Int32[Tensor, "n row"]:
    """Open a ``tokens`` artifact, mapped from its file."""
    count, length = artifact.counts["rows"], int(artifact.manifest["notes"]["length"])
    path = str(_file(artifact.folder, count, length).path)
    flat = torch.from_file(path, shared=False, size=count * (1 + length), dtype=torch.int32)
    return flat.reshape(count, 1 + length)


def pack(encoder: GmailEncoder, texts: Sequence[str]) -> Int32[Tensor, "m row"]:
    """Return one row a text."""
    ids, mask = encoder.tokenize(texts)
    whole = torch.full((len(ids),), ids.shape[1])
    counts = whole if encoder.backbone.full_length else mask.sum(dim=1)
    padded = pad(ids, (0, _length(encoder) - ids.shape[1]), value=int(ids[0, -1]))
    return torch.cat([counts[:, None], padded], dim=1).to(torch.int32)


def unpack(rows: Int32[Tensor, "m row"]) -> tuple[Int[Tensor, "m t"], Int[Tensor, "m t"]]:
    """Return ids and attention mask, no longer than the longest text."""
    counts = rows[:, 0].long()
    longest = int(counts.max())
    mask = torch.arange(longest, device=rows.device)[None] < counts[:, None]
    return rows[:, 1 : 1 + longest].long(), mask.long()


def embed_tokens(
    encoder: GmailEncoder, rows: Int32[Tensor, "m row"], config: AlignConfig
) -> Float[Tensor, "m d"]:
    """Return adapted text features in fp32; the tower computes in the configured precision."""
    ids, mask = unpack(rows)
    half = config.precision == "bfloat16"
    with torch.autocast(rows.device.type, torch.bfloat16, enabled=half):
        return encoder.embed_text_ids(ids, mask, Route.GENERATED).float()


def _length(encoder: GmailEncoder) -> int:
    return encoder.backbone.text_length


def _file(folder: Path, count: int, length: int) -> RowFile:
    return RowFile(folder / TOKENS, count, 4 * (1 + length))
