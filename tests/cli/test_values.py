"""Random values for every option of every command: the work begins, or one line and status 2."""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mct_fast.cli import commands, main
from mct_fast.cli.parsing import _options
from mct_fast.data.registry import REGISTRY
from mct_fast.data.sources import RawDataset, ReadOptions, read_digits
from mct_fast.distilled import DistilledDataset
from mct_fast.distilled.exchange import export

EACH = 1 if settings.default.derandomize else 5  # pyright: ignore[reportOptionalMemberAccess]
"""Values an example: 10,000 with --hypothesis-profile=thorough, a few with every run."""
VALUES = (
    "", " ", "0", "-0", "1", "2", "-1", "1.5", "nan", "inf", "-inf", "1e300", "1e400", "1e-320", "2147483647", "2147483648",
    "99999999999999999999", "9" * 5000, "1_0", "0x10", "١", "None", "True", "x", "--", "-", "-x", "/", ".", "..", "/dev/null",
    "/proc/self/mem", "~nobody", "nul\0l", "\ud800", "\udcff", "±", "$$", "$\\frac{$", "a" * 300, "a" * 5000, "a/" * 3000,
    "n" * 100_000, "[]", "{}", '{"name": 3}', '{"name": "MLP", "depth": "x"}', "[" * 100_000, "1 2", "1,2", "cpu:3", "mps",
    "xpu", "meta", "cuda", "cuda:7", "cuda:-1", "cpu:-2", "test", "val", "digits", "folder", "folder:", "folder:x", "table",
    "series", "cifar10", "ConvNetD99999", "ConvNetW999999999", "ConvNetW0", "ResNet18", "GRU", "TCN", "MLP,ConvNut",
    "color_color", "batch", "group", "classification", "binary", "multilabel", "int4", "discrete", "bezier", "mct-cifar10-ipc1",
)  # fmt: skip


@functools.cache
def _read() -> RawDataset:
    return read_digits(ReadOptions())


def digits(options: ReadOptions) -> RawDataset:
    """The digits, read once: parsing them says nothing about values."""
    return _read()


class BeganError(Exception):
    """The settings were accepted: the work, with its bar, begins."""


class Beginning:
    @contextmanager
    def task(self, name: str, total: int, *, done: int = 0) -> Iterator[Any]:
        raise BeganError(name)
        yield


class FoundError(Exception):
    pass


def replaced(patch: pytest.MonkeyPatch, name: str, by: Any) -> None:
    """``name`` in every module of commands that has it."""
    for module in [module for path, module in sys.modules.items() if path.startswith("mct_fast.cli.")]:
        if hasattr(module, name):
            patch.setattr(module, name, by)


def options_of(command: str) -> list[str]:
    """Every option of ``command`` and of its settings; positional arguments among them, which are refused by that name."""

    def found(_: str, arguments: type, *__: object) -> None:
        raise FoundError(sorted(name for name, _ in _options(arguments)))

    with pytest.MonkeyPatch.context() as patch:
        replaced(patch, "parse", found)
        with pytest.raises(FoundError) as caught:
            commands.COMMANDS[command]([])
    return caught.value.args[0]


@pytest.fixture(scope="module")
def place(tiny_store: Path, tiny_run: Path) -> dict[str, list[str]]:
    """Of each command words that it accepts."""
    buffer = tiny_run.parent / "replay_buffer_0.pt"
    torch.save([[[torch.ones(10, 64), torch.ones(10)]] * 3], buffer)
    out = str(tiny_run.parent / "begun")
    (made,) = export(DistilledDataset.load(tiny_run / "distilled"), "npz", tiny_run.parent / "exported")
    return {
        "experts": ["--out", out, "--num-experts", "1", "--depth", "1", "--width", "4"],
        "compress": [str(buffer), "--out", out, "--dataset", "digits"],
        "bezier": [str(tiny_store)],
        "distill": [
            "--trajectories", str(tiny_store), "--out", out, "--syn-steps", "2", "--expert-epochs", "1",
            "--max-start-epoch", "1",
        ],
        "sweep": [
            "--trajectories", str(tiny_store), "--out", out, "--syn-steps", "2", "--expert-epochs", "1",
            "--max-start-epoch", "1", "--vary", "seed=0,1",
        ],
        "docs": [],
        "export": [str(tiny_run), "--to", "npz", "--out", out],
        "import": [str(made), "--dataset", "digits", "--out", out],
        "evaluate": [str(tiny_run)],
        "ranking": [str(tiny_run)],
        "report": [str(tiny_run)],
        "inspect": [str(tiny_store)],
        "presets": [],
        "demo": ["--out", out],
    }  # fmt: skip


def test_every_command_is_tried(place: dict[str, list[str]]) -> None:
    assert set(place) == set(commands.COMMANDS)


@given(seed=st.integers(0, 2**63))
def test_any_value_of_any_option_is_taken_or_refused_in_one_line(
    seed: int,
    place: dict[str, list[str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tally: Callable[[str, str], None],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MCT_FAST_CACHE", str(tmp_path / "cache"))
    replaced(monkeypatch, "progress_bars", lambda communicator=None: Beginning())
    monkeypatch.setattr("mct_fast.view.report.write_report", lambda path: path)  # says nothing about values
    monkeypatch.setitem(REGISTRY._builtin, "digits", digits)
    chance = random.Random(seed)
    for _ in range(EACH):
        command = chance.choice([*place, "experts", "distill", "evaluate", "compress", "inspect"])
        name = chance.choice([*options_of(command), ""])
        value = chance.choice(VALUES) if chance.random() < 0.9 else str(chance.randrange(-(10**6), 10**6) / 16)
        words = place[command]
        if name == "":  # a positional argument, or one too many
            words = [value, *words[1:]] if words and not words[0].startswith("-") else [*words, value]
        elif chance.random() < 0.5:
            words = [*words, f"--{name}={value}"]
        else:
            words = [*words, f"--{name}", value]
        said = [word[:40] for word in (command, *words)]
        try:
            status = main([command, *words])
        except BeganError:
            status = 0
        err = capsys.readouterr().err
        assert status in (0, 2), said
        if status == 2:
            assert err.endswith("\n") and err.count("mct-fast: error: ") == 1, (said, err)
            assert err.splitlines()[-1].startswith("mct-fast: error: ") and len(err) < 8000, (said, err)
        tally("values of options", "refused" if status == 2 else "taken")
