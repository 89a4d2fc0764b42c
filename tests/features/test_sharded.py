from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from gmail_align.artifacts import load
from gmail_align.cli.main import app
from gmail_align.encoders.config import LoraSettings
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.engine import Engine
from gmail_align.errors import ModelError
from gmail_align.features import sharded
from gmail_align.features.rows import RowFile
from gmail_align.features.run import extract_images, extract_texts
from gmail_align.features.sharded import Extraction, extract_on
from gmail_align.features.store import open_features
from worlds.encoders import disturb


def test_worker_processes_give_the_same_artifact(
    clip_folder: Path, world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = GmailEncoder.from_pretrained(clip_folder)
    whole = extract_images(world.real, encoder, Route.FROZEN, tmp_path / "whole", batch_size=2)
    monkeypatch.setattr(sharded, "_BATCHES", 1)
    how = Extraction(clip_folder, Route.FROZEN, batch_size=2, device="cpu")
    here = extract_on(Engine(workers=1), world.real, how, tmp_path / "here")
    assert here is not None
    assert here.manifest["files"] == whole.manifest["files"]
    assert here.fingerprint == whole.fingerprint
    assert not (tmp_path / "here" / "rows").exists()
    words = ["extract", str(world.real.folder), "--encoder", str(clip_folder), "--route", "frozen"]
    more = ["--batch-size", "2", "--workers", "2", "--out", str(tmp_path / "spread")]
    result = CliRunner().invoke(app, [*words, *more, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert load(tmp_path / "spread").fingerprint == whole.fingerprint


def test_captions_in_parts_give_the_same_artifact(
    clip_folder: Path, world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharded, "_BATCHES", 1)
    encoder = GmailEncoder.from_pretrained(clip_folder)
    whole = extract_texts(
        world.captions, encoder, tmp_path / "whole", batch_size=2, route=Route.REAL
    )
    out = tmp_path / "out"
    words = ["extract", str(world.captions.folder), "--encoder", str(clip_folder), "--json"]
    words += ["--batch-size", "2", "--out", str(out), "--device", "cpu", "--shard-of"]
    first = CliRunner().invoke(app, [*words, "2/2"])
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout) == {"folder": str(out), "part": "2/2", "complete": False}
    assert not (out / "manifest.json").exists()
    second = CliRunner().invoke(app, [*words, "1/2"])
    assert json.loads(second.stdout)["fingerprint"] == whole.fingerprint
    assert load(out).manifest["files"] == whole.manifest["files"]
    assert CliRunner().invoke(app, [*words, "2/2"]).stdout == second.stdout


def test_captions_are_extracted_by_the_route_of_their_images(
    clip_folder: Path, world: Any, tmp_path: Path
) -> None:
    """Where the text tower is adapted, frozen texts belong to frozen images."""
    encoder = disturb(GmailEncoder.from_clip(clip_folder, LoraSettings(towers="both")))
    encoder.save(tmp_path / "encoder")
    words = ["extract", str(world.captions.folder), "--encoder", str(tmp_path / "encoder")]
    for way, workers in ((Route.REAL, "2"), (Route.FROZEN, "1")):
        expected = extract_texts(world.captions, encoder, tmp_path / way, route=way)
        out = tmp_path / f"{way}-{workers}"
        more = ["--route", way, "--workers", workers, "--device", "cpu", "--out", str(out)]
        result = CliRunner().invoke(app, [*words, *more])
        assert result.exit_code == 0, result.output
        assert load(out).fingerprint == expected.fingerprint
    plain = GmailEncoder.from_pretrained(clip_folder)
    of_plain = extract_texts(world.captions, plain, tmp_path / "plain", route=Route.FROZEN)
    rows = [open_features(one).array for one in (of_plain, load(tmp_path / "frozen"))]
    assert torch.equal(*rows)
    assert not torch.equal(rows[0], open_features(tmp_path / "real").array)


def test_a_killed_extraction_goes_on_with_the_shard_that_is_missing(
    clip_folder: Path, world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharded, "_BATCHES", 1)
    how = Extraction(clip_folder, Route.FROZEN, batch_size=2, device="cpu")
    real, calls = sharded.image_rows, [0]

    def dying(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(sharded, "image_rows", dying)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        extract_on(Engine(workers=1), world.real, how, out)
    assert len(list((out / "rows").iterdir())) == 2
    made = extract_on(Engine(workers=1), world.real, how, out)
    assert made is not None
    assert calls[0] == 1 + -(-made.counts["images"] // 2)


def test_another_encoder_on_a_worker_is_refused(
    clip_folder: Path, world: Any, tmp_path: Path
) -> None:
    how = Extraction(clip_folder, Route.FROZEN, device="cpu")
    target = RowFile(tmp_path / "rows", 1, 4)
    maker = sharded._RowMaker(world.real.folder, how, "0123", tmp_path, target, 64)
    with pytest.raises(ModelError, match="another encoder"):
        maker._encoder  # noqa: B018
