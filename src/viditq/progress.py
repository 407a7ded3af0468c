"""How long work shows that it moves: a function that wraps an iterable.

Library functions take ``track: Track = quiet`` and loop over ``track(items, "what", total)``. The
command line passes one that draws a bar; a notebook may pass its own. Nothing here prints.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

__all__ = ["Track", "quiet"]

T = TypeVar("T")


class Track(Protocol):
    """Iterate over ``items`` while showing ``description`` and, when known, ``total``."""

    def __call__(
        self, items: Iterable[T], description: str, total: int | None = None
    ) -> Iterator[T]: ...


def quiet(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:  # noqa: ARG001
    """Iterate and show nothing."""
    yield from items
