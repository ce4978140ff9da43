"""How a long stage shows that it is alive: bars on a terminal, a line now and then elsewhere, or nothing."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, SupportsFloat, TextIO, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.progress import Task as RichTask
from rich.text import Text

LINE_EVERY = 10.0  # seconds between lines where there is no terminal
_READ_EVERY = 0.1  # seconds between values beside a bar

Shown = SupportsFloat | str


class Bar(Protocol):
    """One task under way."""

    def advance(self, n: int = 1, **shown: Shown) -> None:
        """``n`` more units are done; ``shown`` are values to show beside the bar, e.g. ``loss=0.93``.

        A number that lies on a device is read when it is shown, and not at every call.
        """
        ...


class Progress(Protocol):
    """Something that shows tasks. Tasks may nest."""

    def task(self, name: str, total: int, *, done: int = 0) -> AbstractContextManager[Bar]:
        """A task of ``total`` units, ``done`` of which were finished by an earlier run."""
        ...


@runtime_checkable
class Notes(Protocol):
    """What a :class:`Progress` may also offer: lines beside its tasks."""

    def note(self, text: str) -> None:
        """Writes ``text``, a line."""
        ...


def note(progress: Progress, text: str) -> None:
    """Writes ``text``, a line, where ``progress`` shows its tasks, if it shows anything."""
    if isinstance(progress, Notes):
        progress.note(text)


def quiet() -> Progress:
    """Shows nothing."""
    return _Quiet()


def for_stream(stream: TextIO | None = None) -> Progress:
    """Bars if ``stream`` (default: stderr) is a terminal, else a line about every ten seconds."""
    target: TextIO = stream if stream is not None else sys.stderr
    return TerminalProgress(target) if target.isatty() else LineProgress(target)


class _Quiet:
    @contextmanager
    def task(self, name: str, total: int, *, done: int = 0) -> Iterator[Bar]:
        yield _QuietBar()


class _QuietBar:
    def advance(self, n: int = 1, **shown: Shown) -> None:
        pass


class TerminalProgress:
    """Bars with rate and remaining time, drawn by rich. A nested bar vanishes when its task ends."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream)
        self._display: RichProgress | None = None

    @contextmanager
    def task(self, name: str, total: int, *, done: int = 0) -> Iterator[Bar]:
        """See :class:`Progress`."""
        outermost = self._display is None
        display = self._display or self._open()
        number = display.add_task(name, total=total, completed=done, shown="")
        try:
            yield _TerminalBar(display, number)
        finally:
            if outermost:
                display.stop()
                self._display = None
            else:
                display.remove_task(number)

    def note(self, text: str) -> None:
        """See :class:`Notes`."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _open(self) -> RichProgress:
        self._display = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            _RateColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[shown]}", style="dim"),
            console=self._console,
        )
        self._display.start()
        return self._display


class _RateColumn(TextColumn):
    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: RichTask) -> Text:
        speed = task.finished_speed or task.speed
        return Text(_rate(speed) if speed else "")


class _TerminalBar:
    def __init__(self, display: RichProgress, number: int) -> None:
        self._display, self._number = display, number
        self._read, self._shown = -math.inf, ""

    def advance(self, n: int = 1, **shown: Shown) -> None:
        now = time.monotonic()
        if now - self._read >= _READ_EVERY:
            self._read, self._shown = now, _values(shown)
        self._display.update(self._number, advance=n, shown=self._shown)  # pyright: ignore[reportArgumentType]


class LineProgress:
    """A line of text about every ``every`` seconds, and one at the end of each outermost task."""

    def __init__(self, stream: TextIO, every: float = LINE_EVERY) -> None:
        self._stream, self._every = stream, every
        self._depth = 0
        self._last = time.monotonic()

    @contextmanager
    def task(self, name: str, total: int, *, done: int = 0) -> Iterator[Bar]:
        """See :class:`Progress`."""
        if self._depth == 0:
            self._last = time.monotonic()
        self._depth += 1
        bar = _LineBar(self, name, total, done)
        try:
            yield bar
            if self._depth == 1:
                self._write(bar.line(finished=True))
        finally:
            self._depth -= 1

    def note(self, text: str) -> None:
        """See :class:`Notes`."""
        print(text, file=self._stream, flush=True)

    def tick(self, bar: _LineBar) -> None:
        """Writes the state of ``bar`` if it is time to."""
        if time.monotonic() - self._last >= self._every:
            self._write(bar.line())

    def _write(self, line: str) -> None:
        self._last = time.monotonic()
        print(line, file=self._stream, flush=True)


class _LineBar:
    def __init__(self, owner: LineProgress, name: str, total: int, done: int) -> None:
        self._owner, self._name, self._total = owner, name, total
        self._first, self._done = done, done
        self._shown: dict[str, Shown] = {}
        self._began = time.monotonic()

    def advance(self, n: int = 1, **shown: Shown) -> None:
        self._done += n
        self._shown = shown
        self._owner.tick(self)

    def line(self, *, finished: bool = False) -> str:
        seconds = time.monotonic() - self._began
        rate = (self._done - self._first) / seconds if seconds > 0 else 0.0
        parts = [f"{self._name} {self._done}/{self._total}"]
        if rate > 0:
            parts.append(_rate(rate))
        if finished:
            parts.append(f"took {duration(seconds)}")
        elif rate > 0:
            parts.append(f"{duration((self._total - self._done) / rate)} left")
        if self._shown:
            parts.append(_values(self._shown))
        return ", ".join(parts)


def duration(seconds: float) -> str:
    """A span of time for people: ``0.42 s``, ``41 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _rate(per_second: float) -> str:
    if per_second >= 100:
        return f"{per_second:.0f}/s"
    if per_second >= 1:
        return f"{per_second:.3g}/s"
    return f"{1 / per_second:.3g} s each"


def _values(shown: Mapping[str, Shown]) -> str:
    return " ".join(f"{k} {v if isinstance(v, str) else format(float(v), '.4g')}" for k, v in shown.items())
