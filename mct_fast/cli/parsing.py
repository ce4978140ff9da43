"""From words to a command's arguments; wrong words become one line that says what to give instead."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import tyro

from mct_fast.cli.dialects import translate
from mct_fast.cli.help import described
from mct_fast.run.errors import InputError
from mct_fast.run.settings import check_choice, choices

T = TypeVar("T")


def parse(command: str, arguments: type[T], words: list[str], default: T | None = None) -> T:
    """``words`` as an instance of the dataclass ``arguments``; wrong words become an :class:`InputError` of one line.

    What ``words`` leave out is taken from ``default``, or from the defaults of the class.
    """
    known = dict(_options(arguments))
    flags = {name for name in known if f"no_{name}" in known}
    translation = translate(command, words, known, flags)
    _refuse(known, translation.words)
    if translation.note() is not None:
        print(f"mct-fast: {translation.note()}", file=sys.stderr)
    given: dict[str, Any] = {} if default is None else {"default": default}
    complaint = io.StringIO()
    # tyro ends the process on wrong words and hands out no reason: its hook for them is private, "may change or be removed in
    # any release" (tyro/_errors.py of 1.0). So its message is read, of which only missing arguments and values that do not
    # convert are left: names, choices and ranges were checked before. Its subcommands, for the same reason, are not used.
    try:
        with contextlib.redirect_stderr(complaint):
            settings = tyro.cli(
                arguments,
                prog=f"mct-fast {command}",
                args=translation.words,
                use_underscores=True,
                registry=described(),
                config=(tyro.conf.OmitArgPrefixes,),
                **given,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise _said_by_settings(stop) or InputError(_first_sentence(complaint.getvalue(), command)) from None
    _check_paths(settings)
    return settings


# What is looked at before parsing


def preset_in(words: Sequence[str]) -> Any:
    """The preset that ``words`` name, or None. It is what the other options default to."""
    from mct_fast.presets import preset

    chosen = value_of("preset", words)
    return None if chosen is None else preset(chosen)


def use_plugin(words: Sequence[str]) -> None:
    """Imports the module that ``words`` name with --plugin, so that what it registers is known.

    Raises:
        InputError: there is none, or it fails.
    """
    name = value_of("plugin", words)
    if name is None or name == "None":
        return
    if not all(part.isidentifier() for part in name.split(".")):
        raise InputError(f"plugin: {name!r} is no module's name; give that of a Python module, such as my_module")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        importlib.import_module(name)
    except InputError:
        raise
    except Exception as error:  # whatever code of the user's own raises
        raise InputError(f"plugin: importing {name} failed ({type(error).__name__}: {error}); mend it") from error


def value_of(option: str, words: Sequence[str]) -> str | None:
    """The last value that ``words`` give ``option``."""
    chosen = None
    for word, following in zip(words, [*words[1:], None], strict=False):
        if word == f"--{option}" and following is not None:
            chosen = following
        elif word.startswith(f"--{option}="):
            chosen = word.partition("=")[2]
    return chosen


# What is refused


def _refuse(known: dict[str, type], words: Sequence[str]) -> None:
    """Raises :class:`InputError` for an option that there is not, or a value that is none of an option's choices."""
    valued = False  # whether the word before was an option that may take this one
    for word, following in zip(words, (*words[1:], ""), strict=False):
        if word == "--":
            return
        if word == "" and not valued:
            raise InputError("an argument is empty; name a folder, '.' is the one you are in")
        valued = word.startswith("--") and "=" not in word
        if not word.startswith("--") or word == "--help":
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        if name not in known:
            raise InputError(f"unknown option --{name}{nearest(name, known, '--')}")
        given = value if equals else following
        if given == "" and _is_path(known[name], name) and (equals or (len(words) > 1 and following in words)):
            raise InputError(f"{name}: is empty; name a folder, '.' is the one you are in")
        if name in choices(known[name]):
            check_choice(known[name], name, given)


def _options(arguments: type) -> Iterator[tuple[str, type]]:
    """Every option with the dataclass that it is a field of."""
    for field in dataclasses.fields(arguments):
        if dataclasses.is_dataclass(field.default) and not isinstance(field.default, type):
            yield from _options(type(field.default))
        else:
            yield field.name, arguments
            if isinstance(field.default, bool):
                yield f"no_{field.name}", arguments


def _is_path(kind: type, name: str) -> bool:
    return name.endswith("_path") or "Path" in str(get_type_hints(kind).get(name, ""))


_LONGEST_PATH, _LONGEST_NAME = 4095, 255
_NO_CHARACTER = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")  # of the surrogates, 128 stand for bytes that are no UTF-8


def _check_paths(settings: Any) -> None:
    """Raises :class:`InputError` for a path that no system takes."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            _check_paths(value)
        elif isinstance(value, Path) or (isinstance(value, str) and field.name.endswith("_path")):
            if _NO_CHARACTER.search(str(value)):
                raise InputError(f"{field.name}: holds a character that no path does; give another")
            text = str(value).encode("utf-8", "surrogateescape")
            if len(text) > _LONGEST_PATH or max(map(len, text.split(b"/"))) > _LONGEST_NAME:
                raise InputError(
                    f"{field.name}: is too long; give at most {_LONGEST_PATH} bytes, {_LONGEST_NAME} a name"
                )


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """A hint at the known name most like ``name``, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f", did you mean {prefix}{close[0]}?" if close else ""


def _said_by_settings(error: BaseException | None) -> InputError | None:
    """What settings said against their values, behind tyro's exit."""
    while error is not None and not isinstance(error, InputError):
        error = error.__context__
    return error


def _first_sentence(complaint: str, command: str) -> str:
    """tyro's message without its frame: what stands before the first rule, on one line."""
    words: list[str] = []
    for line in complaint.splitlines():
        text = line.strip("│ ").strip()
        if text.startswith("╭"):
            continue
        if not text or text[0] in "─╰":
            break
        words += text.split()
    message = " ".join(words) or "wrong arguments"
    return f"{message[0].lower()}{message[1:]}; see mct-fast {command} --help"


def json_object(name: str, text: str | None) -> dict[str, Any] | None:
    """``text``, the value of option ``name``, as a JSON object."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: {text!r} is not JSON ({error}); see --help for an example") from error
    if not isinstance(value, dict):
        raise InputError(f'{name}: {text!r} is no JSON object; give {{"name": ...}}')
    return value
