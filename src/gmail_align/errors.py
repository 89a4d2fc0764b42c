"""Everything that can go wrong, drawn as a tree.

    GmailAlignError                 any failure this package raises on purpose
    ├── UserError                   the user's mistake; the command line exits with 2
    │   ├── ConfigError             an unknown key, a wrong type, a bad ``--set``
    │   ├── DataError               missing, malformed or inconsistent input data
    │   ├── ArtifactError           a folder that is not what was asked for, or of another run
    │   ├── ModelError              a model folder that cannot be used
    │   ├── MissingExtraError       an optional dependency that is not installed
    │   └── DiskFullError           no space left where output is written
    └── TrainingError               a run that broke by itself (NaN loss, no finite gradient)

Each message is one sentence: what is wrong, where, and what to do.
"""

from __future__ import annotations


class GmailAlignError(Exception):
    """Base class of every error this package raises on purpose."""


class UserError(GmailAlignError):
    """The user's mistake; the command line prints the message and exits with 2."""


class ConfigError(UserError):
    """A configuration key or value that cannot be used."""


class DataError(UserError):
    """Input data that is missing, malformed or inconsistent."""


class ArtifactError(UserError):
    """A folder that is not the artifact that was asked for, or belongs to another run."""


class ModelError(UserError):
    """A model folder that cannot be loaded or does not fit the task."""


class MissingExtraError(UserError):
    """An optional dependency that is needed and not installed."""


class DiskFullError(UserError):
    """No space is left on the device that output is written to."""


class TrainingError(GmailAlignError):
    """A training run that broke by itself, for example on a loss that is not finite."""

    def __init__(self, message: str = "", step: int | None = None) -> None:
        super().__init__(message)
        self.step = step
        """The step that broke, where one did."""
