from __future__ import annotations

import pytest

from gmail_align.data.protocols import PROTOCOLS
from gmail_align.errors import DataError
from gmail_align.evaluation.protocol import headline, named, protocol_captions


def test_known_counts_are_asserted_and_labels_are_free() -> None:
    assert named("mine", "retrieval", {"images": 3, "texts": 4}) == "mine"
    for name, images, texts in (
        ("coco_val2017_5k", 5000, 25000),
        ("flickr30k_31k", 31783, 158915),
        ("sharegpt4v_1k", 1000, 1000),
        ("urban_1k", 1000, 1000),
    ):
        assert named(name, "retrieval", {"images": images, "texts": texts}) == name
        with pytest.raises(DataError, match=f"{name} has {images} images"):
            named(name, "retrieval", {"images": images - 1, "texts": texts})
    said = named("urban_1k", "retrieval", {"images": 990, "texts": 990}, subset=True)
    assert said == "urban_1k (subset: 990 of 1000 images, 990 of 1000 captions)"
    with pytest.raises(DataError, match="no protocol of retrieval"):
        named("mine", "retrieval", {"images": 3, "texts": 4}, subset=True)
    with pytest.raises(DataError, match="no protocol of retrieval"):
        named("dtd", "retrieval", {"images": 1880, "texts": 47})


def test_the_first_captions_of_an_image_take_part() -> None:
    rows = [(f"{image}-{number}", image) for image in "ab" for number in range(7)]
    assert protocol_captions(rows, "coco_karpathy_5k") == rows == protocol_captions(rows, "mine")
    kept = protocol_captions(rows, "coco_val2017_5k")
    assert kept == [(f"{image}-{number}", image) for image in "ab" for number in range(5)]
    assert len(protocol_captions(rows, "urban_1k")) == 2


def test_the_headline_is_what_the_field_reports() -> None:
    assert headline("mine") == {}
    by_class = {name for name in PROTOCOLS if headline(name).get("headline") == "class_mean"}
    assert by_class == {"fgvc_aircraft", "oxford_pets", "caltech101"}
