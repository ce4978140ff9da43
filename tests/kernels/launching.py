"""Starts kernels through Triton's real launcher without a GPU; a process of its own, which prints what happened as JSON.

All of Triton is real: binder, specialisation, cache key, compilation to a cubin, packing of the arguments. Below it lies
`libcuda.c`, a driver that checks a launch and runs nothing. Arguments are tensors in host memory, as large as a card's; their
pages are never touched.

``python -m tests.kernels.launching FOLDER ARCH [MODULE]``: FOLDER takes the driver, ARCH is 80 or 90, MODULE has the ``CASES``.
"""

from __future__ import annotations

import ctypes
import dataclasses
import importlib
import inspect
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from tests.kernels import recording
from tests.kernels.calls import heaviest

ARCHITECTURES = (80, 90)
"""What devices 0 and 1 of the stand-in are."""


def build_driver(folder: Path) -> ctypes.CDLL:
    """Compile the stand-in into `folder` and load it, so that Triton's modules find it as ``libcuda.so.1``."""
    library, source = folder / "libcuda.so.1", Path(__file__).with_name("libcuda.c")
    options = ["-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([os.environ.get("CC", "cc"), *options, "-o", library, source], check=True)
    link = folder / "libcuda.so"  # what older versions of Triton link against
    link.unlink(missing_ok=True)
    link.symlink_to(library.name)
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
    return ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


class Devices:
    """Triton's own CUDA driver on the stand-in; `use` makes one of the two devices current."""

    def __init__(self, library: ctypes.CDLL) -> None:
        from triton.backends.nvidia.driver import CudaDriver

        self._library, self._current = library, 0
        active = CudaDriver()
        active.get_current_device = lambda: self._current
        active.get_current_stream = lambda device: 0
        active.get_device_capability = lambda device: divmod(ARCHITECTURES[device], 10)
        driver.set_active(active)

    def use(self, arch: int) -> None:
        self._current = ARCHITECTURES.index(arch)
        self._library.standin_use(self._current)

    @property
    def launches(self) -> int:
        """The launches that have reached the driver."""
        return self._library.standin_launches()


@triton.jit
def _probe(mct_probe):
    pass


def reserved_names() -> set[str]:
    """What Triton's generated binder and `run` call theirs: names that an argument of a kernel must not have."""
    *_, backend, binder = _probe.create_binder()
    names = {*binder.__code__.co_varnames, *binder.__code__.co_names, *inspect.signature(JITFunction.run).parameters}
    names |= {field.name for field in dataclasses.fields(backend.parse_options({}))}
    return names - {"mct_probe", "args", "kwargs"}


def chosen_starts(cases: dict[str, Callable[[], object]]) -> Iterator[tuple[str, recording.Start]]:
    """Of each kernel with each of its switches, the launch with the most values a program; and the case it is from."""
    found = {start.launch.variant: (case, start) for case, run in cases.items() for start in recording.starts(run)}
    for launch in heaviest(start.launch for _, start in found.values()):
        yield found[launch.variant]


def on_host(value: Any) -> Any:
    """A tensor of the same layout in host memory, for one on the meta device."""
    if not isinstance(value, Tensor):
        return value
    extent = 1 + sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True))
    base = torch.empty(value.storage_offset() + extent, dtype=value.dtype)
    return base.as_strided(value.shape, value.stride(), value.storage_offset())


def start(devices: Devices, chosen: recording.Start, arch: int, reserved: set[str]) -> dict[str, Any]:
    """Launch on a device: what the compiler made of it, or the error."""
    if taken := sorted(reserved & set(chosen.kernel.arg_names)):
        return {"error": f"arguments named as Triton's own: {', '.join(taken)}"}
    devices.use(arch)
    before = devices.launches
    try:
        args = [on_host(a) for a in chosen.args]
        options = {name: on_host(value) for name, value in chosen.options.items()}
        compiled = chosen.kernel[chosen.grid](*args, **options)
    except Exception:  # whatever it was, it is the test's failure: reported to the process that asked
        return {"error": traceback.format_exc()}
    if devices.launches != before + 1:
        return {"error": "the launch did not reach the driver"}
    return {"error": None, **dataclasses.asdict(recording.use_of(compiled))}


def main(folder: str, arch: str, cases: str = "tests.kernels.launch_cases") -> None:
    devices = Devices(build_driver(Path(folder)))
    reserved = reserved_names()
    print(json.dumps({"triton": triton.__version__, "reserved": sorted(reserved)}), flush=True)
    for case, chosen in list(chosen_starts(importlib.import_module(cases).CASES)):
        line = {"case": case, "kernel": chosen.launch.kernel, "variant": chosen.launch.describe(), "arch": int(arch)}
        print(json.dumps(line | start(devices, chosen, int(arch), reserved)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
