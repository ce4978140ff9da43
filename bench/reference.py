"""The reference repositories, from clones that the user names; none of their code is kept here.

Their networks, reparametrisation and augmentation are imported unmodified.  Their distillation loops stand inside
``main()`` and cannot be imported, so the functions below make the same calls, written from the description of the methods.
"""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.problem import Problem, Setting
from mct_fast.run.errors import InputError

_MODULES = ("networks", "reparam_module", "utils")
_DEFAULT_NET = (3, 128)  # depth and width that the references' get_network has built in


@dataclass(frozen=True)
class Clone:
    """The three modules of a clone that are used."""

    networks: Any
    reparam_module: Any
    utils: Any

    def network(self, setting: Setting) -> nn.Module:
        """Their ConvNet.  Their ``get_network`` reseeds PyTorch from the clock: the caller seeds again afterwards."""
        size = (setting.image_size, setting.image_size)
        if (setting.depth, setting.width) == _DEFAULT_NET:
            return self.utils.get_network("ConvNet", setting.channels, setting.num_classes, size, dist=False)
        shape = (setting.width, setting.depth, "relu", "instancenorm", "avgpooling")
        return self.networks.ConvNet(setting.channels, setting.num_classes, *shape, im_size=size)


def load(path: str | Path) -> Clone:
    """Imports the clone at ``path``; modules that it needs and that are gone or absent get a stand-in meanwhile."""
    root = Path(path).expanduser().resolve()
    missing = [name for name in _MODULES if not (root / f"{name}.py").is_file()]
    if missing:
        raise InputError(
            f"reference: {root} holds no {missing[0]}.py; name a clone of the repository with its files checked out"
        )
    with _stand_ins(), _importing_from(root):
        return Clone(*(importlib.import_module(name) for name in _MODULES))


def hush() -> None:
    """Silences warnings of old code on a new PyTorch, which say nothing about a measurement."""
    for message in ("torch.meshgrid", "`torch.jit.script` is deprecated", "Please import `rotate`"):
        warnings.filterwarnings("ignore", message=message)


@contextmanager
def _importing_from(root: Path) -> Iterator[None]:
    """Two clones name their modules alike: each is imported afresh and leaves no trace under these names."""
    kept = {name: sys.modules.pop(name) for name in _MODULES if name in sys.modules}
    sys.path.insert(0, str(root))
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # a clone stays as it is
    try:
        yield
    finally:
        sys.dont_write_bytecode = written
        sys.path.remove(str(root))
        for name in _MODULES:
            sys.modules.pop(name, None)
        sys.modules.update(kept)


@contextmanager
def _stand_ins() -> Iterator[None]:
    """SciPy's ``ndimage.interpolation`` is gone from SciPy; kornia, tqdm and wandb may be absent.  None is called here."""
    added = []
    for name in ("scipy.ndimage.interpolation", "kornia", "tqdm", "wandb"):
        if name in sys.modules:
            continue
        try:
            importlib.import_module(name)
        except ImportError:
            module = types.ModuleType(name)
            module.__dict__["rotate"] = None
            sys.modules[name] = module
            added.append(name)
            if name.startswith("scipy") and "scipy" not in sys.modules:
                for parent in ("scipy", "scipy.ndimage"):
                    sys.modules[parent] = types.ModuleType(parent)
                    added.append(parent)
    try:
        yield
    finally:
        for name in added:
            sys.modules.pop(name, None)


@dataclass
class Learned:
    """What an iteration updates: the pixels and the step size, each with its optimiser, as the references set them up."""

    images: Tensor
    syn_lr: Tensor
    optimizers: tuple[torch.optim.Optimizer, ...]

    @staticmethod
    def of(problem: Problem, lr_img: float, lr_lr: float) -> Learned:
        images = problem.images.clone().requires_grad_()
        syn_lr = problem.syn_lr.clone().requires_grad_()
        steps = ((images, lr_img), (syn_lr, lr_lr))
        return Learned(images, syn_lr, tuple(torch.optim.SGD([p], lr=lr, momentum=0.5) for p, lr in steps))

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()


def _student(clone: Clone, problem: Problem) -> nn.Module:
    """A fresh network, flattened: the references make one in every iteration."""
    student = clone.reparam_module.ReparamModule(clone.network(problem.setting).to(problem.setting.device))
    return student.train()


def _rows(problem: Problem) -> Iterator[Tensor]:
    """The batch of each step: chunks of a permutation, drawn anew when they are used up."""
    chunks: list[Tensor] = []
    generator = problem.batch_generator()
    for _ in range(problem.setting.syn_steps):
        if not chunks:
            chunks = list(torch.randperm(len(problem.images), generator=generator).split(problem.setting.batch_syn))
        yield chunks.pop()


def _augmenter(clone: Clone, problem: Problem) -> Callable[[int, Tensor], Tensor]:
    parameters = clone.utils.ParamDiffAug()

    def augment(step: int, x: Tensor) -> Tensor:
        torch.manual_seed(problem.step_seed(step))
        return clone.utils.DiffAugment(x, problem.setting.strategy, param=parameters)

    return augment


def mtt_iteration(clone: Clone, problem: Problem, learned: Learned) -> Tensor:
    """One iteration of MTT: unroll with the graph kept, loss, backward through everything, update; returns the loss."""
    student, augment = _student(clone, problem), _augmenter(clone, problem)
    criterion = nn.CrossEntropyLoss()
    theta = problem.start.clone().requires_grad_()
    for step, rows in enumerate(_rows(problem)):
        x = augment(step, learned.images[rows])
        ce = criterion(student(x, flat_param=theta), problem.labels[rows])
        (g,) = torch.autograd.grad(ce, theta, create_graph=True)
        theta = theta - learned.syn_lr * g
    miss = nn.functional.mse_loss(theta, problem.target, reduction="sum") / theta.numel()
    distance = nn.functional.mse_loss(problem.start, problem.target, reduction="sum") / theta.numel()
    loss = miss / distance
    learned.zero_grad()
    loss.backward()
    learned.step()
    return loss.detach()


def mct_iteration(clone: Clone, problem: Problem, learned: Learned) -> Tensor:
    """One iteration of MCT's official code: TESLA's two sweeps, the second truncated; returns the loss.

    The first sweep walks to the end (with a graph that it throws away) and sums the gradients; the second takes the
    pixel gradient of <g_i, constant> at each step.  Their factor 2 repeats a tuple and is lost: so it is here.
    """
    student, augment = _student(clone, problem), _augmenter(clone, problem)
    criterion = nn.CrossEntropyLoss()
    alpha = learned.syn_lr.item()
    thetas = [problem.start.clone().requires_grad_()]
    total = torch.zeros_like(problem.start)
    taken = []
    distance = nn.functional.mse_loss(problem.start, problem.target, reduction="sum")
    for step, rows in enumerate(_rows(problem)):
        pixels, y = learned.images[rows], problem.labels[rows]
        x = augment(step, pixels)
        taken.append((rows, pixels, x.clone(), y.clone()))
        ce = criterion(student(x, flat_param=thetas[-1]), y)
        g = torch.autograd.grad(ce, thetas[-1], create_graph=True)[0].detach().clone()
        thetas.append(thetas[-1] - alpha * g)
        total += g
    grad_images = torch.zeros_like(problem.images)
    for theta, (rows, pixels, x, y) in zip(thetas, taken, strict=False):
        ce = criterion(student(x, flat_param=theta), y)
        (g,) = torch.autograd.grad(ce, theta, create_graph=True, retain_graph=True)
        constant = alpha * (problem.target - problem.start) + alpha**2 * total
        (grad_x,) = torch.autograd.grad(constant @ g / distance, pixels)
        grad_images[rows] += grad_x
    learned.images.grad = grad_images
    miss = problem.start - learned.syn_lr * total - problem.target
    loss = miss.dot(miss) / distance
    learned.syn_lr.grad = torch.autograd.grad(loss, learned.syn_lr)[0]
    learned.step()
    return loss.detach()
