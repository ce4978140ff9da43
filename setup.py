"""The parts of the build that have to be code: where packages lie, and the optional compiled extension.

``MCT_FAST_NO_EXT=1``, a missing compiler or a failed compilation leave an install that works on plain PyTorch. With
``MCT_FAST_REQUIRE_EXT=1``, which ``make test`` sets, the last two fail the install.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


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


def extension() -> dict[str, object]:
    """`ext_modules` and `cmdclass`, or nothing where no extension is to be built."""
    if switched_on("MCT_FAST_NO_EXT"):
        say("MCT_FAST_NO_EXT is set: installing without compiled kernels")
        return {}
    if shutil.which(os.environ.get("CXX", "c++").split()[0]) is None:
        go_without("no C++ compiler found")
        return {}
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        go_without(f"PyTorch not importable at build time ({error}); use pip install --no-build-isolation")
        return {}

    class OptionalBuildExtension(BuildExtension):
        """Builds the extension if it can be built; the package works without it."""

        def run(self) -> None:
            try:
                super().run()
            except (Exception, SystemExit) as error:
                reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
                go_without(f"compiling the extension failed ({reason[0]})")
                self.extensions = []  # so that nobody looks for its file
                self.distribution.ext_modules = []

    def files(*patterns: str) -> list[str]:
        return sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in (ROOT / "csrc").glob(pattern))

    module = CppExtension(
        "mct_fast._C",
        files("*.cpp", "cpu/*.cpp"),
        include_dirs=[str(ROOT / "csrc")],
        depends=files("**/*.h"),
        extra_compile_args=["-O3", "-fopenmp", "-fvisibility=hidden", "-g0"],
        extra_link_args=["-fopenmp"],
    )
    return {"ext_modules": [module], "cmdclass": {"build_ext": OptionalBuildExtension}}


setup(
    packages=[
        *find_packages(include=["mct_fast", "mct_fast.*"], exclude=["mct_fast.kernels", "mct_fast.kernels.*"]),
        *(f"mct_fast.{package}" for package in find_packages(include=["kernels", "kernels.*"])),
    ],
    package_dir={"mct_fast": "mct_fast", "mct_fast.kernels": "kernels"},
    **extension(),
)
