"""DSA against its formulas written out plainly, and its transposes against inner products, in float64."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from mct_fast import ops
from mct_fast.data import operations
from mct_fast.data.augment import DSA, AugmentDraw, AugmentPlan
from mct_fast.run.errors import InputError
from mct_fast.settings.names import AUGMENTATIONS

OPERATIONS = AUGMENTATIONS[1:]
SHAPES = [(3, 8, 8), (1, 9, 9), (3, 13, 13), (1, 28, 28), (3, 32, 32), (3, 9, 14), (1, 13, 8)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(batch: int, shape: tuple[int, int, int], seed: int = 1) -> Tensor:
    return torch.randn(batch, *shape, generator=generator(seed), dtype=torch.float64)


def bilinear(plane: Tensor, row: float, column: float) -> float:
    total = 0.0
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < plane.shape[0] and 0 <= j < plane.shape[1]:
                total += (1 - abs(row - i)) * (1 - abs(column - j)) * float(plane[i, j])
    return total


def plain(kind: str, image: Tensor, p: list[float]) -> Tensor:
    """One image (C, H, W) through the sequential formulas of the paper's operations, pixel by pixel."""
    channels, height, width = image.shape
    if kind == "color":
        brighter = image + p[0]
        grey = brighter.mean(0, keepdim=True)
        saturated = (brighter - grey) * p[1] + grey
        return (saturated - saturated.mean()) * p[2] + saturated.mean()
    out = torch.zeros_like(image)
    h, w = (height - 1) / 2, (width - 1) / 2
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                y, x = (i - h) / h, (j - w) / w  # from -1 to 1
                if kind == "crop":
                    row, column = i + int(p[0]), j + int(p[1])
                    inside = 0 <= row < height and 0 <= column < width
                    out[c, i, j] = image[c, row, column] if inside else 0
                elif kind == "cutout":
                    out[c, i, j] = 0 if p[0] <= i < p[1] and p[2] <= j < p[3] else image[c, i, j]
                elif kind == "flip":
                    out[c, i, j] = image[c, i, width - 1 - j] if p[0] else image[c, i, j]
                elif kind == "scale":
                    out[c, i, j] = bilinear(image[c], p[0] * y * h + h, p[1] * x * w + w)
                else:
                    row, column = p[1] * x + p[0] * y, p[0] * x - p[1] * y
                    out[c, i, j] = bilinear(image[c], row * h + h, column * w + w)
    return out


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 9, 9), (3, 13, 13), (3, 9, 14)], ids=str)
@pytest.mark.parametrize("kind", OPERATIONS)
def test_equals_the_formulas(kind: str, shape: tuple[int, int, int]) -> None:
    draw = DSA(kind).draw(3, shape, generator(3))
    x = images(3, shape)
    expected = torch.stack([plain(kind, x[n], draw.params[n].double().tolist()) for n in range(3)])
    torch.testing.assert_close(draw.apply(x), expected, rtol=0, atol=1e-12)
    assert not torch.equal(expected, x)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_transpose_is_the_adjoint_of_the_linear_part(kind: str, shape: tuple[int, int, int]) -> None:
    draw = DSA(kind).draw(5, shape, generator(4))
    x, g = images(5, shape, 1), images(5, shape, 2)
    linear = draw.apply(x) - draw.apply(torch.zeros_like(x))
    torch.testing.assert_close(draw.linear(x), linear, rtol=0, atol=1e-13)
    forward, backward = (linear * g).sum((1, 2, 3)), (x * draw.transpose(g)).sum((1, 2, 3))
    torch.testing.assert_close(forward, backward, rtol=1e-12, atol=1e-12)
    twice = draw.apply(2 * x + g) - draw.apply(torch.zeros_like(x))
    torch.testing.assert_close(twice, 2 * draw.linear(x) + draw.linear(g), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", OPERATIONS)
def test_transpose_equals_autograd_through_the_operation(kind: str) -> None:
    draw = DSA(kind).draw(4, (3, 9, 13), generator(5))
    x, g = images(4, (3, 9, 13)).requires_grad_(), images(4, (3, 9, 13), 2)
    operation = operations.OPERATIONS[kind][0]  # the bare PyTorch operations, differentiated by PyTorch
    (expected,) = torch.autograd.grad(operation(x, draw.params.double()), x, g)
    torch.testing.assert_close(draw.transpose(g), expected, rtol=0, atol=1e-13)
    (through_apply,) = torch.autograd.grad(draw.apply(x), x, g)
    assert torch.equal(through_apply, draw.transpose(g))


@pytest.mark.parametrize("shape", [*SHAPES, (1, 5, 40)], ids=str)
@pytest.mark.parametrize("degrees", [15.0, 180.0])
def test_gather_form_of_the_rotation_transpose(shape: tuple[int, int, int], degrees: float) -> None:
    draw = DSA("rotate", ratio_rotate=degrees).draw(6, shape, generator(6))
    g, params = images(6, shape), draw.params.double()
    gathered = operations.rotate_transpose_gather(g, params)
    torch.testing.assert_close(gathered, draw.transpose(g), rtol=0, atol=1e-12)


def test_any_order_of_derivative_and_functional_transforms() -> None:
    draw = DSA("rotate").draw(2, (1, 8, 8), generator(7))
    x, v = images(2, (1, 8, 8)), images(2, (1, 8, 8), 2)
    assert torch.autograd.gradgradcheck(draw.apply, (x.clone().requires_grad_(),))
    tangent = torch.func.jvp(draw.apply, (x,), (v,))[1]
    torch.testing.assert_close(tangent, draw.linear(v), rtol=0, atol=0)
    gradient = torch.func.grad(lambda y: (draw.apply(y) * v).sum())(x)
    torch.testing.assert_close(gradient, draw.transpose(v), rtol=0, atol=0)


def test_float32_images_give_the_float64_result_up_to_rounding() -> None:
    for kind in OPERATIONS:
        draw = DSA(kind).draw(4, (3, 32, 32), generator(8))
        x = images(4, (3, 32, 32))
        torch.testing.assert_close(draw.apply(x.float()).double(), draw.apply(x), rtol=0, atol=2e-4)


def test_parameters_lie_in_the_ranges_of_the_field() -> None:
    n, shape = 4000, (3, 32, 28)

    def table(kind: str) -> Tensor:
        return DSA(kind).draw(n, shape, generator(9)).params

    def spans(column: Tensor, low: float, high: float) -> None:
        assert low <= float(column.min()) and float(column.max()) <= high
        assert float(column.max() - column.min()) > 0.99 * (high - low)

    color = table("color")
    spans(color[:, 0], -0.5, 0.5)
    spans(color[:, 1], 0.0, 2.0)
    spans(color[:, 2], 0.5, 1.5)
    crop = table("crop")
    assert sorted(set(crop[:, 0].tolist())) == list(range(-4, 5))
    assert sorted(set(crop[:, 1].tolist())) == list(range(-4, 5))
    cutout = table("cutout")
    assert set((cutout[:, 1] - cutout[:, 0]).tolist()) == set(range(8, 17))  # 16 rows, half of them outside at most
    assert cutout[:, 1].max() == 32 and cutout[:, 3].max() == 28 and cutout.min() == 0
    assert 0.45 < float(table("flip")[:, 0].mean()) < 0.55
    scale = table("scale")
    spans(scale[:, 0], 1 / 1.2, 1.2)
    spans(scale[:, 1], 1 / 1.2, 1.2)
    assert not torch.equal(scale[:, 0], scale[:, 1])
    rotate = table("rotate")
    spans(torch.rad2deg(torch.atan2(rotate[:, 1], rotate[:, 0])), -15.0, 15.0)


def test_explicit_parameters_build_the_same_draw() -> None:
    drawn = DSA("cutout").draw(3, (3, 32, 32), generator(10))
    g = generator(10)
    torch.randint(1, (1,), generator=g)
    rows, columns = torch.randint(0, 33, (3,), generator=g), torch.randint(0, 33, (3,), generator=g)
    built = AugmentDraw.cutout(rows, columns, (16, 16), (32, 32))
    assert torch.equal(built.params, drawn.params)
    angle = torch.tensor([0.1, -0.2])
    kind, params = AugmentDraw.rotate(angle).table()
    assert kind == AUGMENTATIONS.index("rotate")
    torch.testing.assert_close(params[:, :2], torch.stack((angle.cos(), angle.sin()), 1))


def test_a_plan_replays_and_gives_each_student_its_own_draw() -> None:
    dsa = DSA()
    first = dsa.plan(3, 4, [5, 5, 2, 5], (3, 8, 8), generator(11))
    again = dsa.plan(3, 4, [5, 5, 2, 5], (3, 8, 8), generator(11))
    x, g = torch.randn(3, 2, 3, 8, 8).double(), torch.randn(3, 2, 3, 8, 8).double()
    assert torch.equal(first.apply(2, x), again.apply(2, x))
    each = torch.stack([first.draws[s][2].apply(x[s]) for s in range(3)])
    torch.testing.assert_close(first.apply(2, x), each, rtol=1e-12, atol=1e-12)  # one kernel for all students
    zero = first.apply(2, torch.zeros_like(x))
    inner = ((first.apply(2, x) - zero) * g).sum(), (x * first.transpose(2, g)).sum()
    torch.testing.assert_close(*inner, rtol=1e-12, atol=1e-12)
    kinds, params = first.table(2)
    assert kinds.tolist() == [AUGMENTATIONS.index(first.draws[s][2].kind) for s in range(3)] and params.shape == (
        3,
        2,
        4,
    )
    assert {draw.kind for row in dsa.plan(4, 30, 1, (3, 8, 8), generator()).draws for draw in row} == set(OPERATIONS)


def test_the_identity_strategy() -> None:
    x = images(2, (3, 8, 8))
    for strategy in ("none", "None", ""):
        assert torch.equal(DSA(strategy).draw(2, (3, 8, 8), generator()).apply(x), x)


def test_same_bits_twice_and_with_another_thread_count() -> None:
    plan = DSA().plan(1, 24, 6, (3, 32, 32), generator(12))
    x = torch.randn(1, 6, 3, 32, 32, generator=generator())
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append([f(step, x) for step in range(24) for f in (plan.apply, plan.transpose)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_bad_input_names_the_remedy() -> None:
    with pytest.raises(InputError, match=r"colour.*use color, crop"):
        DSA("colour_crop")
    with pytest.raises(InputError, match="drawn for 2 images"):
        DSA().draw(2, (3, 8, 8), generator()).apply(torch.zeros(3, 3, 8, 8))
    with pytest.raises(InputError, match="one size a step"):
        DSA().plan(1, 3, [1, 2], (3, 8, 8), generator())
    with pytest.raises(InputError, match="kind 'zoom' is unknown"):
        AugmentDraw("zoom", torch.zeros(1, 4))
    with pytest.raises(InputError, match=r"\(b, 4\) float32"):
        AugmentDraw("flip", torch.zeros(1, 3))
    with pytest.raises(InputError, match="at least one student"):
        AugmentPlan(())
    with pytest.raises(dataclasses.FrozenInstanceError):
        DSA().prob_flip = 1.0  # type: ignore[misc] (that it is refused is what is tested)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", OPERATIONS)
def test_cuda_agrees_and_repeats_its_bits(kind: str) -> None:
    draw = DSA(kind).draw(16, (3, 32, 32), generator(13))
    x = images(16, (3, 32, 32))
    for run in (draw.apply, draw.transpose):
        torch.testing.assert_close(run(x.cuda()).cpu(), run(x), rtol=0, atol=1e-12)
        assert torch.equal(run(x.float().cuda()), run(x.float().cuda()))


@pytest.mark.parametrize("available", [True, False])
def test_a_plan_takes_the_operator_where_the_images_device_has_one(
    available: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, served = [], []
    monkeypatch.setattr(ops, "kernels_available", lambda device: asked.append(device) or available)
    monkeypatch.setattr(ops, "dsa", lambda *args: served.append(args) or ops.OPERATORS["dsa"](*args))
    plan = DSA("scale").plan(2, 1, 3, (3, 8, 8), torch.Generator().manual_seed(1))
    x = torch.rand(2, 3, 3, 8, 8)
    torch.testing.assert_close(plan.apply(0, x)[1], plan.draws[1][0].apply(x[1]))
    assert asked == [x.device]
    assert len(served) == available
