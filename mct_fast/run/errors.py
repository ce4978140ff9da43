"""The one exception type that a user of the package is meant to see."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: a single line that names the offending argument and the remedy.

    The command line prints the message without a traceback and exits non-zero.
    """


class PeerError(RuntimeError):
    """Another process of the same run has failed, or disagrees.  The command line prints the message alone."""
