"""The parts of the build that have to be code: where packages lie, and the optional compiled extension.

The extension needs a C++17 compiler and no PyTorch: it finds PyTorch's C interface when it is loaded (``csrc/torch_c.h``),
so that one file serves every Python since 3.10 and every PyTorch since 2.9. It holds the kernels for AVX2, for AVX-512 and for
any processor, and chooses when it is loaded.

``MCT_FAST_NO_EXT=1``, a missing compiler or a failed compilation leave an install that works on plain PyTorch. With
``MCT_FAST_REQUIRE_EXT=1``, which ``make test`` sets, the last two fail the install.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
OLDEST_PYTHON = "cp310"


def say(message: str) -> None:
    """One line on the build's log."""
    print(f"mct_fast: {message}", file=sys.stderr, flush=True)


def switched_on(variable: str) -> bool:
    """Whether the environment sets ``variable`` to something but 0."""
    return os.environ.get(variable, "0") not in ("", "0")


def go_without(reason: str) -> None:
    """Say why there are no compiled kernels; where they are required, that is the end."""
    if switched_on("MCT_FAST_REQUIRE_EXT"):
        sys.exit(f"mct_fast: {reason}, and MCT_FAST_REQUIRE_EXT is set")
    say(f"{reason}: installing without compiled kernels (slower)")


class OptionalBuildExtension(build_ext):
    """Builds the extension if it can be built, a file a core; the package works without it."""

    def run(self) -> None:
        try:
            super().run()
        except (Exception, SystemExit) as error:
            reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            go_without(f"compiling the extension failed ({reason[0]})")
            self.extensions = []  # so that nobody looks for its file
            self.distribution.ext_modules = []

    def build_extension(self, ext: Extension) -> None:
        compiler = self.compiler
        one_by_one = compiler.compile

        def at_once(sources: list[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return [file for files in pool.map(lambda s: one_by_one([s], **options), sources) for file in files]

        compiler.compile = at_once
        try:
            super().build_extension(ext)
        finally:
            compiler.compile = one_by_one


def sources(*patterns: str) -> list[str]:
    """Files of csrc/, the largest first: its compilation takes longest."""
    found = (p for pattern in patterns for p in (ROOT / "csrc").glob(pattern))
    return [str(p.relative_to(ROOT)) for p in sorted(found, key=lambda p: ("_" not in p.stem, p))]


def for_old_systems() -> list[str]:
    """What the linker is told so that the file runs on systems that are older than this one (``csrc/glibc.cpp``)."""
    if sys.platform != "linux" or platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc":
        return []
    wrapped = ("exp", "log", "dlopen", "dlsym", "_ZSt28__throw_bad_array_new_lengthv")
    flags = [f"-Wl,--wrap={name}" for name in wrapped]
    # Before glibc 2.34 dlopen was in a library of its own, which newer ones keep for who asks for it by name.
    command = [*os.environ.get("CXX", "c++").split(), "-print-file-name=libdl.so.2"]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return [*flags, "-Wl,--no-as-needed", "-l:libdl.so.2", "-Wl,--as-needed"] if os.path.isabs(found) else flags


def extension() -> dict[str, Any]:
    """The arguments of `setup` that build the extension, or nothing where there is none to be built."""
    if switched_on("MCT_FAST_NO_EXT"):
        say("MCT_FAST_NO_EXT is set: installing without compiled kernels")
        return {}
    if shutil.which(os.environ.get("CXX", "c++").split()[0]) is None:
        go_without("no C++ compiler found")
        return {}
    module = Extension(
        "mct_fast._cpu",
        sources("*.cpp", "cpu/*.cpp"),
        include_dirs=[str(ROOT / "csrc")],
        depends=sources("**/*.h"),
        extra_compile_args=["-std=c++17", "-O3", "-fopenmp", "-fvisibility=hidden", "-g0", "-Wno-maybe-uninitialized"],
        extra_link_args=["-fopenmp", "-s", *for_old_systems()],
        language="c++",
        py_limited_api=True,
    )
    return {
        "ext_modules": [module],
        "cmdclass": {"build_ext": OptionalBuildExtension},
        "options": {"bdist_wheel": {"py_limited_api": OLDEST_PYTHON}},
    }


setup(
    packages=[
        *find_packages(include=["mct_fast", "mct_fast.*"], exclude=["mct_fast.kernels", "mct_fast.kernels.*"]),
        *(f"mct_fast.{package}" for package in find_packages(include=["kernels", "kernels.*"])),
        "mct_fast.pages",
    ],
    package_dir={"mct_fast": "mct_fast", "mct_fast.kernels": "kernels", "mct_fast.pages": "docs"},
    **extension(),
)
