"""What a recipe becomes: encoders that are judged, rows, and all of their steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gmail_align.recipe_tables import Row
from gmail_align.workflow.steps.learners import CaptionScores, Probe
from gmail_align.workflow.work import Model, Step, in_order


@dataclass(frozen=True)
class JudgedEncoder:
    """An encoder and what it is judged by."""

    name: str
    encoder: Step | Model
    gap: Step | None
    retrieval: Mapping[str, Step]
    zeroshot: Mapping[str, Step]

    @property
    def results(self) -> dict[str, Step]:
        """Every step that judges it, by what it judges."""
        results = {} if self.gap is None else {"gap": self.gap}
        results |= {f"retrieval {name}": step for name, step in self.retrieval.items()}
        return results | {f"zeroshot {name}": step for name, step in self.zeroshot.items()}


@dataclass(frozen=True)
class RowSteps:
    """One row of one seed: its learner, what that says of the test images, and its encoder.

    ``judged`` is the row's own aligned encoder, and ``reader`` the encoder of its generated images:
    that one, or the one that the row starts from. ``answers`` are the scores of what it answers to
    questions, by protocol.
    """

    row: Row
    seed: int
    learner: Step | None
    output: Step | None
    judged: JudgedEncoder | None
    reader: JudgedEncoder
    answers: Mapping[str, Step] = field(default_factory=dict)

    def __str__(self) -> str:
        """Name the row in messages, where its steps would fill pages."""
        return f"of row {self.row.name!r}, seed {self.seed}"

    @property
    def results(self) -> dict[str, Step]:
        """The results that hold numbers of this row alone, image by image, by what they judge.

        What the row learnt comes first, then its encoder: both may have an accuracy, and the row's
        is what a claim means.
        """
        own: dict[str, Step] = {"probe": self.output} if isinstance(self.output, Probe) else {}
        own |= {f"answers {name}": step for name, step in self.answers.items()}
        return own | self.reader.results

    @property
    def targets(self) -> list[Step]:
        """The steps at which the row is done."""
        own = [] if self.output is None else [self.output]
        judged = self.judged.results.values() if self.judged else []
        return [*own, *self.answers.values(), *judged]


@dataclass(frozen=True)
class RecipeSteps:
    """All steps of a recipe."""

    rows: Mapping[str, Sequence[RowSteps]]
    """Name of a row -> the row in every seed."""
    frozen: Sequence[JudgedEncoder]
    """The encoders before any alignment."""
    checks: Sequence[Step]
    """Leak checks."""
    scores: Sequence[CaptionScores]
    """Scores of the captions, one for each set of test images."""

    @property
    def targets(self) -> list[Step]:
        """Every step that nothing else reads."""
        rows = [step for seeds in self.rows.values() for row in seeds for step in row.targets]
        frozen = [step for one in self.frozen for step in one.results.values()]
        return [*self.checks, *frozen, *rows, *self.scores]

    @property
    def shared(self) -> list[Step]:
        """What no training changes, in order."""
        return [step for step in in_order(self.targets) if not step.is_trained]
