"""Which weights an image goes through."""

from __future__ import annotations

from enum import StrEnum

from gmail_align.errors import ConfigError


class Route(StrEnum):
    """A way through the encoder; never a pair of loose booleans."""

    FROZEN = "frozen"
    """The plain model: adapter off, original projection. The target of Eq. 1."""
    GENERATED = "generated"
    """Adapter on, generated head (Proj-Gen)."""
    REAL = "real"
    """Adapter on, real head (Proj-Real): what the paper deploys on real images."""
    REAL_HEAD = "real_head"
    """Adapter off, real head."""

    @property
    def adapted(self) -> bool:
        """Whether the adapter is on."""
        return self in (Route.GENERATED, Route.REAL)


def parse_route(name: str) -> Route:
    """Turn ``name`` into a route.

    Raises:
        ConfigError: the route is unknown.
    """
    try:
        return Route(name)
    except ValueError as error:
        raise ConfigError(f"unknown route {name!r}: use one of {', '.join(Route)}") from error
