"""Tensors that a caller hands in: those that hold no dense numbers are refused by the argument's name, and so are modes of
PyTorch that change what is computed with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mct_fast.run.errors import InputError


def check_dense(argument: str, given: Any) -> None:
    """Raises :class:`InputError` unless ``given`` is a tensor with a number at every place."""
    if not isinstance(given, Tensor):
        raise InputError(f"{argument}: is {_article(type(given).__name__)}; give a tensor")
    if given.is_meta:
        raise InputError(f"{argument}: lies on the meta device, where tensors hold no numbers; give one with values")
    if given.layout != torch.strided or given.is_nested:
        kind = "nested" if given.is_nested else str(given.layout).removeprefix("torch.").removeprefix("_")
        raise InputError(f"{argument}: has the layout {kind}; make it dense, as .to_dense() does")
    if given.is_quantized:
        raise InputError(f"{argument}: is quantised; call .dequantize()")


def check_mode(device: torch.device | str) -> None:
    """Raises :class:`InputError` in a mode of PyTorch in which a training step on ``device`` is another one, or none."""
    if torch.is_autocast_enabled(torch.device(device).type):
        raise InputError(
            "torch.autocast: steps are computed in the dtype that they are given; call this outside of it, or within "
            "torch.autocast(..., enabled=False)"
        )
    if torch.is_inference_mode_enabled():
        raise InputError("torch.inference_mode: training needs gradients; call this outside of it")


def _article(name: str) -> str:
    return f"{'an' if name[:1] in 'aeiou' else 'a'} {name}"
