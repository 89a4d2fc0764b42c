"""Mirrors: what is uploaded and when, and a machine that starts from there. Also on a real S3."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from gmail_align import mirror, remote
from gmail_align.artifacts import Artifact, begin, load
from gmail_align.data.captions import Caption, read_captions, write_captions
from gmail_align.data.images import ImageStore
from gmail_align.encoders.shipped import shipped_models
from gmail_align.engine import Part
from gmail_align.errors import ArtifactError, ConfigError, RemoteError
from gmail_align.mirror import Mirror
from gmail_align.synthesis.config import SynthesisConfig
from gmail_align.synthesis.run import synthesize, synthesize_part
from gmail_align.synthesis.shards import ShardMaker
from worlds.files import free_port

CONFIG = SynthesisConfig(
    model=str(shipped_models() / "diffusion"), steps=1, shard_size=2, batch_size=2, device="cpu"
)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """Start moto's server, an S3 without the cloud, and make a bucket."""
    for module in ("s3fs", "moto"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    names = {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "x"}
    before = dict(os.environ)
    os.environ |= {**names, "AWS_DEFAULT_REGION": "us-east-1"}
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(address, timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket"
    finally:
        os.environ.clear()
        os.environ |= before
        server.kill()
        server.wait()


@pytest.fixture(params=["memory", "s3"])
def home(request: pytest.FixtureRequest) -> str:
    """Return a folder of an object store."""
    start = "memory:/" if request.param == "memory" else request.getfixturevalue("bucket")
    return f"{start}/{request.node.callspec.id}-{request.node.originalname[-20:]}"


@pytest.fixture
def captions(tmp_path: Path) -> Artifact:
    draft = begin(tmp_path / "captions", "captions", {})
    rows = [Caption(f"{n}-0", f"A red ball and {n} cubes.", f"{n}") for n in range(5)]
    return draft.finish({"captions": write_captions(draft, rows)})


def test_another_machine_goes_on_from_the_mirror(
    captions: Artifact, tmp_path: Path, home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    real = remote.upload

    def upload(path: Path, url: str) -> None:
        sent.append(url.removeprefix(f"{home}/"))
        real(path, url)

    monkeypatch.setattr(mirror, "upload", upload)
    first = synthesize(CONFIG, captions, tmp_path / "first", mirror=Mirror.at(home))
    shards = [f"shards/0000{n}.{kind}" for n in range(3) for kind in ("tar", "jsonl")]
    assert sent[:7] == ["identity.json", *shards] and sent[-1] == "manifest.json"
    made: list[int] = []
    work = ShardMaker.__call__

    def counted(self: ShardMaker, shard: object, advance: object) -> None:
        made.append(shard.index)  # type: ignore[attr-defined]
        work(self, shard, advance)  # type: ignore[arg-type]

    monkeypatch.setattr(ShardMaker, "__call__", counted)
    second = synthesize(CONFIG, captions, tmp_path / "second", mirror=Mirror.at(home))
    assert second.fingerprint == first.fingerprint and made == []
    files, root = fsspec.core.url_to_fs(home)
    for name in ("manifest.json", "shards/00001.jsonl"):  # as if the first had been cut off
        files.rm_file(f"{root}/{name}")
    third = synthesize(CONFIG, captions, tmp_path / "third", mirror=Mirror.at(home))
    assert third.fingerprint == first.fingerprint and made == [1]
    assert remote.exists(f"{home}/manifest.json")
    other = CONFIG.model_copy(update={"steps": 2})
    with pytest.raises(ArtifactError, match="steps"):
        synthesize(other, captions, tmp_path / "other", mirror=Mirror.at(home))


def test_an_artifact_is_read_where_it_lies(
    captions: Artifact, tmp_path: Path, home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GMAIL_ALIGN_CACHE", str(tmp_path / "cache"))
    images = synthesize(CONFIG, captions, tmp_path / "images")
    for artifact, name in ((captions, "captions"), (images, "images")):
        Mirror.at(home).below(name).complete(artifact)
    far = load(Path(f"{home}/images"), "images")
    assert far.fingerprint == images.fingerprint
    assert not list((tmp_path / "cache").rglob("*.tar"))
    here, there = ImageStore(images), ImageStore(far)
    assert [there.read_bytes(name) for name in there.ids] == [
        here.read_bytes(name) for name in here.ids
    ]
    assert read_captions(load(Path(f"{home}/captions"))) == read_captions(captions)
    again = synthesize(CONFIG, load(Path(f"{home}/captions")), tmp_path / "again")
    assert again.fingerprint == images.fingerprint
    with pytest.raises(RemoteError, match="nothing"):
        load(Path(f"{home}/none"))


@pytest.mark.parametrize("name", ["../stolen", "/tmp/stolen", "a/../../stolen"])
def test_a_manifest_cannot_name_a_file_outside_its_folder(
    captions: Artifact, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GMAIL_ALIGN_CACHE", str(tmp_path / "cache"))
    files = fsspec.filesystem("memory")
    manifest = {**captions.manifest, "files": {name: "0" * 64}}
    files.pipe_file("/evil/captions/manifest.json", json.dumps(manifest).encode())
    files.pipe_file("/evil/stolen", b"written outside")
    with pytest.raises(ArtifactError, match="stolen"):
        load(Path("memory://evil/captions"))
    with pytest.raises(ArtifactError, match="stolen"):
        Mirror.at("memory://evil/captions").fetch(tmp_path / "here")
    assert not list(tmp_path.rglob("stolen")) and not Path("/tmp/stolen").exists()
    (tmp_path / "local").mkdir()
    (tmp_path / "local/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="stolen"):
        load(tmp_path / "local")


def test_parts_without_a_common_folder_meet_in_the_mirror(
    captions: Artifact, tmp_path: Path, home: str
) -> None:
    whole, copy = synthesize(CONFIG, captions, tmp_path / "whole"), Mirror.at(home)
    first = synthesize_part(CONFIG, captions, tmp_path / "first", Part(1, 2), mirror=copy)
    assert first is None and not remote.exists(f"{home}/manifest.json")
    last = synthesize_part(CONFIG, captions, tmp_path / "last", Part(2, 2), mirror=copy)
    assert last is not None and last.manifest["files"] == whole.manifest["files"]
    assert set(remote.names_below(home)) >= {"manifest.json", *whole.manifest["files"]}
    assert not list((tmp_path / "first").glob("shards/00001.*"))  # until all is there
    again = synthesize_part(CONFIG, captions, tmp_path / "first", Part(1, 2), mirror=copy)
    assert again is not None and again.fingerprint == whole.fingerprint


def test_what_is_damaged_in_a_mirror_is_not_taken(captions: Artifact, tmp_path: Path) -> None:
    copy, files = Mirror.at("memory://hurt/captions"), fsspec.filesystem("memory")
    copy.complete(captions)
    files.pipe_file("/hurt/captions/captions.jsonl", b"{}")
    with pytest.raises(ArtifactError, match=r"captions\.jsonl"):
        copy.fetch(tmp_path / "here")
    assert not (tmp_path / "here/manifest.json").exists()
    for damage in (b"[]", b"{", b'{"files": 3}', b"[" * 10**5):
        for name in ("identity.json", "manifest.json"):
            files.pipe_file(f"/hurt/captions/{name}", damage)
        with pytest.raises(ArtifactError, match="hurt"):
            copy.fetch(tmp_path / "here")
        if damage != b'{"files": 3}':
            with pytest.raises(ArtifactError, match="hurt"):
                copy.begin(begin(tmp_path / "draft", "captions", {}))


def test_a_download_that_was_killed_is_an_unfinished_draft(
    captions: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, here, real = Mirror.at("memory://killed/captions"), tmp_path / "here", mirror.download
    copy.complete(captions)

    def die(home: str, name: str, folder: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(mirror, "download", die)
    with pytest.raises(KeyboardInterrupt):
        copy.fetch(here)
    assert sorted(path.name for path in here.iterdir()) == ["captions.jsonl", "draft.json"]
    assert begin(here, "captions", {}).complete is None
    monkeypatch.setattr(mirror, "download", real)
    assert copy.fetch(here) and load(here).fingerprint == captions.fingerprint
    assert not (here / "draft.json").exists()


def test_a_mirror_is_a_url(tmp_path: Path, captions: Artifact) -> None:
    with pytest.raises(ConfigError, match="/data"):
        Mirror.at("/data")
    with pytest.raises(ArtifactError, match="--mirror"):
        synthesize(CONFIG, captions, Path("memory://bucket/out"))


def test_a_bucket_that_is_not_there_is_one_sentence(bucket: str, tmp_path: Path) -> None:
    words = ["import", "coco", "--annotations", "s3://nobody/a.json", "--out", str(tmp_path / "x")]
    command = [sys.executable, "-m", "gmail_align", *words]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 2 and len(ran.stderr.splitlines()) == 1
    assert "s3://nobody/a.json" in ran.stderr
