"""Random streams named by what they are for, so that no run depends on how many numbers another part drew."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *names: int | str) -> int:
    """A 63-bit seed that depends on ``seed`` and on every name, and on nothing else."""
    text = "/".join([str(int(seed)), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *names: int | str) -> torch.Generator:
    """A CPU generator for the stream called ``names`` of run ``seed``."""
    return torch.Generator().manual_seed(derive_seed(seed, *names))
