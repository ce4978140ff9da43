"""A cache of computed tensors on disk, one checked safetensors file an entry."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mct_fast.run.errors import InputError
from mct_fast.run.files import atomic_write, sha256_tensor
from mct_fast.run.sealed import mapped_tensors


def cache_folder() -> Path:
    """`MCT_FAST_CACHE` if set, else ~/.cache/mct_fast. It is safe to delete at any time."""
    configured = os.environ.get("MCT_FAST_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "mct_fast"


def load_cached(name: str) -> dict[str, Tensor] | None:
    """The tensors stored under `name`; None where there are none, or their hashes do not match."""
    path = cache_folder() / f"{name}.safetensors"
    if not path.is_file():
        return None
    try:
        tensors, hashes = mapped_tensors(path)
    except (OSError, SafetensorError):
        return None
    if any(hashes.get(key) != sha256_tensor(tensor) for key, tensor in tensors.items()):
        return None
    return tensors


def store_cached(name: str, tensors: Mapping[str, Tensor]) -> None:
    """Store tensors under `name`, atomically. An unwritable folder costs a warning, not the run."""
    contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    hashes = {key: sha256_tensor(tensor) for key, tensor in contiguous.items()}
    try:
        atomic_write(
            cache_folder() / f"{name}.safetensors",
            lambda path: save_file(contiguous, path, metadata=hashes),
        )
    except (InputError, OSError, SafetensorError) as error:
        warnings.warn(f"the cache was not written ({error}); set MCT_FAST_CACHE to a writable folder", stacklevel=2)
