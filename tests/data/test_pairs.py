from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gmail_align.artifacts import Artifact, begin
from gmail_align.data.captions import Caption, write_captions
from gmail_align.data.images import finish_images, shard_name, write_shard
from gmail_align.data.pairs import Pair, make_pairs, make_pairs_by_text, read_pairs
from gmail_align.errors import ArtifactError, DataError
from gmail_align.importing.admission import admit

CAPTIONS = [
    *(Caption("11", "a cat", "1"), Caption("12", "one cat", "1")),
    *(Caption("21", "a dog", "2"), Caption("31", "a cow", "3")),
]


@pytest.fixture
def artifacts(
    tmp_path: Path, make_picture: Callable[..., bytes]
) -> Callable[..., tuple[Artifact, Artifact, Artifact]]:
    def build(real: list[str], generated: dict[str, str]) -> tuple[Artifact, Artifact, Artifact]:
        draft = begin(tmp_path / "captions", "captions", {})
        captions = draft.finish({"captions": write_captions(draft, CAPTIONS)})
        stores = []
        for kind, prompts in (("real", dict.fromkeys(real, "")), ("generated", generated)):
            draft = begin(tmp_path / kind, "images", {})
            data = make_picture(1)
            samples = [(replace(admit(i, data)[0], prompt=p), data) for i, p in prompts.items()]
            write_shard(draft.path(shard_name(0)), samples)
            stores.append(finish_images(draft))
        return captions, stores[0], stores[1]

    return build


def test_one_pair_a_generated_image_in_order_of_captions(
    artifacts: Callable[..., tuple[Artifact, Artifact, Artifact]], tmp_path: Path
) -> None:
    generated = {"21-0": "a dog", "11-10": "a cat", "11-2": "a cat", "31-0": "a cow", "99-0": "?"}
    inputs = artifacts(["1", "2"], generated)
    pairs = make_pairs(*inputs, tmp_path / "pairs")
    assert read_pairs(pairs) == [
        Pair("11", "a cat", "1", "11-2"),
        Pair("11", "a cat", "1", "11-10"),
        Pair("21", "a dog", "2", "21-0"),
    ]
    assert pairs.counts == {
        "pairs": 3,
        "real_images": 2,
        "without_real": 1,
        "without_generated": 1,
    }
    assert make_pairs(*inputs, tmp_path / "pairs") == pairs


def test_images_of_another_text_are_refused(
    artifacts: Callable[..., tuple[Artifact, Artifact, Artifact]], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="11-0 .* 'a tree'.* 11 .* 'a cat'"):
        make_pairs(*artifacts(["1"], {"11-0": "a tree"}), tmp_path / "pairs")


def test_sets_that_share_nothing_are_refused(
    artifacts: Callable[..., tuple[Artifact, Artifact, Artifact]], tmp_path: Path
) -> None:
    captions, real, generated = artifacts(["1"], {"21-0": "a dog"})
    with pytest.raises(DataError, match="no caption of .* has both"):
        make_pairs(captions, real, generated, tmp_path / "pairs")
    with pytest.raises(ArtifactError, match="holds images, but pairs are needed"):
        read_pairs(real)


def test_images_of_equal_texts_are_dealt_out(
    artifacts: Callable[..., tuple[Artifact, Artifact, Artifact]], tmp_path: Path
) -> None:
    captions, real, generated = artifacts(["1", "2"], {"x": "", "y": "", "z": ""})
    draft = begin(tmp_path / "texts", "captions", {})
    rows = [
        *(Caption("x-0", "a cat", "x"), Caption("y-0", "a cat", "y")),
        *(Caption("z-0", "a cow", "z"), Caption("gone-0", "a dog", "gone")),
    ]
    texts = draft.finish({"captions": write_captions(draft, rows)})
    made = make_pairs_by_text(captions, real, generated, texts, tmp_path / "pairs", seed=1)
    (pair,) = read_pairs(made)
    assert (pair.caption_id, pair.real_image_id) == ("11", "1")
    assert pair.generated_image_id in ("x", "y")
    assert made.counts["without_real"] == 1
    assert made.counts["without_generated"] == 2
