"""Gaussian noise with DSA's interface: replayed from its seed, transposed exactly."""

from __future__ import annotations

import pytest
import torch

from mct_fast.data import DSA, Jitter, augmentation
from mct_fast.distill.sampling import draw_batches
from mct_fast.matching import match
from mct_fast.models import GRU, MLP, FunctionalModel
from mct_fast.run.errors import InputError
from mct_fast.tasks import Binary


def test_noise_replays_and_differs_between_draws() -> None:
    plan = Jitter(0.5).plan(2, 3, [4, 4, 2], (6,), torch.Generator().manual_seed(0))
    x = torch.zeros(2, 4, 6)
    once, again = plan.apply(0, x), plan.apply(0, x)
    assert torch.equal(once, again)
    assert not torch.equal(once[0], once[1])
    assert not torch.equal(once, plan.apply(1, x))
    assert plan.apply(2, torch.zeros(2, 2, 5, 6)).shape == (2, 2, 5, 6)  # series have another axis
    same = Jitter(0.5).plan(2, 3, [4, 4, 2], (6,), torch.Generator().manual_seed(0))
    assert torch.equal(same.apply(0, x), once)


def test_noise_has_the_asked_deviation() -> None:
    draw = Jitter(0.3).draw(4000, (5,), torch.Generator().manual_seed(1))
    noise = draw.apply(torch.zeros(4000, 5, dtype=torch.float64))
    assert float(noise.std()) == pytest.approx(0.3, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.01)


def test_the_transpose_is_that_of_the_linear_part() -> None:
    draw = Jitter(0.3).draw(3, (4,), torch.Generator().manual_seed(1))
    x, g = (torch.randn(3, 4, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (2, 3))
    linear = draw.apply(x) - draw.apply(torch.zeros_like(x))
    torch.testing.assert_close(linear, draw.linear(x), rtol=0, atol=1e-15)
    torch.testing.assert_close((linear * g).sum(), (x * draw.transpose(g)).sum())


@pytest.mark.parametrize(
    ("model", "shape"),
    [(MLP(1, 6, channels=5, image_size=1, num_classes=1), (5,)), (GRU(1, 4, channels=3, num_classes=1), (4, 3))],
    ids=["rows", "series"],
)
def test_exact_gradient_through_noise(model: torch.nn.Module, shape: tuple[int, ...]) -> None:
    g = torch.Generator().manual_seed(0)
    images = torch.randn(5, *shape, generator=g, dtype=torch.float64)
    labels = torch.tensor([0, 1, 1, 0, 1])
    start = torch.stack([FunctionalModel(model).init(s) for s in (0, 1)]).double()
    target = start + 0.05 * torch.randn(start.shape, generator=g, dtype=torch.float64)
    rows = torch.stack([draw_batches(5, 2, 4, g) for _ in range(2)])
    plan = Jitter(0.2).plan(2, 4, (rows[0] >= 0).sum(1).tolist(), shape, g)

    def run(adjoint: str) -> torch.Tensor:
        found = match(model, images, labels, 0.5, start, target, rows, task=Binary(), augment=plan, adjoint=adjoint)
        return found.grad_images

    exact, unrolled = run("exact"), run("unrolled")
    assert (exact - unrolled).norm() < 1e-9 * unrolled.norm()


def test_augmentation_is_chosen_by_the_kind_of_data() -> None:
    assert augmentation("images", True, "crop", 0.0) == DSA("crop")
    assert augmentation("images", False, "crop", 0.0) is None
    assert augmentation("table", True, "crop", 0.0) is None
    assert augmentation("series", True, "crop", 0.1) == Jitter(0.1)
    for kind, jitter in (("images", 0.1), ("table", -0.1), ("series", float("inf"))):
        with pytest.raises(InputError, match="^jitter: "):
            augmentation(kind, True, "crop", jitter)
    with pytest.raises(InputError, match="4 rows"):
        Jitter(0.1).draw(4, (3,), torch.Generator()).apply(torch.zeros(3, 3))
