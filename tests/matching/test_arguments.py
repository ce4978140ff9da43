"""What a match is handed: tensors that hold no dense numbers, other things, and modes that change what is computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mct_fast.data import load_dataset, register_dataset
from mct_fast.distilled import DistilledDataset
from mct_fast.evaluate import EvalConfig, evaluate, evaluate_random_real
from mct_fast.experts import train_experts
from mct_fast.experts.bezier import BezierConfig, fit_bezier
from mct_fast.matching import match
from mct_fast.models import ConvNet, FunctionalModel
from mct_fast.run.errors import InputError
from mct_fast.trajectory import PathPoint
from tests.conftest import TINY_EXPERTS

MODEL = ConvNet(depth=1, width=3, channels=1, image_size=8, num_classes=4)


def arguments() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    start = FunctionalModel(MODEL).init(0)
    return {
        "images": torch.randn(4, 1, 8, 8, generator=generator),
        "labels": torch.softmax(torch.randn(4, 4, generator=generator), 1),
        "syn_lr": torch.tensor(0.1),
        "start": start,
        "target": start + 1,
        "batches": torch.tensor([[0, 1], [2, 3]]),
    }


WITHOUT_NUMBERS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "meta": (lambda t: t.to("meta"), "lies on the meta device"),
    "sparse": (lambda t: t.reshape(t.shape or (1,)).to_sparse(), "has the layout sparse_coo"),
    "csr": (lambda t: torch.ones(4, 4, dtype=t.dtype).to_sparse_csr(), "has the layout sparse_csr"),
    "mkldnn": (lambda t: t.float().reshape(t.shape or (1,)).to_mkldnn(), "has the layout mkldnn"),
    "nested": (lambda t: torch.nested.nested_tensor([t.flatten()[:1], t.flatten()[:2]]), "has the layout nested"),
    "quantised": (lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8), "is quantised"),
    "text": (lambda t: "x", ""),
    "nothing": (lambda t: None, ""),
}


@pytest.mark.filterwarnings("ignore")  # PyTorch's, that such tensors are new
@pytest.mark.parametrize("kind", WITHOUT_NUMBERS)
@pytest.mark.parametrize("argument", arguments())
def test_a_tensor_without_numbers_is_refused_by_name(argument: str, kind: str) -> None:
    make, said = WITHOUT_NUMBERS[kind]
    given = arguments()
    with pytest.raises(InputError, match=f"^{argument}: .*{said}") as caught:
        match(MODEL, **{**given, argument: make(given[argument])})
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("kind", ["meta", "sparse"])
def test_a_point_of_a_path_without_numbers_is_refused(kind: str) -> None:
    given = arguments()
    model = WITHOUT_NUMBERS[kind][0](given["start"])
    shapes = FunctionalModel(MODEL).shapes
    given["target"] = PathPoint((model,), torch.ones(1, len(shapes), dtype=torch.float64), shapes)
    with pytest.raises(InputError, match="^target: "):
        match(MODEL, **given)


def test_all_on_the_meta_device_is_refused() -> None:
    with pytest.raises(InputError, match="^images: lies on the meta device"):
        match(MODEL, **{name: value.to("meta") for name, value in arguments().items()})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": torch.tensor(1)}, "labels: have shape"),
        ({"syn_lr": 0.1 + 1j}, "syn_lr: "),
        ({"syn_lr": torch.tensor(0.1 + 1j)}, "syn_lr: "),
        ({"start": [0.1, 0.2]}, "start: is neither"),
        ({"augment": "flip"}, "augment: is a str"),
        ({"adjoint": 3}, "adjoint: unknown strategy 3"),
    ],
)
def test_other_things_are_refused_by_name(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=f"^{said}"):
        match(MODEL, **{**arguments(), **change})
    with pytest.raises(InputError, match="^model: is a str"):
        match("ConvNet", **arguments())


def test_a_step_size_keeps_its_precision() -> None:
    given = {name: value.double() if value.is_floating_point() else value for name, value in arguments().items()}
    given["syn_lr"] = 0.1
    tensor = {**given, "syn_lr": torch.tensor(0.1, dtype=torch.float64)}
    assert torch.equal(match(MODEL, **given).grad_images, match(MODEL, **tensor).grad_images)


# Modes of PyTorch


MODES = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference_mode": torch.inference_mode,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("model", [MODEL, nn.Sequential(nn.Flatten(), nn.Linear(64, 4))], ids=["operators", "autograd"])
@pytest.mark.parametrize("adjoint", ["exact", "unrolled", "truncated"])
def test_a_match_is_refused_in_a_mode_that_changes_it(mode: str, model: nn.Module, adjoint: str) -> None:
    given = arguments()
    start = FunctionalModel(model).init(0)
    given |= {"start": start, "target": start + 1}
    with MODES[mode](), pytest.raises(InputError, match=f"^torch.{mode}: "):
        match(model, **given, adjoint=adjoint)


@pytest.mark.parametrize("mode", MODES)
def test_training_is_refused_in_a_mode_that_changes_it(
    mode: str, tiny_store: Path, tiny_run: Path, tmp_path: Path
) -> None:
    digits, config = load_dataset("digits"), EvalConfig(num_eval=1, epoch_eval_train=1)
    distilled = DistilledDataset.load(tiny_run / "distilled")
    with MODES[mode]():
        for work in (
            lambda: train_experts(TINY_EXPERTS, tmp_path / "store", digits),
            lambda: fit_bezier(tiny_store, BezierConfig(epochs=1)),
            lambda: evaluate(distilled, digits, config),
            lambda: evaluate(distilled, digits, config, model=nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))),
            lambda: evaluate_random_real(1, digits, config),
        ):  # fmt: skip
            with pytest.raises(InputError, match=f"^torch.{mode}: "):
                work()


# Data of the user's own


@pytest.mark.parametrize("kind", ["meta", "sparse", "quantised"])
def test_data_without_numbers_are_refused(kind: str, tiny_run: Path) -> None:
    make = WITHOUT_NUMBERS[kind][0]
    images, labels = torch.rand(4, 1, 4, 4), torch.arange(4) % 2
    with pytest.raises(InputError, match="^train: "):
        register_dataset("without numbers", (make(images), labels), (images, labels))
    distilled = DistilledDataset.load(tiny_run / "distilled")
    for name in ("images", "labels"):
        with pytest.raises(InputError, match=f"^{name}: "):
            replace(distilled, **{name: make(getattr(distilled, name))})
