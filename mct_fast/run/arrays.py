"""Files of NumPy arrays, .npz and .npy. Pickles in them are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mct_fast.run.errors import InputError


def load_arrays(path: Path, argument: str, remedy: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name, or that of an .npy file by the file's name.

    Args:
        path: the file.
        argument: how the message of an error calls it.
        remedy: what to do about rows of unequal length.

    Raises:
        InputError: no such file, a damaged one, or one that holds objects in place of numbers.
    """
    if not path.is_file():
        raise InputError(f"{argument}: {path} is no file; give an .npz or .npy file")
    try:
        loaded: Any = np.load(path, allow_pickle=False)
        if (path.suffix.lower() == ".npy") != isinstance(loaded, np.ndarray):
            raise ValueError("its name and what it holds disagree")
        return {path.stem: loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except Exception as error:  # a damaged file can fail in every layer of the reader
        if "Object arrays" in str(error):
            raise InputError(
                f"{argument}: {path.name} holds ragged series or objects, not plain arrays; {remedy}"
            ) from error
        detail = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{argument}: {path} cannot be read as arrays ({detail}); save it with numpy.savez") from error
