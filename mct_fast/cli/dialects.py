"""Names that other codes of the field have for our options: MTT, MCT, FTD, TESLA, DATM.

Their published command lines are understood; one line says what was taken as what.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mct_fast.run.errors import InputError

_RENAMED = {
    "experts": {"buffer_path": "out", "res": "image_size", "alpha": "gsam_alpha", "rho_max": "rho"},
    "distill": {
        "buffer_path": "trajectories",
        "Iteration": "iterations",
        "ema_decay": "ema",
        "res": "image_size",
        "lr_y": "lr_label",
        "threshold": "max_loss",
        "current_max_start_epoch": "initial_start_epoch",
        "expansion_end_epoch": "growth_iterations",
    },
    "compress": {"num_interpolation": "waypoints"},
}
"""Of each command what other codes call an option, and what it is called here."""

_LEFT_OUT = {
    "experts": {"batch_real", "save_interval", "rho_min"},
    "distill": {
        "batch_real", "lr_init", "load_all", "force_save", "convex_ver", "eval_mode", "canvas_samples", "canvas_size",
        "Momentum_y", "skip_first_eva", "project", "device_ids",
    },
    "compress": set(),
}  # fmt: skip
"""What plays no part here: how their code reads, logs and evaluates, or what it never reads itself."""

_VALUES = {("pix_init", "samples_predicted_correctly"): "real"}
"""Values of other codes, and what comes nearest here."""

_SAME_ONLY = {"eval_mode": "S", "canvas_samples": "1"}
"""What is left out only if it says what is done here anyway."""


@dataclass
class Translation:
    """Words in our names, with what was taken as what."""

    words: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def note(self) -> str | None:
        """What was taken, in a line; None: everything as it was given."""
        parts = [", ".join(self.taken), f"without {', '.join(self.left_out)}" if self.left_out else ""]
        said = "; ".join(part for part in parts if part)
        return f"taken {said}" if said else None


def translate(command: str, words: Sequence[str], known: Collection[str], flags: Collection[str]) -> Translation:
    """``words`` after ``command`` in the names of ``known`` options, of which ``flags`` take no value.

    Raises:
        InputError: a name that is known asks for what is not done here.
    """
    renamed, left_out, result = _RENAMED.get(command, {}), _LEFT_OUT.get(command, ()), Translation()
    options = list(_options(words))
    meant = _meant(command, {name: value for name, value, _ in options if name is not None})
    for name, value, given in options:
        ours = "" if name is None else name.replace("-", "_")
        if ours in meant:
            result.words += meant[ours]
            result.taken += [f"{' '.join(given)} as {' '.join(meant[ours])}"] if meant[ours] else []
        elif ours in known or name is None:
            _keep(result, ours, value, given, flag=ours in flags)
        elif ours == "cfg" and command == "distill":
            inner = translate(command, _words_of(value), known, flags)
            result.words += inner.words
            result.taken += [f"--cfg {value}", *inner.taken]
            result.left_out += inner.left_out
        elif ours in left_out:
            if ours in _SAME_ONLY and value != _SAME_ONLY[ours]:
                raise InputError(f"{ours}: {value!r} is not known here; leave it out, or give {_SAME_ONLY[ours]}")
            result.left_out.append(f"--{name}")
        elif ours in renamed:
            result.words += [f"--{renamed[ours]}={value}"] if value is not None else [f"--{renamed[ours]}"]
            result.taken.append(f"--{name} as --{renamed[ours]}")
        else:
            result.words += given
    return result


def _meant(command: str, said: Mapping[str, str | None]) -> dict[str, list[str]]:
    """Our words for options that mean something only beside others, or as a whole."""
    meant: dict[str, list[str]] = {}
    if command in ("experts", "distill") and said.get("dataset") == "ImageNet" and said.get("subset") is not None:
        meant |= {"dataset": [], "subset": [f"--dataset={said['subset']}"]}
    if command == "distill" and "texture" in said:
        meant["texture"] = [f"--canvas={said.get('canvas_size') or 2}"]
    if command == "distill" and "teacher_label" in said:
        meant["teacher_label"] = ["--labels=expert"]
    if said.get("rho_max") != said.get("rho_min"):
        raise InputError("rho_max: a radius that changes is not known here; give rho_min the same value, or --rho")
    return meant


def _keep(result: Translation, name: str, value: str | None, given: list[str], *, flag: bool) -> None:
    """One of our own options; ``--zca True`` is a flag, and a value of another code's may have another name here."""
    if flag and value in ("True", "False"):
        result.words.append(f"--{name}" if value == "True" else f"--no_{name}")
    elif value is not None and (name, value) in _VALUES:
        result.words.append(f"--{name}={_VALUES[name, value]}")
        result.taken.append(f"--{name} {value} as {_VALUES[name, value]}")
    else:
        result.words += given


def _options(words: Sequence[str]) -> Iterator[tuple[str | None, str | None, list[str]]]:
    """``(name, value, words)`` of each option; a word that belongs to none has no name."""
    position = 0
    while position < len(words):
        word, after = words[position], words[position + 1 : position + 2]
        if word == "--":
            yield None, None, list(words[position:])
            return
        if not word.startswith("--"):
            yield None, None, [word]
        elif "=" in word:
            name, _, value = word[2:].partition("=")
            yield name, value, [word]
        elif after and not after[0].startswith("--"):
            yield word[2:], after[0], [word, *after]
            position += 1
        else:
            yield word[2:], None, [word]
        position += 1


def _words_of(file: str | None) -> list[str]:
    """The lines ``name: value`` of DATM's configurations as words."""
    try:
        lines = Path(file or "").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(
            f"cfg: cannot read {file} ({getattr(error, 'strerror', None) or error}); check the path"
        ) from error
    pairs = [line.partition("#")[0].partition(":") for line in lines if line.partition("#")[0].strip()]
    wrong = [name for name, colon, _ in pairs if not colon or name != name.strip()]
    if wrong:
        raise InputError(f"cfg: {file} has a line that is no 'name: value' ({wrong[0].strip()}); mend it")
    # There, device is a list of GPUs; here it is one, and taken by itself.
    names = {"device": "device_ids"}
    return [f"--{names.get(name, name)}={value.strip()}" for name, _, value in pairs]
