"""Initial parameters from a seed: the generator against its published vectors, the floats against plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from mct_fast.models import MLP, ConvNet, FunctionalModel, build_zoo
from mct_fast.models.init import Constant, Uniform, draw, init_plan, philox4x32, plan_from_json
from mct_fast.run.errors import InputError

# Known answers of Random123 (kat_vectors, philox4x32 with 10 rounds): counter, key, words.
KNOWN = {
    "zeros": ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    "ones": ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    "pi": (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
}


def plain_philox(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Philox4x32-10 with Python's whole numbers, from the paper."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c3 ^ k1, p0 & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


@pytest.mark.parametrize("case", KNOWN)
def test_philox_gives_the_published_words(case: str) -> None:
    counter, key, expected = KNOWN[case]
    words = philox4x32([np.array([c], np.uint64) for c in counter], key)
    assert tuple(int(word[0]) for word in words) == expected == plain_philox(counter, key)


@pytest.mark.parametrize("seed", [0, 7, 2**40 + 3, 2**63 - 1, 2**64 - 1])
def test_every_float_is_the_documented_one(seed: int) -> None:
    shapes = [(3, 5, 3), (), (7,), (2, 2), (0, 4)]
    plan = (Uniform(15), Uniform(4), Constant(1.0), Uniform(9), Uniform(4))
    expected = []
    for layer, (fill, shape) in enumerate(zip(plan, shapes, strict=True)):
        for e in range(math.prod(shape)):
            if isinstance(fill, Constant):
                expected.append(np.float32(fill.value))
                continue
            block, key = e // 4, (seed % 2**32, seed // 2**32)
            word = plain_philox((block % 2**32, block // 2**32, layer, 0), key)[e % 4]
            step = np.float32(np.float32(1 / math.sqrt(fill.fan_in)) * np.float32(2**-24))
            expected.append(np.float32(2 * (word // 256) + 1 - 2**24) * step)
    assert draw(plan, shapes, seed).numpy().tobytes() == np.array(expected, np.float32).tobytes()


def test_pieces_of_the_work_leave_no_seam() -> None:
    # More blocks than are drawn at a time; each tensor's numbers depend on its place and the seed alone.
    long = draw((Uniform(1), Uniform(1)), [(70_001,), (50_003,)], 5)
    assert torch.equal(draw((Uniform(1),), [(40_002,)], 5), long[:40_002])
    assert torch.equal(draw((Constant(0), Uniform(1)), [(3,), (33_001,)], 5)[3:], long[70_001:103_002])
    assert len(torch.unique(long)) > 119_000


@pytest.mark.parametrize(
    "make",
    [
        lambda: ConvNet(2, 64, 3, 8, 10),
        lambda: ConvNet(1, 64, 3, 8, 10, norm="layer"),
        lambda: ConvNet(1, 64, 3, 8, 10, norm="batch"),
        lambda: MLP(2, 64, 3, 8, 10, norm="layer"),
        lambda: nn.Sequential(nn.Conv1d(4, 64, 5, groups=2, bias=False), nn.ConvTranspose1d(64, 6, 3), nn.Linear(9, 3)),
        lambda: nn.GRU(5, 37, num_layers=2),
    ],
    ids=["convnet", "layer", "batch", "mlp", "mixed", "gru"],
)
def test_the_distribution_is_pytorchs(make) -> None:
    model = FunctionalModel(make())
    drawn = model.unflatten(torch.stack([model.init(seed) for seed in range(40)]))
    torch.manual_seed(0)
    modules = [make() for _ in range(40)]
    for layer, values in enumerate(drawn):
        theirs = torch.stack([list(module.parameters())[layer].detach() for module in modules]).flatten().double()
        ours = values.flatten().double()
        if theirs.std() == 0:
            assert torch.equal(ours, theirs)
            continue
        # Two-sample Kolmogorov-Smirnov; both reach the same ends.
        grid = torch.cat([ours, theirs]).sort().values
        steps = [torch.searchsorted(x.sort().values, grid, right=True) / len(x) for x in (ours, theirs)]
        assert (steps[0] - steps[1]).abs().max() < 2.2 * math.sqrt(2 / len(ours)), model.names[layer]
        bound = theirs.abs().max()
        assert ours.abs().max() <= bound * (1 + 50 / len(ours)) and ours.abs().max() > bound * (1 - 50 / len(ours))
    rows = torch.stack([model.init(seed) for seed in range(2)])
    uniform = torch.cat([piece.flatten(1) for piece in model.unflatten(rows) if piece.std() > 0], dim=1).double()
    assert torch.corrcoef(uniform)[0, 1].abs() < 5 / math.sqrt(uniform.shape[1])


class Own(nn.Linear):
    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class Parent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.inner.weight)


def test_modules_that_begin_otherwise_have_no_plan() -> None:
    for module in (Own(2, 2), Parent(), nn.Embedding(3, 2), nn.MultiheadAttention(4, 2), nn.LSTM(3, 4, proj_size=2)):
        assert init_plan(module) is None
    assert not FunctionalModel(Own(2, 2)).init(3).any()


def test_the_zoo_has_plans_and_tied_tensors_count_once() -> None:
    assert init_plan(build_zoo("AlexNet", 3, 32, 10)) is not None
    shared = nn.Linear(4, 4)
    assert init_plan(nn.Sequential(shared, shared, nn.Linear(4, 2))) == (Uniform(4),) * 4


def test_plans_travel_as_json() -> None:
    plan = init_plan(ConvNet(1, 4, 3, 8, 2))
    assert plan is not None and plan_from_json([fill.to_json() for fill in plan]) == plan
    assert plan == (Uniform(27), Uniform(27), Constant(1.0), Constant(0.0), Uniform(64), Uniform(64))
    for wrong in ([{"fan": 3}], [3], [{"constant": "x"}]):
        with pytest.raises(InputError, match="^init: "):
            plan_from_json(wrong)
    with pytest.raises(InputError, match="^init: "):
        draw(plan, [(3,)], 0)
