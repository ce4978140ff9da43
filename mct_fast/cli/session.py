"""One command among several processes, its progress, and what Ctrl-C leaves behind."""

from __future__ import annotations

import codecs
import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any


def processes() -> int:
    """How many processes torchrun started; 1 without it."""
    size = os.environ.get("WORLD_SIZE", "1")
    return int(size) if size.isdecimal() else 1


def process() -> str:
    """Which of several processes speaks."""
    return f"process {os.environ.get('RANK', '0')}: " if processes() > 1 else ""


def session() -> Any:
    """The processes of this command, which end together."""
    from mct_fast.run.distributed import session

    return session()


def progress_bars(communicator: Any = None) -> Any:
    """Shown by one process alone."""
    from mct_fast.run.progress import for_stream, quiet

    return quiet() if communicator is not None and communicator.rank else for_stream()


def watcher(wanted: bool, folder: Any, communicator: Any) -> AbstractContextManager[Any]:
    """What TensorBoard reads, written while ``folder`` is made, if that is ``wanted``."""
    if not wanted:
        from mct_fast.run.watch import Unwatched

        return contextlib.nullcontext(Unwatched())
    from mct_fast.view.tensorboard import live_events

    return live_events(folder, communicator.rank)


_PLAIN = {"±": "+-", "×": "x", "–": "-", "…": "...", "θ": "theta", "β": "beta"}


def speak(stream: Any) -> None:
    """What the terminal of ``stream`` cannot print is written in letters that it can: a result must not be lost to that."""
    codecs.register_error("mct_fast", _plainly)
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="mct_fast")


def _plainly(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    characters = error.object[error.start : error.end]
    said = (_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode("ascii") for c in characters)
    return "".join(said), error.end


@contextlib.contextmanager
def spoken_log() -> Iterator[None]:
    """Within it the package's log is written to stderr, a line each; of several processes only the first one's."""
    log, handler = logging.getLogger("mct_fast"), _StderrHandler()
    level = log.level
    handler.setFormatter(logging.Formatter("mct-fast: %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.WARNING if os.environ.get("RANK", "0") == "0" else logging.ERROR)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


class _StderrHandler(logging.Handler):
    """Writes to what ``sys.stderr`` is at that moment: above a bar, if one is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


class Interrupted(Exception):  # noqa: N818 (no error: the user pressed Ctrl-C)
    """Ctrl-C during work that can be gone on with; the text says how."""


@contextlib.contextmanager
def resumable(how: str) -> Iterator[None]:
    """Ctrl-C within it is answered by ``how`` to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(how) from None
