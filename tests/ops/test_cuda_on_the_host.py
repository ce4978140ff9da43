"""The CUDA kernels' own lines, compiled by a C++ compiler and run on the processor thread by thread, against the reference.

Checks indices, barriers and sums without a GPU; see cuda_on_the_host/cuda_runtime.h for what it cannot show.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mct_fast.ops import reference

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = Path(__file__).parent / "cuda_on_the_host"
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}
SUFFIX = {torch.float64: "f64", torch.float32: "f32"}
WHOLE = 227 << 10  # shared memory of a block on an H100


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    target = tmp_path_factory.mktemp("cuda") / "on_the_host.so"
    sources = [STAND_IN / "entry.cpp", ROOT / "csrc/cuda/blocks.cu", ROOT / "csrc/cuda/matching.cu"]
    options = ["-std=c++17", "-O1", "-fPIC", "-shared", f"-I{STAND_IN}", f"-I{ROOT / 'csrc'}", "-x", "c++"]
    done = subprocess.run([compiler, *options, *map(str, sources), "-o", str(target)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return ctypes.CDLL(str(target))


class Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in "SBHWC"] + [("pool", ctypes.c_bool)]


def pointer(t: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if t is None else t.data_ptr())


def parameter(t: Tensor | None) -> list[Any]:
    return [pointer(t), ctypes.c_int64(0 if t is None else t.stride(0))]


class Device:
    """The launchers with the arguments of `mct_fast.ops`; outputs begin as NaN."""

    def __init__(self, library: ctypes.CDLL, shared: int) -> None:
        self._library = library
        library.set_shared_limit(shared)

    def _call(self, op: str, dtype: torch.dtype, *args: Any) -> None:
        function = getattr(self._library, f"{op}_{SUFFIX[dtype]}")
        function.restype = ctypes.c_char_p
        error = function(*args)
        assert error is None, error

    @staticmethod
    def _fresh(like: Tensor, *shapes: tuple[int, ...]) -> list[Tensor]:
        return [like.new_full(shape, torch.nan) for shape in shapes]

    @staticmethod
    def _shape(z: Tensor, pool: bool) -> Any:
        return ctypes.byref(Shape(*z.shape, pool))

    @staticmethod
    def _sizes(z: Tensor, pool: bool) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        s, b, h, w, c = z.shape
        by = 2 if pool else 1
        return (s, b, h // by, w // by, c), (s, b, c), (s, c), (2, s, b, c)

    def block_forward(self, z: Tensor, gamma: Any, beta: Any, eps: float, pool: bool) -> tuple[Tensor, ...]:
        pooled, statistic, _, _ = self._sizes(z, pool)
        outputs = self._fresh(z, pooled, statistic, statistic)
        self._call(
            "block_forward", z.dtype, self._shape(z, pool), pointer(z), *parameter(gamma), *parameter(beta),
            ctypes.c_double(eps), *map(pointer, outputs),
        )  # fmt: skip
        return tuple(outputs)

    def block_backward(
        self, gp: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, gamma: Any, beta: Any, pool: bool
    ) -> tuple[Tensor, ...]:
        _, _, channel, parts = self._sizes(z, pool)
        outputs = self._fresh(z, tuple(z.shape), channel, channel, parts)
        self._call(
            "block_backward", z.dtype, self._shape(z, pool), *map(pointer, (gp, z, mean, rstd)), *parameter(gamma),
            *parameter(beta), *map(pointer, outputs),
        )  # fmt: skip
        return tuple(outputs[:-1])

    def block_tangent(
        self, z: Tensor, zdot: Tensor, mean: Tensor, rstd: Tensor, gamma: Any, beta: Any, gammadot: Any, betadot: Any,
        pool: bool,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        pooled, statistic, _, _ = self._sizes(z, pool)
        outputs = self._fresh(z, pooled, statistic, statistic)
        parameters = [x for p in (gamma, beta, gammadot, betadot) for x in parameter(p)]
        self._call(
            "block_tangent", z.dtype, self._shape(z, pool), *map(pointer, (z, zdot, mean, rstd)), *parameters,
            *map(pointer, outputs),
        )  # fmt: skip
        return tuple(outputs)

    def block_tangent_backward(
        self, gp: Tensor, gpdot: Tensor, z: Tensor, zdot: Tensor, mean: Tensor, rstd: Tensor, m1: Tensor, m2: Tensor,
        gamma: Any, beta: Any, gammadot: Any, betadot: Any, pool: bool,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        _, _, channel, parts = self._sizes(z, pool)
        outputs = self._fresh(z, tuple(z.shape), tuple(z.shape), channel, channel, parts)
        parameters = [x for p in (gamma, beta, gammadot) for x in parameter(p)]
        self._call(
            "block_tangent_backward", z.dtype, self._shape(z, pool),
            *map(pointer, (gp, gpdot, z, zdot, mean, rstd, m1, m2)), *parameters, *map(pointer, outputs),
        )  # fmt: skip
        return tuple(outputs[:-1])

    def matching_loss(
        self, theta: Tensor, origin: Tensor, end: Tensor, frac: Tensor, offsets: Tensor, denom: Tensor
    ) -> tuple[Tensor, ...]:
        students, size = theta.shape
        self._library.matching_parts.restype = ctypes.c_int64
        count = self._library.matching_parts(ctypes.c_int64(size))
        loss, grad = self._fresh(theta, (students,), (students, size))
        parts = torch.full((students, count), torch.nan, dtype=torch.float64)
        parameters = [x for p in (theta, origin, end, frac) for x in parameter(p)]
        self._call(
            "matching_loss", theta.dtype, ctypes.c_int64(students), ctypes.c_int64(size), *parameters,
            *map(pointer, (offsets, denom, loss, grad, parts)),
        )  # fmt: skip
        return loss, grad


def narrow(dims: Any, dtype: torch.dtype) -> int:
    """Room for two planes of four channels: less than the kernels would like to have."""
    number = torch.empty((), dtype=dtype).element_size()
    return 4 * 512 * number + 2 * number * dims.H * dims.W * 4


SHARED: dict[str, Callable[[Any, torch.dtype], int]] = {
    "planes-in-shared-memory": lambda dims, dtype: WHOLE,
    "few-channels": narrow,
    "several-passes": lambda dims, dtype: 0,
}
BLOCKS = ["block_forward", "block_backward", "block_tangent", "block_tangent_backward"]


def agree(found: tuple[Tensor, ...], op: str, args: list[Any], dtype: torch.dtype) -> None:
    wide = [a.double() if isinstance(a, Tensor) and a.dtype == dtype else a for a in args]
    for i, (value, truth) in enumerate(zip(found, getattr(reference, op)(*wide), strict=True)):
        assert value.shape == truth.shape
        error = (value.double() - truth).norm()
        assert error <= TOLERANCE[dtype] * truth.norm() + 1e-30, f"output {i}: {error / truth.norm():.2e}"


@pytest.mark.parametrize("shared", SHARED)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=SUFFIX.values())
@pytest.mark.parametrize("op", BLOCKS)
def test_blocks_agree_with_the_reference(
    op: str, dims: Any, dtype: torch.dtype, shared: str, make: Any, library: ctypes.CDLL
) -> None:
    args = make(dims, dtype).of(op)
    agree(getattr(Device(library, SHARED[shared](dims, dtype)), op)(*args), op, args, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=SUFFIX.values())
def test_matching_loss_agrees_with_the_reference(
    dims: Any, dtype: torch.dtype, make: Any, library: ctypes.CDLL
) -> None:
    args = make(dims, dtype).of("matching_loss")
    agree(Device(library, WHOLE).matching_loss(*args), "matching_loss", args, dtype)


@pytest.mark.parametrize("op", BLOCKS)
def test_a_plane_of_the_reference_network(op: str, make: Any, dims_of: Any, library: ctypes.CDLL) -> None:
    args = make(dims_of(1, 1, 32, 32, 3, 40, 10, 64), torch.float32).of(op)
    agree(getattr(Device(library, WHOLE), op)(*args), op, args, torch.float32)


def test_the_target_is_exact_at_both_ends(make: Any, odd: Any, library: ctypes.CDLL) -> None:
    _, origin, end, frac, offsets, denom = make(odd, torch.float32).of("matching_loss")
    for value, point in ((0.0, origin), (1.0, end)):
        loss, grad = Device(library, WHOLE).matching_loss(
            point, origin, end, torch.full_like(frac, value), offsets, denom
        )
        assert not loss.any() and not grad.any()


def test_a_nan_is_not_hidden_by_relu(library: ctypes.CDLL) -> None:
    z = torch.ones(1, 1, 4, 4, 20)
    z[0, 0, 1, 2, 3] = torch.nan
    for affine in (None, torch.ones(1, 20)):
        p = Device(library, WHOLE).block_forward(z, affine, affine, 1e-5, True)[0]
        assert p[..., 3].isnan().any() and not p[..., 4].isnan().any()
