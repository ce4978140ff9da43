"""The one exception type that a user of the package is meant to see."""

from __future__ import annotations

_LONGEST = 2000  # characters: a message is for people, whatever was passed


class InputError(ValueError):
    """Bad input: a single line that names the offending argument and the remedy.

    The command line prints the message without a traceback and exits non-zero.
    """

    def __init__(self, message: str) -> None:
        text = printable(message)
        super().__init__(text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}")


class PeerError(RuntimeError):
    """Another process of the same run has failed, or disagrees.  The command line prints the message alone."""


def printable(text: str) -> str:
    """``text`` on one line: what no terminal shows, or UTF-8 cannot say, is escaped. Names of files may hold any byte."""
    if text.isprintable():
        return text
    whole = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in whole)
