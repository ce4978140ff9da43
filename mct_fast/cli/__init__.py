"""The command line: ``mct-fast COMMAND``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from mct_fast import __version__
from mct_fast.cli.commands import COMMANDS, SPLIT
from mct_fast.cli.parsing import nearest
from mct_fast.cli.session import Interrupted, process, processes, speak, spoken_log
from mct_fast.run.errors import InputError, PeerError


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command line ``words`` (default: those of the process).

    Returns the exit status: 0; 2 after wrong input, explained in one line on stderr; 1 where another process of the same
    run has failed; 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if words is None else words)
    speak(sys.stdout)
    try:
        with spoken_log():
            return _dispatch(words)
    except InputError as error:
        print(f"mct-fast: {process()}error: {error}", file=sys.stderr)
        return 2
    except PeerError as error:
        print(f"mct-fast: {process()}error: {error}", file=sys.stderr)
        if processes() > 1:
            from mct_fast.run.distributed import leave

            leave(1)
        return 1
    except Interrupted as interrupted:
        print(f"\nmct-fast: interrupted; {interrupted}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("\nmct-fast: interrupted", file=sys.stderr)
        return 130
    except (MemoryError, RuntimeError) as error:
        from mct_fast.run.memory import shortage

        short = shortage(error)
        if short is None:
            raise
        print(f"mct-fast: {process()}error: {short}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # of files that change under our hands, of names that a system does not take
        named = f"{error.filename}: " if error.filename is not None else ""
        print(
            f"mct-fast: {process()}error: {InputError(f'{named}{error.strerror or error}; check it')}", file=sys.stderr
        )
        return 2


def _dispatch(words: list[str]) -> int:
    if words and words[0] == "help":
        words = [*words[1:2], "--help"]
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        print(f"mct-fast {__version__}")
        return 0
    command = COMMANDS.get(words[0])
    if command is None:
        hint = nearest(words[0], COMMANDS)
        raise InputError(f"unknown command {words[0]!r}{hint}; the commands are {', '.join(COMMANDS)}")
    if processes() > 1 and command not in SPLIT:
        raise InputError(f"{words[0]} runs in one process: start it without torchrun")
    try:
        command(words[1:])
    except SystemExit as stop:  # tyro, after printing a help text
        return int(stop.code or 0)
    return 0


def _overview() -> str:
    commands = "\n".join(f"  {name:<10} {(run.__doc__ or '').splitlines()[0]}" for name, run in COMMANDS.items())
    return (
        "usage: mct-fast COMMAND [OPTIONS]\n\n"
        "Distils a dataset into a few synthetic images by matching the training paths of experts.\n\n"
        f"commands:\n{commands}\n\n"
        "mct-fast COMMAND --help (or help COMMAND) lists a command's options; mct-fast --version prints the version."
    )
