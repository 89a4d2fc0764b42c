"""The page that looks at images through a finished run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from threading import Thread

import pytest

from gmail_align.app.looking import FinishedRun
from gmail_align.app.server import HOST, make_server
from gmail_align.artifacts import load, read_jsonl
from gmail_align.data.images import ImageStore
from gmail_align.errors import ArtifactError, UserError
from worlds.browser import CHROMIUM, browser


@pytest.fixture(scope="module")
def opened(smoke_folder: Path) -> FinishedRun:
    return FinishedRun(smoke_folder)


@pytest.fixture(scope="module")
def port(opened: FinishedRun) -> Iterator[int]:
    with make_server(opened, 0) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield int(server.server_address[1])
        server.shutdown()


def asked(port: int, method: str, path: str, **rest: object) -> tuple[int, bytes]:
    connection = HTTPConnection(HOST, port, timeout=60)
    connection.request(method, path, **rest)  # type: ignore[arg-type]
    answer = connection.getresponse()
    return answer.status, answer.read()


def image_of_run(smoke_folder: Path) -> tuple[str, bytes]:
    """Return a test image of the run that captions were predicted of."""
    (predictions, *_) = sorted(smoke_folder.glob("predictions/*/predictions.jsonl"))
    name = next(iter(read_jsonl(predictions)))["image_id"]
    for folder in smoke_folder.rglob("index.parquet"):
        store = ImageStore(load(folder.parent, "images"))
        if name in store:
            return name, store.read_bytes(name)
    raise AssertionError(name)


def test_it_says_what_the_run_said_of_a_test_image(smoke_folder: Path, port: int) -> None:
    name, encoded = image_of_run(smoke_folder)
    status, body = asked(port, "POST", "/look", body=encoded, headers={"X-Gmail-Align": "look"})
    answer = json.loads(body)
    assert status == 200
    index = json.loads((smoke_folder / "index.json").read_text())
    predicted = [
        next(
            row["text"]
            for row in read_jsonl(smoke_folder / used["folder"] / "predictions.jsonl")
            if row["image_id"] == name
        )
        for steps in index.values()
        for used in steps
        if used["folder"].startswith("predictions")
    ]
    assert sorted(one["text"] for one in answer["captions"]) == sorted(predicted)
    routes = {(one["encoder"], one["route"]): one for one in answer["routes"]}
    assert routes["frozen", "frozen"]["cosine"] == 1.0
    assert {route for encoder, route in routes if encoder == "gmail"} == {
        "frozen",
        "generated",
        "real",
        "real_head",
    }


def test_an_image_of_the_run_is_its_own_nearest(opened: FinishedRun, port: int) -> None:
    side = opened._sides["frozen", "real"]
    name = side.features.ids[3]
    status, encoded = asked(port, "GET", f"/image/real/{name}")
    assert status == 200 and encoded == side.images.read_bytes(name)
    _, body = asked(port, "POST", "/look", body=encoded, headers={"X-Gmail-Align": "look"})
    frozen = json.loads(body)["routes"][0]
    assert frozen["real"][0] == {"id": name, "cosine": 1.0}
    cosines = [one["cosine"] for one in frozen["real"]]
    assert cosines == sorted(cosines, reverse=True) and len(cosines) == 6


@pytest.mark.parametrize(
    ("method", "path", "rest", "status"),
    [
        ("GET", "/image/real/..%2F..%2Fresult.json", {}, 400),
        ("GET", "/image/other/x", {}, 400),
        ("GET", "/../../etc/passwd", {}, 404),
        ("POST", "/look", {"body": b"x"}, 404),
        ("POST", "/look", {"body": b"x", "headers": {"X-Gmail-Align": "look"}}, 400),
        ("GET", "/", {"headers": {"Host": "evil.example"}}, 403),
        (
            "POST",
            "/look",
            {"headers": {"X-Gmail-Align": "look", "Content-Length": str(2**40)}},
            413,
        ),
    ],
)
def test_strange_requests_are_refused(
    port: int, method: str, path: str, rest: dict[str, object], status: int
) -> None:
    assert asked(port, method, path, **rest)[0] == status


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=str(tmp_path)):
        FinishedRun(tmp_path)


def test_a_taken_port_is_named(opened: FinishedRun, port: int) -> None:
    with pytest.raises(UserError, match=str(port)):
        make_server(opened, port)


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_page_shows_the_answer(smoke_folder: Path, port: int, tmp_path: Path) -> None:
    image = tmp_path / "mine.jpg"
    image.write_bytes(image_of_run(smoke_folder)[1])
    with browser(tmp_path / "profile") as page:
        page.open(f"http://{HOST}:{port}/")
        page.choose_file("#file", image)
        page.until("document.querySelectorAll('.route').length > 0")
        assert page.console == []
        assert page.value("document.querySelectorAll('#caption-list dt').length") == 6
        pictures = "[...document.querySelectorAll('.near img')].every((one) => one.naturalWidth)"
        page.until(pictures)


def test_a_run_of_other_inputs_is_not_made_again(smoke_folder: Path, tmp_path: Path) -> None:
    recipe = json.loads((smoke_folder / "recipe.json").read_text())
    recipe["recipe"]["align"]["gmail"]["temperature"] = 0.5
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(ArtifactError, match="run smoke"):
        FinishedRun(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
