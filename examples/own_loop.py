"""A loop of one's own on `match`: it gives the matching loss and its gradient, everything else is yours.

python examples/own_loop.py
"""

from __future__ import annotations

import torch

from mct_fast.data import load_dataset
from mct_fast.data.splits import random_real
from mct_fast.matching import match
from mct_fast.models import FunctionalModel, build_model
from mct_fast.trajectory import ConvexTrajectory


def checkpoints(
    model: FunctionalModel, images: torch.Tensor, labels: torch.Tensor, epochs: int
) -> list[list[torch.Tensor]]:
    """An expert by a loop of one's own: the parameters of every epoch, as a list of tensors."""
    params = model.init(0).requires_grad_()
    optimizer = torch.optim.SGD([params], lr=0.05, momentum=0.9)
    order = torch.Generator().manual_seed(0)
    saved = []
    for _ in range(epochs + 1):
        saved.append([part.detach().clone() for part in model.unflatten(params)])
        for rows in torch.randperm(len(labels), generator=order).split(128):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(params, images[rows]), labels[rows]).backward()
            optimizer.step()
    return saved


def main(iterations: int = 30, epochs: int = 4) -> list[float]:
    """Returns the matching loss of every iteration."""
    digits = load_dataset("digits")
    module = build_model({"name": "ConvNet", "width": 16, "depth": 2, **digits.model_inputs})
    model = FunctionalModel(module)
    path = ConvexTrajectory.fit(checkpoints(model, digits.train.images, digits.train.labels, epochs))

    images, labels = random_real(digits.train, 1, torch.Generator().manual_seed(0))
    images, syn_lr = images.clone(), 0.02
    every = torch.arange(len(images)).expand(10, -1).contiguous()  # ten student steps, each on all images
    losses = []
    for _ in range(iterations):
        found = match(module, images, labels, syn_lr, path.at(0.0), path.at(2.0), every)
        images -= 20 * found.grad_images
        syn_lr = max(1e-4, syn_lr - 1e-5 * float(found.grad_lr))
        losses.append(float(found.loss.mean()))
    print(
        f"matching loss: {losses[0]:.4f} at first, {losses[-1]:.4f} after {iterations} iterations; syn_lr {syn_lr:.4f}"
    )
    return losses


if __name__ == "__main__":
    main()
