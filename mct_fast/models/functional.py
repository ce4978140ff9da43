"""Any ``nn.Module`` as a pure function of one flat parameter vector."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import UninitializedParameter

from mct_fast.models.init import Plan, draw, init_plan
from mct_fast.run.errors import InputError


class FunctionalModel:
    """A network as a function ``(params (P,), images (n, C, H, W)) -> logits (n, classes)``.

    Works on a private copy of ``module``, which is left alone. Calls change nothing: batch norm normalises
    by the statistics of the batch and keeps no running ones; in-place activations are switched off, so that
    results can be differentiated any number of times. Parameters that the module shares count once.

    Attributes:
        names: parameter names, in the module's order.
        shapes: their shapes.
        num_params: P.
        init_plan: how each parameter tensor begins, or None where :meth:`init` leaves that to PyTorch.
        layer_offsets: L + 1 positions; parameter ``l`` is ``flat[layer_offsets[l]:layer_offsets[l + 1]]``.

    Raises:
        InputError: active dropout or another random layer, frozen or uninitialised parameters, or none at all.
    """

    def __init__(self, module: nn.Module) -> None:
        if not isinstance(module, nn.Module):
            raise InputError(f"model: is a {type(module).__name__}; give a torch.nn.Module")
        self._module = _pure_copy(module)
        named = dict(self._module.named_parameters())
        if not named:
            raise InputError("model has no parameters to train: pass a module with at least one nn.Parameter")
        self.names: tuple[str, ...] = tuple(named)
        self.shapes: tuple[torch.Size, ...] = tuple(parameter.shape for parameter in named.values())
        self.layer_offsets: list[int] = [0, *itertools.accumulate(shape.numel() for shape in self.shapes)]
        self.num_params: int = self.layer_offsets[-1]
        self.init_plan: Plan | None = init_plan(self._module)
        self._buffers: dict[str, Tensor] = dict(self._module.named_buffers())

    def flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        """Concatenate one tensor a parameter, in order, to (P,). InputError where a shape differs."""
        tensors = list(tensors)
        if len(tensors) != len(self.shapes):
            raise InputError(f"the model has {len(self.shapes)} parameter tensors, got {len(tensors)}: pass one each")
        for name, shape, tensor in zip(self.names, self.shapes, tensors, strict=True):
            if tensor.shape != shape:
                raise InputError(
                    f"parameter {name} must have shape {tuple(shape)}, not {tuple(tensor.shape)}: "
                    "pass parameters of this model"
                )
        return torch.cat([tensor.reshape(-1) for tensor in tensors])

    def unflatten(self, params: Tensor) -> list[Tensor]:
        """Views (..., *shape) of each parameter in ``params`` (..., P)."""
        if params.ndim < 1 or params.shape[-1] != self.num_params:
            raise InputError(
                f"params must end in {self.num_params} numbers, not {tuple(params.shape)}: "
                "pass parameters of this model"
            )
        lead = params.shape[:-1]
        return [
            params.narrow(-1, start, shape.numel()).view(*lead, *shape)
            for start, shape in zip(self.layer_offsets, self.shapes, strict=False)
        ]

    @property
    def module(self) -> nn.Module:
        """The private copy of the network; its own parameters play no part."""
        return self._module

    def __call__(self, params: Tensor, images: Tensor) -> Tensor:
        """Logits (n, classes) of ``images`` (n, C, H, W) at ``params`` (P,); same float dtype and device."""
        tensors: dict[str, Tensor] = dict(zip(self.names, self.unflatten(params), strict=True))
        for name, buffer in self._buffers.items():
            dtype = params.dtype if buffer.is_floating_point() else buffer.dtype
            # a fresh copy: whatever forward writes into it is thrown away
            tensors[name] = buffer.to(device=params.device, dtype=dtype, copy=True)
        return functional_call(self._module, tensors, (images,))

    def init(self, seed: int) -> Tensor:
        """Parameters distributed as PyTorch's constructors draw them, from ``seed``: (P,) float32 on the CPU.

        A module of convolutions, linear and recurrent layers and norms (``init_plan``) begins with the stream of
        :mod:`mct_fast.models.init`: the same bits everywhere. For others ``reset_parameters`` of every submodule that
        has it is called, children first, as the constructors do: the same bits only with the same PyTorch. The global
        generators keep their states. InputError if a parameter's module cannot reset itself.
        """
        if self.init_plan is not None:
            return draw(self.init_plan, self.shapes, seed)
        module = copy.deepcopy(self._module).cpu()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs too
            for name, submodule in _children_first(module):
                reset = _reset_of(submodule)
                if reset is not None:
                    reset()
                elif own := [parameter for parameter, _ in submodule.named_parameters(recurse=False)]:
                    raise InputError(
                        f"parameter {'.'.join(filter(None, (name, own[0])))} belongs to "
                        f"{type(submodule).__name__}, which has no reset_parameters(): "
                        "give the class that method, drawing from PyTorch's global generator"
                    )
        return self.flatten([parameter.detach() for parameter in module.parameters()]).float()


def has_dropout(module: nn.Module) -> bool:
    """Whether a step of ``module`` in training is random: by dropout, a random activation or random pooling."""
    return any(_randomness(submodule) for submodule in module.modules())


def without_dropout(module: nn.Module) -> nn.Module:
    """A copy of ``module`` with all that is random switched off; ``module`` itself where nothing is."""
    if not has_dropout(module):
        return module
    module = copy.deepcopy(module)
    for submodule in module.modules():
        if isinstance(submodule, nn.RReLU):
            submodule.lower = submodule.upper = (submodule.lower + submodule.upper) / 2
        elif isinstance(submodule, _FRACTIONAL):
            submodule._random_samples = torch.full((1, 1, 1), 0.5)
        elif _dropout_rate(submodule) > 0:
            setattr(submodule, "p" if isinstance(submodule, _DropoutNd) else "dropout", 0.0)
    return module


_FRACTIONAL = (nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)


def _randomness(module: nn.Module) -> str | None:
    """What in ``module`` itself, not in its children, is drawn anew at every step; None where nothing is."""
    if _dropout_rate(module) > 0:
        return "dropout"
    if isinstance(module, nn.RReLU) and module.lower < module.upper:
        return "a random activation (RReLU)"
    if isinstance(module, _FRACTIONAL) and module._random_samples is None:
        return "random pooling"
    return None


def _dropout_rate(module: nn.Module) -> float:
    rate = module.p if isinstance(module, _DropoutNd) else getattr(module, "dropout", 0)
    return float(rate) if isinstance(rate, int | float) else 0.0


def _pure_copy(module: nn.Module) -> nn.Module:
    """A copy whose forward pass depends on its parameters and inputs alone."""
    for name, parameter in module.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise InputError(f"parameter {name} is not initialised: run the lazy module on one batch first")
        if not parameter.requires_grad:
            raise InputError(f"parameter {name} is frozen: register it as a buffer, or set requires_grad=True")
    for name, submodule in module.named_modules():
        found = _randomness(submodule)
        if found is not None:
            remedy = (
                "set its rate to 0 or remove it" if found == "dropout" else "replace it, as by LeakyReLU or MaxPool2d"
            )
            raise InputError(f"{found} in {name or type(submodule).__name__} makes a step random: {remedy}")
    module = copy.deepcopy(module).train()
    for submodule in module.modules():
        if isinstance(submodule, _NormBase):
            submodule.track_running_stats = False
            submodule.running_mean = submodule.running_var = submodule.num_batches_tracked = None
        if getattr(submodule, "inplace", False) is True:
            submodule.inplace = False  # type: ignore[assignment] (a plain attribute; nn.Module is typed as if it held tensors alone)
    return module


def _children_first(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every submodule once with its name, after all of its children."""
    seen: set[int] = set()

    def walk(name: str, submodule: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        if id(submodule) in seen:
            return
        seen.add(id(submodule))
        for child_name, child in submodule.named_children():
            yield from walk(f"{name}.{child_name}" if name else child_name, child)
        yield name, submodule

    return walk("", module)


def _reset_of(module: nn.Module) -> Callable[[], object] | None:
    # nn.MultiheadAttention and nn.Transformer spell it with an underscore
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    return reset if callable(reset) else None
