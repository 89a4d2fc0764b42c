"""What a protocol's name means for a result: its counts, its captions and its headline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gmail_align.data.protocols import PROTOCOLS, Task, checked_name, find_protocol


def named(protocol: str, task: Task, n: Mapping[str, int], *, subset: bool = False) -> str:
    """Return the name that a result carries.

    A known protocol's counts are asserted; any other name is a label of the user's own.

    Args:
        protocol: The name.
        task: What was scored.
        n: How much of each kind was scored; ``texts`` are the captions of a protocol.
        subset: What was scored is declared a part of the protocol's set.

    Raises:
        DataError: the counts are not the protocol's, it is one of another task, or a subset of an
            unknown protocol was declared.
    """
    if protocol not in PROTOCOLS and not subset:
        return protocol
    counts = {**n, "captions": n.get("texts", 0)}
    return checked_name(find_protocol(protocol, task), counts, subset=subset)


def headline(protocol: str) -> dict[str, str]:
    """Return ``headline``: the metric that the field reports on this set, where it is known."""
    known = PROTOCOLS.get(protocol)
    return {} if known is None else {"headline": known.metric}


def protocol_captions(captions: Sequence[tuple[str, str]], protocol: str) -> list[tuple[str, str]]:
    """Return the (caption id, image id) rows that take part: all, or the first few of an image.

    Args:
        captions: Every caption, in the order of the set.
        protocol: Name of the protocol; an unknown one takes all.
    """
    known = PROTOCOLS.get(protocol)
    most = None if known is None else known.captions_each
    if most is None:
        return list(captions)
    seen: dict[str, int] = {}
    kept = []
    for caption_id, image_id in captions:
        seen[image_id] = seen.get(image_id, 0) + 1
        if seen[image_id] <= most:
            kept.append((caption_id, image_id))
    return kept
