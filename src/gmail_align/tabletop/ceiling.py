"""How well retrieval can possibly go: captions that are true of several images set a ceiling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gmail_align.tabletop.facts import Facts, Mention
from gmail_align.tabletop.scenes import COLOURS, MATERIALS, SHAPES, SIZES, Scene, Thing
from gmail_align.tabletop.text import caption_facts

_KINDS = [(s, c, z, m) for s in SHAPES for c in COLOURS for z in SIZES for m in MATERIALS]


def retrieval_ceiling(scenes: Sequence[Scene], n: int = 5) -> dict[str, float]:
    """Return the R@1 of a retriever that knows only which captions are true of which images.

    Text to image: a caption true of ``k`` images finds its own with chance ``1 / k``.

    Image to text: among the captions true of an image, the retriever takes the most telling one,
    that is one true of the fewest images, and draws at random among equals. Every caption is true
    of its own image, so a caption true of one image only is always right. Where no such caption
    exists, the chance is the share of the image's own captions among the equals.

    A model can go slightly above: which true things are said is a hint this retriever ignores.

    Args:
        scenes: The images' scenes, each with its own ``n`` captions.
        n: Captions an image.

    Returns:
        ``t2i_r1`` and ``i2t_r1`` as fractions, and ``images_per_caption``, the mean of ``k``.
    """
    truth = truth_table(scenes, n)
    spread = truth.sum(axis=1)
    hits = []
    for image in range(len(scenes)):
        true = np.nonzero(truth[:, image])[0]
        best = true[spread[true] == spread[true].min()]
        hits.append(float((best // n == image).mean()))
    return {
        "t2i_r1": float((1.0 / spread).mean()),
        "i2t_r1": float(np.mean(hits)),
        "images_per_caption": float(spread.mean()),
    }


def truth_table(scenes: Sequence[Scene], n: int = 5) -> npt.NDArray[np.bool_]:
    """Return which captions are true of which images.

    Returns:
        Array of shape (len(scenes) * n, len(scenes)); rows n * i and the n - 1 after it are the
        captions of image i.
    """
    census = _Census(scenes)
    known: dict[Facts, npt.NDArray[np.bool_]] = {}
    rows = []
    for scene in scenes:
        for facts in caption_facts(scene, n):
            if facts not in known:
                known[facts] = census.true_of(facts)
            rows.append(known[facts])
    return np.stack(rows)


class _Census:
    """Counts of every kind of thing in every scene, to rule out most scenes at once."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        self._scenes = scenes
        self._floors = np.array([scene.floor for scene in scenes])
        self._totals = np.array([len(scene.things) for scene in scenes])
        self._counts = np.zeros((len(scenes), len(_KINDS)), dtype=np.int64)
        for row, scene in enumerate(scenes):
            for thing in scene.things:
                self._counts[row, _KINDS.index(thing.kind)] += 1
        self._fitting: dict[tuple[str | None, ...], npt.NDArray[np.int64]] = {}

    def true_of(self, facts: Facts) -> npt.NDArray[np.bool_]:
        """Return for every scene whether the facts hold."""
        possible = np.ones(len(self._scenes), dtype=bool)
        if facts.floor is not None:
            possible &= self._floors == facts.floor
        if facts.total is not None:
            possible &= self._totals == facts.total
        for mention in facts.mentions:
            fitting = self._fitting_counts(mention)
            possible &= fitting == mention.count if mention.count > 1 else fitting >= 1
        for row in np.nonzero(possible)[0]:
            possible[row] = facts.holds(self._scenes[int(row)])
        return possible

    def _fitting_counts(self, mention: Mention) -> npt.NDArray[np.int64]:
        """Return how many things of every scene have the attributes of a mention."""
        key = (mention.shape, mention.colour, mention.size, mention.material)
        if key not in self._fitting:
            kinds = [mention.fits(Thing(*kind, x=0.0, y=0.0, rotation=0.0)) for kind in _KINDS]
            self._fitting[key] = self._counts[:, kinds].sum(axis=1)
        return self._fitting[key]
