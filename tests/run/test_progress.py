from __future__ import annotations

import io

import pytest

from mct_fast.run import progress


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.042, "0.042 s"),
        (9.4, "9.4 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


def test_lines_come_when_it_is_time_and_at_the_end_of_the_outermost_task(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    shown = progress.LineProgress(stream, every=10.0)
    with shown.task("distil", 10, done=2) as bar:
        for _ in range(4):
            now[0] += 3
            bar.advance(1, loss=0.5)
        with shown.task("evaluate", 5) as inner:
            inner.advance(5)
    assert stream.getvalue().splitlines() == [
        "distil 6/10, 3 s each, 12 s left, loss 0.5",
        "distil 6/10, 3 s each, took 12 s, loss 0.5",
    ]


@pytest.mark.parametrize(
    ("per_second", "text"), [(0.5, "2 s each"), (0.004, "250 s each"), (1.5, "1.5/s"), (1334.2, "1334/s")]
)
def test_the_rate_is_given_in_plain_digits(per_second: float, text: str) -> None:
    assert progress._rate(per_second) == text


def test_no_closing_line_for_a_task_that_failed() -> None:
    stream = io.StringIO()
    with pytest.raises(KeyError), progress.LineProgress(stream).task("work", 3):
        raise KeyError
    assert stream.getvalue() == ""


def test_a_terminal_gets_nested_bars() -> None:
    stream = io.StringIO()
    shown = progress.TerminalProgress(stream)
    for _ in range(2):  # a second task opens a display of its own
        with shown.task("outer", 2) as outer:
            with shown.task("inner", 3) as inner:
                inner.advance(3, loss=0.25)
            outer.advance(2, note="ready")
    assert stream.getvalue().count("outer") == 2
    assert "2/2" in stream.getvalue()


def test_the_stream_decides() -> None:
    assert isinstance(progress.for_stream(io.StringIO()), progress.LineProgress)


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.quiet().task("work", 3) as bar:
        bar.advance(3, loss=1.0)
    assert capsys.readouterr() == ("", "")
