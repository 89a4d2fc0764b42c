from __future__ import annotations

import pytest

from gmail_align.data.classes import class_set
from gmail_align.data.protocols import (
    PROTOCOLS,
    checked_name,
    find_protocol,
    headline,
    result_name,
)
from gmail_align.errors import DataError

COUNTS = {
    "coco_val2017_5k": (5000, 25000),
    "coco_karpathy_5k": (5000, 25010),
    "flickr30k_31k": (31783, 158915),
    "flickr30k_karpathy_1k": (1000, 5000),
    "sharegpt4v_1k": (1000, 1000),
    "urban_1k": (1000, 1000),
    "scienceqa_img_test": (2017,),
    "scienceqa_test": (4241,),
    "mmmu_val": (900,),
    "dtd": (1880, 47),
    "stanford_cars": (8041, 196),
    "sun397": (19850, 397),
    "food101": (25250, 101),
    "fgvc_aircraft": (3333, 100),
    "oxford_pets": (3669, 37),
    "caltech101": (8677, 101),
    "imagenet": (50000, 1000),
}


def test_the_protocols_and_their_counts_are_these() -> None:
    assert {name: tuple(one.counts.values()) for name, one in PROTOCOLS.items()} == COUNTS


def test_class_means_where_the_field_uses_them() -> None:
    means = {one.name for one in PROTOCOLS.values() if one.metric == "class_mean"}
    assert means == {"fgvc_aircraft", "oxford_pets", "caltech101"}


@pytest.mark.parametrize("name", [one.name for one in PROTOCOLS.values() if one.class_set])
def test_every_classification_set_has_as_many_classes_as_its_protocol(name: str) -> None:
    protocol = find_protocol(name, "zeroshot")
    assert len(class_set(name).keys) == protocol.counts["classes"]


def test_whole_sets_keep_the_name_and_others_are_refused() -> None:
    protocol = find_protocol("coco_val2017_5k")
    whole = {"images": 5000, "captions": 25000, "quarantined": 0}
    assert checked_name(protocol, whole) == "coco_val2017_5k"
    assert checked_name(protocol, whole, subset=True) == "coco_val2017_5k"
    with pytest.raises(DataError, match="5000 images and 25014 captions"):
        checked_name(protocol, {"images": 5000, "captions": 25014}, subset=True)
    with pytest.raises(DataError, match=r"here are 4999 images and 24995 captions: .* --subset"):
        checked_name(protocol, {"images": 4999, "captions": 24995})
    with pytest.raises(DataError, match="0 images and 0 captions"):
        checked_name(protocol, {}, subset=True)


def test_a_declared_subset_says_so_in_its_name() -> None:
    protocol = find_protocol("coco_val2017_5k")
    assert checked_name(protocol, {"images": 100, "captions": 500}, subset=True) == (
        "coco_val2017_5k (subset: 100 of 5000 images, 500 of 25000 captions)"
    )
    assert checked_name(find_protocol("dtd"), {"images": 5, "classes": 47}, subset=True) == (
        "dtd (subset: 5 of 1880 images)"
    )


def test_unknown_protocols_get_the_nearest_name() -> None:
    with pytest.raises(DataError, match=r"'coco_val2017'; did you mean 'coco_val2017_5k'\?"):
        find_protocol("coco_val2017")
    with pytest.raises(DataError, match=r"no protocol of answers is named 'dtd'; there are sci"):
        find_protocol("dtd", "answers")


def test_known_counts_are_asserted_and_labels_are_free() -> None:
    assert result_name("mine", "retrieval", {"images": 3, "texts": 4}) == "mine"
    for name, images, texts in (
        ("coco_val2017_5k", 5000, 25000),
        ("flickr30k_31k", 31783, 158915),
        ("sharegpt4v_1k", 1000, 1000),
        ("urban_1k", 1000, 1000),
    ):
        assert result_name(name, "retrieval", {"images": images, "texts": texts}) == name
        with pytest.raises(DataError, match=name):
            result_name(name, "retrieval", {"images": images - 1, "texts": texts})
    said = result_name("urban_1k", "retrieval", {"images": 990, "texts": 990}, subset=True)
    assert said == "urban_1k (subset: 990 of 1000 images, 990 of 1000 captions)"
    with pytest.raises(DataError, match="mine"):
        result_name("mine", "retrieval", {"images": 3, "texts": 4}, subset=True)
    with pytest.raises(DataError, match="dtd"):
        result_name("dtd", "retrieval", {"images": 1880, "texts": 47})


def test_captions_are_scored_under_the_name_of_their_retrieval_set() -> None:
    counts = {"images": 5000, "references": 25010}
    assert result_name("coco_karpathy_5k", "captions", counts) == "coco_karpathy_5k"
    with pytest.raises(DataError, match="coco_karpathy_5k"):
        result_name("coco_karpathy_5k", "captions", {"images": 2, "references": 10})
    with pytest.raises(DataError, match="dtd"):
        result_name("dtd", "captions", {"images": 1880, "references": 47})


def test_the_headline_is_what_the_field_reports() -> None:
    assert headline("mine") == {}
    by_class = {name for name in PROTOCOLS if headline(name).get("headline") == "class_mean"}
    assert by_class == {"fgvc_aircraft", "oxford_pets", "caltech101"}
