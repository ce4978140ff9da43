"""Who looks on while a stage runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol


class Watcher(Protocol):
    """Is told what is measured, when it is."""

    def record(self, record: Mapping[str, Any]) -> None:
        """A record: its ``kind``, the ``iteration`` (of experts the epoch), and values."""
        ...

    def images(self, iteration: int, picture: Callable[[], Any]) -> None:
        """The images of ``iteration``, which ``picture()`` draws as a ``PIL.Image``."""
        ...


class Unwatched:
    """Looks away."""

    def record(self, record: Mapping[str, Any]) -> None:
        pass

    def images(self, iteration: int, picture: Callable[[], Any]) -> None:
        pass
