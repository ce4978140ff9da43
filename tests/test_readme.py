"""What the README tells a reader to type has to work."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from mct_fast import cli
from mct_fast.cli import commands

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CLINICAL = (ROOT / "docs" / "clinical.md").read_text(encoding="utf-8")
COMMANDS, OF_TABLES = (re.findall(r"^    (mct-fast .*)$", text, flags=re.MULTILINE) for text in (README, CLINICAL))


def test_the_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})
    accuracy = re.match(r"([\d.]+) ± [\d.]+ % \(test, ConvNet, n=5\)", capsys.readouterr().out)
    assert accuracy is not None
    assert float(accuracy[1]) > 50
    assert (tmp_path / "digits.png").is_file()


def test_there_are_commands_to_try() -> None:
    assert len(COMMANDS) == 7 and len(OF_TABLES) >= 15


@pytest.mark.parametrize("command", COMMANDS + OF_TABLES, ids=lambda command: " ".join(command.split()[1:6]))
def test_commands_are_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command is parsed by the real parser; the work behind it is left out."""
    given = []

    class Parsed(Exception):  # noqa: N818 (no error: it ends the command once it is parsed)
        pass

    parse = commands.parse

    def stop(*arguments: object) -> None:
        given.append(parse(*arguments))
        raise Parsed

    monkeypatch.setattr(commands, "parse", stop)
    with pytest.raises(Parsed):
        cli.main(shlex.split(command)[1:])
    assert len(given) == 1


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    named = set(re.findall(r"^    make (\w+)", README, flags=re.MULTILINE))
    assert named == {"demo", "test"}
    assert named <= targets


def test_files_that_are_named_exist() -> None:
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name in re.findall(r"(?:`|\()((?:docs|mct_fast|tests)/[\w./-]+)[`)]", README + contributing):
        assert (ROOT / name).exists(), name


def test_ci_runs_the_readmes_test_command() -> None:
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").rstrip().endswith("\nmake test")
