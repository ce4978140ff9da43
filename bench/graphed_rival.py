"""The strong rival on a GPU: MTT's double backward as a strong user would write it, recorded as one CUDA graph."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.problem import Problem
from bench.timing import Run


def double_backward(problem: Problem) -> Run:
    """One gradient of the matching loss by pixels and step size, without augmentation, replayed from a graph."""
    images = problem.images.clone().requires_grad_()
    alpha = problem.syn_lr.clone().requires_grad_()
    rows = problem.batches().to(images.device)
    distance = (problem.start - problem.target).square().sum()

    def gradient() -> tuple[Tensor, ...]:
        theta = problem.start.clone().requires_grad_()
        for step in rows:
            loss = torch.nn.functional.cross_entropy(problem.model(theta, images[step]), problem.labels[step])
            (g,) = torch.autograd.grad(loss, theta, create_graph=True)
            theta = theta - alpha * g
        return torch.autograd.grad((theta - problem.target).square().sum() / distance, (images, alpha))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            gradient()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gradient()
    return graph.replay
