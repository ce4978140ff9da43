import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import experts, machine, memory, ops, race, reference, vs_mtt
from bench.contestants import Outcome, judge
from bench.problem import Problem, Setting, build
from bench.reference import Learned
from mct_fast.ops import OPERATORS
from mct_fast.run.errors import InputError

TINY = ["--ipc", "1", "--depth", "2", "--width", "4", "--image-size", "8", "--num-classes", "3"]
TINY += ["--syn-steps", "2", "--seeds", "1"]
FAST = ["--only", "mct_fast", "unrolled", "--rounds", "2", "--budget", "0.1", "--no-memory"]


@pytest.fixture(autouse=True)
def _no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile takes longer than the rest of the suite: it fails to start here, as without a compiler."""

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler in this test")

    monkeypatch.setattr(torch, "compile", refuse)


def _head(document: dict[str, Any], kind: str) -> None:
    assert document["schema"] == "mct_fast.bench/1"
    assert document["kind"] == kind
    assert {"cpu", "cores", "threads", "instruction_set", "memory_bytes", "load_average"} <= document["machine"].keys()
    assert document["versions"]["torch"] == torch.__version__
    assert {"commit", "dirty", "date", "arguments", "compiled_kernels"} <= document.keys()


def test_a_tiny_race_runs_without_references(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "race.json"
    assert vs_mtt.main([*TINY, *FAST, "--json", str(out)]) == 0
    document = json.loads(out.read_text())
    _head(document, "vs_mtt")
    (result,) = document["results"]
    assert result["setting"]["syn_steps"] == 2
    (verdict,) = result["gate"]
    assert {a["name"] for a in verdict["agreements"]} == {"mct_fast", "unrolled"}
    assert all(a["passed"] and a["errors"]["images"] < 1e-3 for a in verdict["agreements"])
    rows = {row["name"]: row for row in result["rows"]}
    assert rows.keys() == {"mct_fast", "unrolled"}
    for row in rows.values():
        assert set(row["seconds"]) == {"median", "least", "greatest", "count"}
        assert len(row["samples"]) == row["seconds"]["count"] == 2
    assert result["speedup"] == {"against": "unrolled", "ratio": rows["unrolled"]["ratio"]}
    assert "one iteration" in capsys.readouterr().out


def test_peak_memory_is_taken_in_a_process_of_its_own() -> None:
    setting = Setting(syn_steps=2, batch_syn=3, depth=2, width=4, image_size=8, num_classes=3)
    found = memory.peak("mct_fast", setting, mtt=None, mct=None, threads=1)
    assert isinstance(found, memory.Peak)
    assert found.total > 10**7  # a process with PyTorch in it
    assert 0 <= found.above < found.total


def test_a_failed_gate_exits_with_1_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(problem: Problem, *, truncated: bool = False) -> Outcome:
        honest = judge(problem, truncated=truncated)
        return replace(honest, grad_images=honest.grad_images.flip(0))

    monkeypatch.setattr(race, "judge", wrong)
    assert vs_mtt.main([*TINY, *FAST, "--json", str(tmp_path / "race.json")]) == 1
    assert not (tmp_path / "race.json").exists()
    assert "nothing is timed" in capsys.readouterr().err


def test_accuracy_compares_with_float64(tmp_path: Path) -> None:
    out = tmp_path / "accuracy.json"
    assert vs_mtt.main([*TINY, "--accuracy", "--steps", "1", "3", "--json", str(out)]) in (0, 1)
    document = json.loads(out.read_text())
    _head(document, "accuracy")
    lines = document["results"]
    assert [(line["setting"]["weights"], line["setting"]["syn_steps"]) for line in lines] == [
        ("random", 1),
        ("random", 3),
        ("trained", 1),
        ("trained", 3),
    ]
    for line in lines:
        assert 0 < line["ours"][0] < 1e-4
        assert 0 < line["pytorch"][0] < 1e-4


def test_unknown_contestants_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert vs_mtt.main(["--only", "mtt"]) == 2
    assert "no contestant 'mtt'" in capsys.readouterr().err


def test_expert_training_is_checked_and_timed(tmp_path: Path) -> None:
    out = tmp_path / "experts.json"
    words = [
        "--images",
        "8",
        "--batch-train",
        "4",
        "--width",
        "4",
        "--parallel",
        "2",
        "--rounds",
        "2",
        "--json",
        str(out),
    ]
    assert experts.main(words) == 0
    document = json.loads(out.read_text())
    _head(document, "experts")
    assert document["gate"].keys() == {"mct_fast"}
    assert {row["name"]: row["experts"] for row in document["results"]} == {"mct_fast": 2, "plain": 1}


def test_a_wrong_training_step_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts, "check", lambda *_: {"mct_fast": 0.5})
    assert experts.main(["--images", "8", "--batch-train", "4", "--width", "4"]) == 1


def test_every_operator_has_its_row(tmp_path: Path) -> None:
    out = tmp_path / "ops.json"
    assert ops.main(["--shapes", "2", "2", "--width", "8", "--seconds", "0", "--json", str(out)]) == 0
    document = json.loads(out.read_text())
    _head(document, "ops")
    assert document["ceilings"]["copy"] > 0
    assert {row["op"] for row in document["results"]} == set(OPERATORS)
    for row in document["results"]:
        assert row["error"] <= 1e-4
        assert row["share"] > 0


def test_wrong_operators_are_not_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("mct_fast.ops.arc_length", lambda a, b, offsets: torch.ones(1, offsets.numel() - 1))
    assert ops.main(["--shapes", "1", "1", "--width", "8", "--only", "arc_length"]) == 1
    assert "arc_length" in capsys.readouterr().err


def test_a_clone_without_its_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no networks\.py"):
        reference.load(tmp_path)


def test_a_clone_is_imported_with_stand_ins_and_leaves_no_trace(tmp_path: Path) -> None:
    import importlib.util
    import sys

    (tmp_path / "networks.py").write_text("ConvNet = 'theirs'\n")
    (tmp_path / "reparam_module.py").write_text("ReparamModule = 'theirs'\n")
    (tmp_path / "utils.py").write_text(
        "from scipy.ndimage.interpolation import rotate\nimport wandb\nfrom networks import ConvNet\n"
    )
    before = set(sys.modules)
    clone = reference.load(tmp_path)
    assert clone.utils.ConvNet == clone.networks.ConvNet == "theirs"
    left = set(sys.modules) - before
    assert not left & {"networks", "utils", "reparam_module"}
    assert all(importlib.util.find_spec(name) for name in ("wandb",) if name in left)  # no stand-in stays
    assert str(tmp_path.resolve()) not in sys.path
    assert not (tmp_path / "__pycache__").exists()


class _Utils:
    """Stands for a reference's utils: no augmentation."""

    class ParamDiffAug:
        pass

    @staticmethod
    def DiffAugment(x: torch.Tensor, strategy: str, param: object) -> torch.Tensor:  # noqa: N802 (their name)
        return x


class _Reparam(torch.nn.Module):
    """Stands for their ReparamModule: a module as a function of one flat vector."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor, flat_param: torch.Tensor) -> torch.Tensor:
        shapes = {name: p.shape for name, p in self.module.named_parameters()}
        parts = flat_param.split([shape.numel() for shape in shapes.values()])
        values = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return torch.func.functional_call(self.module, values, (x,))


@pytest.mark.parametrize("truncated", [False, True], ids=["mtt", "mct"])
def test_the_references_loops_compute_our_gradients(truncated: bool) -> None:
    from types import SimpleNamespace

    setting = Setting(
        syn_steps=3, batch_syn=2, depth=2, width=4, image_size=8, num_classes=3, strategy="none", dtype="float64"
    )
    problem = build(setting)
    networks = SimpleNamespace(ConvNet=lambda *_, **__: setting.convnet())
    clone = reference.Clone(networks, SimpleNamespace(ReparamModule=_Reparam), _Utils)
    learned = Learned.of(problem, 1.0, 1e-9)
    run, scale = (reference.mct_iteration, 0.5) if truncated else (reference.mtt_iteration, 1.0)
    loss = run(clone, problem, learned)
    wanted: Outcome = judge(problem, truncated=truncated)
    torch.testing.assert_close(loss, wanted.loss)
    images, syn_lr = learned.images.grad, learned.syn_lr.grad
    assert images is not None
    torch.testing.assert_close(images, wanted.grad_images * scale)
    torch.testing.assert_close(syn_lr, wanted.grad_lr)
    torch.testing.assert_close(learned.images.detach(), problem.images - images)


def test_available_memory_is_no_more_than_there_is() -> None:
    assert 0 < machine.available_memory() <= machine.machine().memory_bytes
