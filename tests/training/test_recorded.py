"""Recorded steps of training: the bits of the steps as they are, by a recorder that runs anew; on a GPU by real graphs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mct_fast.students.recording
from mct_fast import ops
from mct_fast.data import DSA, Jitter, load_dataset, random_real
from mct_fast.distilled import DistilledDataset
from mct_fast.evaluate import EvalConfig, evaluate
from mct_fast.experts import train_experts
from mct_fast.models import ConvNet, FunctionalModel, build_model
from mct_fast.run.seeds import generator
from mct_fast.students import student_for
from mct_fast.students.recording import Launches
from mct_fast.tasks import Classification
from mct_fast.training import GSAM, SGD, FlatStack, Schedule, build_stack, train_epochs
from tests.again import Again, Watched
from tests.conftest import TINY_EXPERTS

kernels = pytest.mark.skipif(not ops.extension_loaded(), reason="the compiled extension is not installed")
MODEL = {"name": "ConvNet", "depth": 1, "width": 16, "channels": 1, "image_size": 8, "num_classes": 3}


def streams(seed: int, *names: str) -> list[torch.Generator]:
    return [generator(seed, name) for name in names]


def trained(recorder: Any, device: str = "cpu", **case: Any) -> tuple[list[Tensor], Tensor]:
    """The losses of all epochs, and the outputs at the end, of two networks; 11 images in batches of 4, 4 and 3."""
    g = torch.Generator().manual_seed(5)
    shared = case.get("shared", True)
    images = torch.randn(*(() if shared else (2,)), 11, 1, 8, 8, generator=g).to(device)
    labels = torch.randint(3, images.shape[: 1 if shared else 2], generator=g).to(device)
    if case.get("soft"):
        labels = torch.nn.functional.one_hot(labels, 3).float() * 0.7 + 0.1
    functional = FunctionalModel(build_model(MODEL))
    params = torch.stack([functional.init(seed) for seed in (1, 2)]).to(device)
    rule, descent = SGD(case.get("momentum", 0.9), 5e-4), case.get("descent")
    stack = FlatStack(student_for(functional, Classification(), device), params, rule, descent)
    losses = [
        loss
        for _, loss in train_epochs(
            stack, images, labels, Schedule(4, 4, 0.1, decay_after=2), streams(3, "a", "b"), shared=shared,
            augment=case.get("augment"), recorder=recorder,
        )
    ]  # fmt: skip
    return losses, stack.logits(images if shared else images[0])


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "dsa": {"augment": DSA()},
    "own-images": {"shared": False, "augment": DSA()},
    "soft-labels": {"soft": True},
    "gsam": {"descent": GSAM(0.05, 0.3), "augment": DSA()},
    "no-momentum": {"momentum": 0.0},
}


def same(found: tuple[list[Tensor], Tensor], wanted: tuple[list[Tensor], Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(found[0], wanted[0], strict=True))
    assert torch.equal(found[1], wanted[1])


@kernels
@pytest.mark.parametrize("case", CASES)
def test_recorded_steps_have_the_bits_of_the_steps(case: str) -> None:
    recorder = Again()
    same(trained(recorder, **CASES[case]), trained(None, **CASES[case]))
    assert (recorder.recorded, recorder.replayed) == (2, 12), "one recording a batch size, a replay a step"


@kernels
def test_noise_is_not_recorded() -> None:
    recorder = Again()
    same(trained(recorder, augment=Jitter(0.1)), trained(None, augment=Jitter(0.1)))
    assert recorder.recorded == 0


@kernels
def test_a_step_that_cannot_be_recorded_is_launched(caplog: pytest.LogCaptureFixture) -> None:
    class Refusing(Again):
        def record(self, run: Any) -> Any:
            run()  # as far as a warm-up gets, which has moved the parameters
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    same(trained(Refusing(), augment=DSA()), trained(None, augment=DSA()))
    assert [r.message for r in caplog.records] == 2 * [
        "mct_fast: training steps cannot be recorded as a CUDA graph (operation not permitted when stream is capturing); "
        "they are launched one by one"
    ]


def test_networks_with_state_beside_their_parameters_are_not_recorded() -> None:
    recorder = Again()
    stack = build_stack(lambda: build_model({**MODEL, "norm": "batch"}), [1], Classification(), SGD(), "cpu")
    images, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    for _ in train_epochs(stack, images, labels, Schedule(1, 4, 0.1), streams(0, "a"), augment=None, recorder=recorder):
        pass
    assert recorder.recorded == 0


@kernels
@pytest.mark.parametrize("graphs", [True, False])
def test_experts_and_evaluations_hear_whether_to_record(
    graphs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Again()
    monkeypatch.setattr(mct_fast.students.recording, "CudaGraphs", lambda: recorder)
    digits = load_dataset("digits")
    experts = replace(TINY_EXPERTS, num_experts=1, train_epochs=1, cuda_graphs=graphs)
    store = train_experts(experts, tmp_path / "store", digits)
    assert (recorder.recorded > 0) == graphs
    before = recorder.recorded
    images, labels = random_real(digits.train, 1, generator(0, "test"))
    distilled = DistilledDataset(images, labels, 0.01, digits.transform, digits.class_names, {})
    config = EvalConfig(num_eval=1, epoch_eval_train=1, cuda_graphs=graphs)
    evaluate(distilled, digits, config, model=store.manifest["model"])
    assert (recorder.recorded > before) == graphs


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_graphs_have_the_bits_of_the_launches(case: str) -> None:
    graphs = Watched()
    same(trained(graphs, "cuda", **CASES[case]), trained(Launches(), "cuda", **CASES[case]))
    assert graphs.recorded == 2


@pytest.mark.gpu
def test_reading_nothing_while_training() -> None:
    """With the host forbidden to wait for the device, an epoch of recorded steps goes through."""
    functional = FunctionalModel(ConvNet(depth=1, width=16, channels=1, image_size=8, num_classes=3))
    stack = FlatStack(student_for(functional, Classification(), "cuda"), functional.init(1)[None].cuda(), SGD(0.9))
    images, labels = torch.randn(8, 1, 8, 8, device="cuda"), torch.arange(8, device="cuda") % 3
    epochs = train_epochs(stack, images, labels, Schedule(3, 4, 0.1), streams(0, "a"), augment=DSA())
    next(epochs)  # records
    torch.cuda.set_sync_debug_mode("error")
    try:
        next(epochs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
