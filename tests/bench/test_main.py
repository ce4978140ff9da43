"""``python -m bench`` knows every benchmark."""

from __future__ import annotations

import importlib
from dataclasses import asdict, fields

import pytest

from bench import __main__ as command
from bench import tables
from bench.machine import ROOT


def test_every_benchmark_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 0
    listed = {line.split()[2].removeprefix("bench."): line for line in capsys.readouterr().out.splitlines()}
    files = [*(ROOT / "bench").glob("*.py"), *(ROOT / "bench").glob("*/__main__.py")]
    runnable = {
        file.stem for file in files if "\ndef main(" in file.read_text() and file.parent / "__main__.py" != file
    }
    runnable |= {file.parent.name for file in files if file.name == "__main__.py" and file.parent.name != "bench"}
    assert set(listed) == runnable
    assert all(len(line.split(maxsplit=3)[3]) > 20 for line in listed.values())


def test_another_word_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["nonsense"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", ["vs_mtt", "experts", "ops", "storage", "clinical", "gpu"])
def test_a_document_does_not_say_where_a_machine_keeps_things(name: str) -> None:
    kind = importlib.import_module(f"bench.{name}").Arguments
    places = {field.name: f"/home/someone/{field.name}" for field in fields(kind) if str(field.type) == "str | None"}
    assert places
    found = tables.document(name, asdict(kind(**places)), {}, [])["arguments"]
    assert {key: found[key] for key in places} == {key: key for key in places}
