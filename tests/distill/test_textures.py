"""Windows of a torus: against torch.roll, and their transpose against autograd, also through a whole match."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mct_fast.data import load_dataset
from mct_fast.data.windows import Windows, draw_windows
from mct_fast.distill.pixels import Canvases, Plain, Sheet
from mct_fast.distill.sampling import draw_batches
from mct_fast.matching import Matcher
from mct_fast.models import ConvNet, FunctionalModel
from mct_fast.tasks import Classification


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def canvases(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=stream(9), dtype=torch.float64)


@pytest.mark.parametrize("size", [(3, 4), (7, 5), (1, 1)], ids=str)
def test_a_window_wraps_around(size: tuple[int, int]) -> None:
    whole = canvases(3, 2, 7, 5)
    windows = draw_windows(torch.tensor([2, 0, 2, 1] * 5), whole.shape, size, stream())
    found = windows.cut(whole)
    assert found.shape == (20, 2, *size)
    for k, (row, (y, x)) in enumerate(zip(windows.rows.tolist(), windows.corners.tolist(), strict=True)):
        assert torch.equal(found[k], torch.roll(whole[row], (-y, -x), (1, 2))[:, : size[0], : size[1]])
    assert {tuple(corner) for corner in windows.corners.tolist()} > {tuple(windows.corners[0].tolist())}


def test_corners_are_anywhere_equally_often() -> None:
    windows = draw_windows(torch.zeros(3500, dtype=torch.int64), (1, 7, 5), (2, 2), stream())
    counts = torch.bincount(windows.corners[:, 0] * 5 + windows.corners[:, 1], minlength=35)
    assert int(counts.min()) > 60 and int(counts.max()) < 150  # 100 expected, standard deviation 10


def test_the_transpose_is_the_gradient() -> None:
    whole = canvases(3, 2, 6, 5).requires_grad_()
    windows = draw_windows(torch.tensor([0, 2, 2, 2, 1, 0]), whole.shape, (4, 3), stream(4))
    g = torch.randn(6, 2, 4, 3, generator=stream(5), dtype=torch.float64)
    (expected,) = torch.autograd.grad((windows.cut(whole) * g).sum(), whole)
    assert torch.allclose(windows.transpose(g, whole.shape), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(windows.transpose(g, whole.shape), windows.transpose(g, whole.shape))


def test_every_image_of_every_step_has_a_window_of_its_own() -> None:
    batches = torch.stack([draw_batches(5, 3, 4, stream(s)) for s in (1, 2)])
    sheet = Sheet.draw(batches, (5, 1, 8, 8), (4, 4), stream(3))
    assert torch.equal(sheet.batches < 0, batches < 0) and bool((batches < 0).any())
    numbers = sheet.batches[batches >= 0]
    assert sorted(numbers.tolist()) == list(range(20)) == list(range(len(sheet.windows.rows)))
    assert torch.equal(sheet.windows.rows[numbers], batches[batches >= 0])


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_a_match_on_windows_has_the_gradient_of_the_canvases(soft: bool) -> None:
    """The oracle rolls, crops, trains and measures in one autograd graph."""
    network = ConvNet(depth=1, width=3, channels=2, image_size=4, num_classes=3).double()
    model = FunctionalModel(network)
    start, target = model.init(1).double(), model.init(2).double()
    whole = canvases(4, 2, 8, 8).requires_grad_()
    hard = torch.tensor([0, 1, 2, 1])
    labels = (nn.functional.one_hot(hard, 3).double() * 0.7 + 0.1).requires_grad_() if soft else hard
    batches = draw_batches(4, 3, 3, stream(1))[None]
    windows, alpha, matcher = Sheet.draw(batches, whole.shape, (4, 4), stream(2)).windows, 0.3, Matcher(model)
    shown = Canvases(2).show(whole.detach(), labels.detach(), batches, stream(2))
    found = shown.back(matcher(shown.images, shown.labels, alpha, start, target, shown.batches))

    theta, used = start.clone().requires_grad_(), 0
    for rows in batches[0]:
        chosen = rows[rows >= 0].tolist()
        x = [
            torch.roll(whole[row], tuple(-c for c in windows.corners[used + i].tolist()), (1, 2))[:, :4, :4]
            for i, row in enumerate(chosen)
        ]
        used += len(chosen)
        loss = nn.functional.cross_entropy(model(theta, torch.stack(x)), labels[chosen])
        theta = theta - alpha * torch.autograd.grad(loss, theta, create_graph=True)[0]
    expected = (theta - target).square().sum() / (start - target).square().sum()
    wanted = torch.autograd.grad(expected, [whole, labels] if soft else [whole])
    assert torch.allclose(found.loss[0], expected, rtol=1e-10)
    assert torch.allclose(found.grad_images, wanted[0], rtol=1e-7, atol=1e-11)
    assert (found.grad_labels is not None) == soft
    if found.grad_labels is not None:
        assert torch.allclose(found.grad_labels, wanted[1], rtol=1e-7, atol=1e-11)


def test_canvases_are_tiled_with_different_real_images() -> None:
    train = load_dataset("digits").train
    made, labels = Canvases(3).real(train, 2, Classification(), stream())
    assert made.shape == (20, 1, 24, 24) and labels.tolist() == [row // 2 for row in range(20)]
    pool = {image.numpy().tobytes(): int(label) for image, label in zip(train.images, train.labels, strict=True)}
    seen = set()
    for i, canvas in enumerate(made):
        for y in range(3):
            for x in range(3):
                tile = canvas[:, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8].contiguous().numpy().tobytes()
                assert pool[tile] == i // 2
                seen.add(tile)
    assert len(seen) > 170  # two scans of one digit may be equal to the bit
    assert isinstance(Windows(torch.tensor([0]), torch.tensor([[0, 0]]), (8, 8)).cut(made), Tensor)


def test_one_tile_is_the_real_image() -> None:
    train = load_dataset("digits").train
    one, plain = (layout.real(train, 3, Classification(), stream(6)) for layout in (Canvases(1), Plain()))
    assert torch.equal(one[0], plain[0]) and torch.equal(one[1], plain[1])
    assert Canvases(3).shape((1, 8, 8)) == (1, 24, 24) and Plain().shape((1, 8, 8)) == (1, 8, 8)
