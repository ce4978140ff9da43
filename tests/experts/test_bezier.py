"""The control point: its gradient by finite differences, the loss along the curve, the store, the command line."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from mct_fast.cli import main
from mct_fast.experts import bezier
from mct_fast.experts.bezier import BezierConfig, fit_bezier, fit_control
from mct_fast.models import MLP, FunctionalModel
from mct_fast.run.errors import InputError
from mct_fast.run.seeds import generator
from mct_fast.students import GenericStudent
from mct_fast.tasks import Binary, Classification
from mct_fast.trajectory import TrajectoryStore

FAST = BezierConfig(epochs=3, batch_train=256, lr=0.1)


def test_one_step_follows_the_chain_rule() -> None:
    model = FunctionalModel(MLP(1, 5, channels=4, image_size=1, num_classes=1))
    student = GenericStudent(model, Binary())
    g = torch.Generator().manual_seed(0)
    images = torch.randn(6, 4, generator=g, dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    starts = torch.stack([model.init(0), model.init(1)]).double()
    ends = starts + 0.3 * torch.randn(starts.shape, generator=g, dtype=torch.float64)
    config = BezierConfig(epochs=1, batch_train=6, lr=0.01)
    found = fit_control(student, starts, ends, images, labels, [generator(1, "a"), generator(1, "b")], config)
    for row, name in enumerate(("a", "b")):
        stream = generator(1, name)
        order = torch.randperm(6, generator=stream)
        s = torch.rand((), generator=stream, dtype=torch.float64)
        control = ((starts[row] + ends[row]) / 2).requires_grad_()
        theta = (1 - s) ** 2 * starts[row] + 2 * s * (1 - s) * control + s**2 * ends[row]
        loss = Binary().loss(model(theta, images[order]), labels[order])
        (grad,) = torch.autograd.grad(loss, control)
        torch.testing.assert_close(found[row], (control - 0.01 * grad).detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("outputs", [1, 3])
def test_losses_along_a_curve_take_no_gradient(outputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = FunctionalModel(MLP(1, 5, channels=4, image_size=1, num_classes=outputs))
    task = Binary() if outputs == 1 else Classification()
    student = GenericStudent(model, task)
    g = torch.Generator().manual_seed(0)
    images = torch.randn(7, 4, generator=g, dtype=torch.float64)
    labels = torch.randint(max(2, outputs), (7,), generator=g)
    starts, control, ends = (torch.stack([model.init(i), model.init(i + 9)]).double() for i in range(3))
    wanted = []
    for s in bezier.PROBES:
        theta = (1 - s) ** 2 * starts + 2 * s * (1 - s) * control + s**2 * ends
        wanted.append(student.gradient(theta, images.expand(2, 7, 4), labels.expand(2, 7))[0])
    monkeypatch.setattr(GenericStudent, "gradient", lambda *_: pytest.fail("a gradient"))
    found = bezier._loss_along(student, task, starts, control, ends, images, labels, chunk=3)
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-12, atol=0)


@pytest.fixture
def store(tiny_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_store, tmp_path / "experts"))


def test_the_loss_along_the_curve_falls(store: Path) -> None:
    fitted = fit_bezier(store, FAST)
    for i in range(len(fitted)):
        info = TrajectoryStore.open(store).entry(i)["control"]["info"]
        line, curve = (torch.tensor(info[name]) for name in ("loss_line", "loss_curve"))
        assert float(curve.mean()) < float(line.mean())
        assert fitted.trajectory(i, "bezier").epochs == 3


def test_curves_do_not_depend_on_their_company_and_are_fitted_once(store: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(store, tmp_path / "other"))
    together, alone = fit_bezier(store, FAST), fit_bezier(other, dataclasses.replace(FAST, parallel=1))
    for i in range(len(together)):
        a, b = (s.trajectory(i, "bezier").at(1.5) for s in (together, alone))
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    before = (store / "manifest.json").read_bytes()
    fit_bezier(store, FAST)
    assert (store / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"epochs": 0}, "epochs"),
        ({"batch_train": 0}, "batch_train"),
        ({"lr": 0.0}, "lr"),
        ({"parallel": 0}, "parallel"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_bad_settings_are_refused(tiny_store: Path, changed: dict, named: str) -> None:
    with pytest.raises(InputError, match=f"^{named}: "):
        fit_bezier(tiny_store, dataclasses.replace(FAST, **changed))


def test_a_fit_that_diverges_is_named(store: Path) -> None:
    with pytest.raises(InputError, match="^lr: the control point of expert"):
        fit_bezier(store, dataclasses.replace(FAST, lr=1e30))


def test_command_line(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bezier", str(store), "--epochs", "1"]) == 0
    said = capsys.readouterr().out
    assert "control points" in said
    assert "on the curve" in said
    assert main(["bezier", str(store / "nowhere")]) == 2
