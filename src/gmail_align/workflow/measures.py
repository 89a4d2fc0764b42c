"""What a run measures, known before it makes anything; what it does not measure is refused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from gmail_align.config import nearest_few
from gmail_align.data.protocols import PROTOCOLS, find_protocol
from gmail_align.errors import ConfigError
from gmail_align.recipe_tables import Claim
from gmail_align.workflow.rows import RecipeSteps, RowSteps
from gmail_align.workflow.steps.encoders import Retrieval, ZeroShot
from gmail_align.workflow.steps.learners import CaptionScores, Probe
from gmail_align.workflow.steps.multimodal import AnswerScores
from gmail_align.workflow.work import in_order

Judgement = CaptionScores | Retrieval | ZeroShot | Probe | AnswerScores

_LACKING: Final = "WMD"
"""Needs word vectors, which a run does not have: a table says so, and a claim cannot be tested."""


def refuse_unmeasured(claims: Iterable[Claim], steps: RecipeSteps) -> None:
    """Refuse what would fail when all else is made: a protocol's task, and metrics of claims.

    Raises:
        DataError: a protocol is of another task, or a part of an unknown one is declared.
        ConfigError: a claim's metric is not measured of both of its rows.
    """
    for step in in_order(steps.targets):
        if isinstance(step, Judgement) and (step.subset or step.protocol in PROTOCOLS):
            find_protocol(step.protocol, step.task)
    for claim in claims:
        known = shared_measures(claim, steps)
        if claim.metric not in known:
            raise ConfigError(
                f"claim {claim.name!r} compares {claim.better!r} and {claim.worse!r} by "
                f"{claim.metric!r}, which is not measured of both: "
                f"{nearest_few(claim.metric, known)}"
            )


def shared_measures(claim: Claim, steps: RecipeSteps) -> list[str]:
    """Return the metrics that both rows of a claim have, also as ``PROTOCOL/METRIC``."""
    better, worse = (steps.rows[name][0] for name in (claim.better, claim.worse))
    captions = captions_of(better, steps)
    known = []
    if captions is not None and captions == captions_of(worse, steps):
        known += [name for name in captions.measures if name != _LACKING]
    for judged, step in better.results.items():
        if judged in worse.results:
            known += step.measures
            if isinstance(step, Judgement):
                known += [f"{step.protocol}/{name}" for name in step.measures]
    return list(dict.fromkeys(known))


def captions_of(row: RowSteps, steps: RecipeSteps) -> CaptionScores | None:
    """Return the scores of what a row says of test images; None where it says nothing."""
    return next((one for one in steps.scores if row.row.name in one.runs[0]), None)
