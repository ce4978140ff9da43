"""Which device a name stands for."""

from __future__ import annotations

import pytest
import torch

from mct_fast.ops import device as devices
from mct_fast.ops.device import taken
from mct_fast.ops.dispatch import PREFERENCE
from mct_fast.run.errors import InputError


def _machine(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] | None, kernels: str = "triton") -> None:
    """A machine with a GPU of that capability, or none, whose kernels are those of the implementation ``kernels``."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(capability is not None))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    chosen = next(one for one in PREFERENCE if one.name == kernels)
    monkeypatch.setattr(devices, "choose", lambda op, kind: chosen)


@pytest.mark.parametrize(
    ("capability", "kernels", "device"),
    [
        (None, "triton", "cpu"),
        ((8, 0), "triton", "cuda"),
        ((9, 0), "triton", "cuda"),
        ((12, 0), "triton", "cuda"),
        ((7, 5), "triton", "cpu"),
        ((9, 0), "reference", "cpu"),
    ],
)
def test_auto_is_the_gpu_that_the_kernels_serve_else_the_processor(
    capability: tuple[int, int] | None, kernels: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _machine(monkeypatch, capability, kernels)
    assert taken("auto") == device


def test_what_is_named_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch, (9, 0))
    assert [taken(name) for name in ("cpu", "cuda", "cuda:0")] == ["cpu", "cuda", "cuda:0"]
    with pytest.raises(InputError, match="'cuda:1' does not exist: there are cuda:0 to cuda:0"):
        taken("cuda:1")


@pytest.mark.parametrize("name", ["mps", "gpu", "", "cuda:-1", "cuda:x"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="use auto, cpu, cuda or cuda:N"):
        taken(name)
