"""A batch taken in pieces gives the gradient of the whole batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mct_fast.data import DSA
from mct_fast.distill.sampling import draw_batches
from mct_fast.matching import Matcher, MatchResult
from mct_fast.matching.adjoint import Exact, Unrolled
from mct_fast.models import MLP, ConvNet, FunctionalModel
from mct_fast.run.errors import InputError
from mct_fast.students import GenericStudent, MicroBatched, student_for
from mct_fast.tasks import Classification

MODELS = {
    "convnet": ConvNet(depth=2, width=6, channels=3, image_size=9, num_classes=4),
    "mlp": MLP(depth=2, width=7, channels=3, image_size=9, num_classes=4),
    "layer-norm": ConvNet(depth=1, width=4, channels=3, image_size=9, num_classes=4, norm="layer"),
}


def matched(model: Any, *, soft: bool = False, adjoint: Any = "exact", micro_batch: int | None = None) -> MatchResult:
    g = torch.Generator().manual_seed(1)
    images = torch.randn(8, 3, 9, 9, generator=g, dtype=torch.float64)
    labels = torch.randn(8, 4, generator=g, dtype=torch.float64).softmax(1) if soft else torch.arange(8) % 4
    start = torch.stack([FunctionalModel(model).init(s) for s in range(2)]).double()
    target = start + 0.05 * torch.randn(start.shape, generator=g, dtype=torch.float64)
    rows = torch.stack([draw_batches(8, 5, 4, g) for _ in range(2)])
    plan = DSA().plan(2, 4, (rows[0] >= 0).sum(1).tolist(), (3, 9, 9), g)
    matcher = Matcher(model, adjoint=adjoint, micro_batch=micro_batch)
    return matcher(images, labels, 0.05, start, target, rows, augment=plan)


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("name", MODELS)
def test_pieces_add_up_to_the_whole(name: str, soft: bool, micro_batch: int) -> None:
    whole = matched(MODELS[name], soft=soft)
    split = matched(MODELS[name], soft=soft, micro_batch=micro_batch)
    for field in ("loss", "grad_images", "grad_lr", "grad_labels", "final_params"):
        found, wanted = getattr(split, field), getattr(whole, field)
        assert (found is None) == (wanted is None)
        if wanted is not None:
            assert (found - wanted).norm() <= 1e-12 * wanted.norm(), field


def test_kept_activations_and_the_truncated_gradient_come_in_pieces_too() -> None:
    model = MODELS["convnet"]
    for adjoint in (Exact(keep_bytes=1 << 30), Exact(keep_bytes=20_000), "truncated"):
        whole, split = (matched(model, adjoint=adjoint, micro_batch=size) for size in (None, 2))
        assert (split.grad_images - whole.grad_images).norm() <= 1e-12 * whole.grad_images.norm()


def test_no_more_images_than_asked_for_are_in_the_network() -> None:
    model = FunctionalModel(MODELS["convnet"])
    seen: list[int] = []

    class Watching(GenericStudent):
        def gradient(self, params: Any, x: Any, y: Any) -> Any:
            seen.append(x.shape[1])
            return super().gradient(params, x, y)

    student = MicroBatched(Watching(model, Classification()), 3)
    params = model.init(0)[None]
    student.gradient(params, torch.zeros(1, 8, 3, 9, 9), torch.zeros(1, 8, dtype=torch.int64))
    assert seen == [3, 3, 2]


def test_a_piece_needs_less_memory() -> None:
    """The tape is what a step keeps: of the largest piece it is as much smaller as the piece is."""
    model = FunctionalModel(MODELS["convnet"])
    student = student_for(model)
    params, y = model.init(0)[None], torch.zeros(1, 8, dtype=torch.int64)
    whole = student.gradient_keeping(params, torch.zeros(1, 8, 3, 9, 9), y)[2]
    piece = student.gradient_keeping(params, torch.zeros(1, 2, 3, 9, 9), y[:, :2])[2]
    if whole is not None and piece is not None:  # the generic student keeps none
        assert piece.nbytes * 4 == whole.nbytes


def test_what_cannot_be_split_is_refused() -> None:
    batch_norm = ConvNet(depth=1, width=4, channels=3, image_size=9, num_classes=4, norm="batch")
    with pytest.raises(InputError, match="micro_batch: batch norm"):
        Matcher(batch_norm, micro_batch=2)
    with pytest.raises(InputError, match="micro_batch: the unrolled"):
        Matcher(MODELS["convnet"], adjoint=Unrolled(), micro_batch=2)
    with pytest.raises(InputError, match="micro_batch: got 0"):
        Matcher(MODELS["convnet"], micro_batch=0)
