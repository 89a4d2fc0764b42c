"""Places behind URLs: what stands for one, what messages show, and what errors say."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from gmail_align import remote
from gmail_align.errors import MissingExtraError, RemoteError


@pytest.mark.parametrize(
    ("place", "url"),
    [
        (Path("s3://bucket/a b/c.zip"), "s3://bucket/a b/c.zip"),
        ("https://host/a.json?key=1", "https://host/a.json?key=1"),
        (Path("hf://datasets/me/set/train.tar"), "hf://datasets/me/set/train.tar"),
        (Path("/data/s3/x.tar"), None),
        (Path("s3"), None),
        (Path("C:/x"), None),
    ],
)
def test_a_path_may_stand_for_a_url(place: Path | str, url: str | None) -> None:
    assert remote.url_of(place) == url


def test_passwords_and_queries_are_not_shown() -> None:
    url = "https://me:secret@host/a.json?X-Amz-Signature=secret2"
    assert remote.shown(Path(url)) == remote.shown(url) == "https://***@host/a.json?***"
    with pytest.raises(RemoteError) as error, remote.explained(url):
        raise OSError(f"cannot connect to {url}")
    assert "secret" not in str(error.value) and "host" in str(error.value)


@pytest.mark.parametrize(
    ("raised", "says"),
    [
        (FileNotFoundError("x"), "nothing at"),
        (PermissionError("x"), "credentials"),
        (ConnectionResetError("cut"), "network"),
    ],
)
def test_each_failure_is_one_sentence(raised: Exception, says: str) -> None:
    with pytest.raises(RemoteError, match=says), remote.explained("s3://bucket/key"):
        raise raised


def test_a_missing_module_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(MissingExtraError, match="cloud"):
        remote.open_url("gs://bucket/key")


def test_files_are_read_by_ranges_and_copied_whole(tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    files.pipe_file("/ranges/a/b.bin", bytes(range(100)))
    assert remote.read_range("memory://ranges/a/b.bin", 10, 5) == bytes(range(10, 15))
    with remote.open_url("memory://ranges/a/b.bin") as file:
        file.seek(90)
        assert file.read() == bytes(range(90, 100))
    assert remote.names_below("memory://ranges") == {"a/b.bin": 100}
    before = remote.state_of("memory://ranges")
    remote.download("memory://ranges/a", "b.bin", tmp_path)
    assert (tmp_path / "b.bin").read_bytes() == bytes(range(100))
    assert [path.name for path in tmp_path.iterdir()] == ["b.bin"]
    remote.upload(tmp_path / "b.bin", "memory://ranges/c.bin")
    assert remote.exists("memory://ranges/c.bin") and not remote.exists("memory://ranges/d.bin")
    assert remote.state_of("memory://ranges") != before
    with pytest.raises(RemoteError, match="memory://ranges/none"):
        remote.size_of("memory://ranges/none")
