"""The parts of the build that have to be code: where packages lie, and the optional compiled extensions.

``MCT_FAST_NO_EXT=1``, a missing compiler or a failed compilation leave an install that works on plain PyTorch. The CUDA
kernels are built beside the CPU's where a CUDA toolkit is found (a GPU need not be); ``TORCH_CUDA_ARCH_LIST`` names the
architectures, ``MCT_FAST_NO_CUDA=1`` leaves them out, and where they cannot be built the CPU's still are.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
ARCHITECTURES = "8.0 9.0+PTX"
"""Compute capabilities that are compiled for unless TORCH_CUDA_ARCH_LIST says otherwise."""


def say(message: str) -> None:
    """One line on the build's log."""
    print(f"mct_fast: {message}", file=sys.stderr, flush=True)


def switched_on(variable: str) -> bool:
    """Whether the environment sets ``variable`` to something but 0."""
    return os.environ.get(variable, "0") not in ("", "0")


class NoCudaError(Exception):
    """Why the CUDA kernels are not built."""


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit: its compiler, its headers, its runtime library."""

    nvcc: str
    include: Path
    runtime: Path

    @classmethod
    def find(cls, wanted: str | None) -> Toolkit:
        """The toolkit of ``CUDA_HOME`` or of the nvcc on the path, if it is of the major version ``wanted``."""
        if wanted is None:
            raise NoCudaError("this PyTorch is built without CUDA")
        home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
        nvcc = shutil.which("nvcc", path=str(Path(home, "bin"))) if home else None
        nvcc = nvcc or shutil.which("nvcc")
        if nvcc is None:
            raise NoCudaError("no nvcc found")
        release = re.search(r"release (\d+)\.\d+", output_of([nvcc, "--version"]))
        if release is None or release[1] != wanted.split(".")[0]:
            found = "of an unknown version" if release is None else f"of CUDA {release[1]}"
            raise NoCudaError(f"nvcc is {found}, but PyTorch is built with CUDA {wanted}")
        # nvcc itself says where it lives: the one on the path may be a wrapper.
        top = re.search(r"^#\$ TOP=(.+)$", output_of([nvcc, "--dryrun", "-c", "-x", "cu", os.devnull]), re.MULTILINE)
        root = Path(top[1].strip()).resolve() if top else Path(nvcc).resolve().parents[1]
        libraries = [
            path for folder in ("lib64", "lib", "targets/*/lib") for path in root.glob(f"{folder}/libcudart.so*")
        ]
        includes = [path.parent for path in root.glob("include/cuda_runtime.h")]
        includes += [path.parent for path in root.glob("targets/*/include/cuda_runtime.h")]
        if not libraries or not includes:
            raise NoCudaError(f"{root} lacks the headers or the library of the CUDA runtime")
        return cls(nvcc, includes[0], libraries[0])


def output_of(command: list[str]) -> str:
    """What a command says, on either stream."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoCudaError(f"{command[0]} does not run ({error})") from error
    return done.stdout + done.stderr


def architecture_options(names: str) -> list[str]:
    """nvcc's options for a list such as ``8.0 9.0+PTX``, in the form of TORCH_CUDA_ARCH_LIST."""
    options = []
    for name in names.replace(";", " ").split():
        parts = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name)
        if parts is None:
            raise NoCudaError(f"TORCH_CUDA_ARCH_LIST has {name!r}; give numbers such as '8.0;9.0+PTX'")
        number = "".join(parts.group(1, 2, 3))
        options.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if parts[4]:
            options.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return options


class Kernels:
    """The .cu files being compiled, in processes of their own beside the rest of the build."""

    def __init__(self, toolkit: Toolkit, folder: Path) -> None:
        options = ["-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", f"-I{ROOT / 'csrc'}"]
        options += architecture_options(os.environ.get("TORCH_CUDA_ARCH_LIST") or ARCHITECTURES)
        folder.mkdir(parents=True, exist_ok=True)
        sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
        read = [path for part in ("cuda", "shared") for path in (ROOT / "csrc" / part).iterdir()]
        newest = max(path.stat().st_mtime for path in read)
        self._running: list[tuple[Path, str, subprocess.Popen[str] | None]] = []
        for source in sources:
            target, note = folder / f"{source.stem}.o", folder / f"{source.stem}.txt"
            command = [toolkit.nvcc, *options, "-c", str(source), "-o", str(target)]
            fresh = target.exists() and target.stat().st_mtime > newest
            if fresh and note.exists() and note.read_text() == " ".join(command):
                self._running.append((target, "", None))
                continue
            target.unlink(missing_ok=True)
            note.write_text(" ".join(command))
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            self._running.append((target, source.name, process))

    def objects(self) -> list[str]:
        """The object files, when all are there."""
        for _, name, process in self._running:
            if process is None:
                continue
            said, _ = process.communicate()
            if process.returncode:
                lines = [line for line in said.splitlines() if "error" in line.lower()] or said.splitlines()
                raise NoCudaError(f"nvcc failed on {name}: {lines[0] if lines else process.returncode}")
        return [str(target) for target, _, _ in self._running]


def extension() -> dict[str, object]:
    """`ext_modules` and `cmdclass`, or nothing where no extension is to be built."""
    if switched_on("MCT_FAST_NO_EXT"):
        say("MCT_FAST_NO_EXT is set: installing without compiled kernels")
        return {}
    if shutil.which(os.environ.get("CXX", "c++").split()[0]) is None:
        say("no C++ compiler found: installing without compiled kernels (slower)")
        return {}
    try:
        import torch
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        say(
            f"PyTorch not importable at build time ({error}): installing without compiled kernels; "
            "use pip install --no-build-isolation"
        )
        return {}

    class OptionalBuildExtension(BuildExtension):
        """Builds the extensions that can be built; the package works without them."""

        kernels: Kernels | None = None

        def run(self) -> None:
            try:
                super().run()
            except (Exception, SystemExit) as error:
                reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
                say(f"compiling the extension failed ({reason[0]}): installing without compiled kernels (slower)")
                self.extensions = []  # so that nobody looks for its file
                self.distribution.ext_modules = []

        def build_extensions(self) -> None:
            module = next(module for module in self.extensions if module.name == "mct_fast._C_cuda")
            try:
                if switched_on("MCT_FAST_NO_CUDA"):
                    raise NoCudaError("MCT_FAST_NO_CUDA is set")
                toolkit = Toolkit.find(torch.version.cuda)
                self.kernels = Kernels(toolkit, Path(self.build_temp).absolute() / "cuda")
                module.include_dirs.append(str(toolkit.include))
                module.extra_link_args.append(str(toolkit.runtime))
            except NoCudaError as why:
                say(f"building without CUDA kernels: {why}")
            super().build_extensions()

        def build_extension(self, ext: object) -> None:
            if ext.name != "mct_fast._C_cuda":
                super().build_extension(ext)
                return
            Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
            if self.kernels is None:
                return
            try:
                ext.extra_objects = self.kernels.objects()
                super().build_extension(ext)
            except (Exception, SystemExit) as error:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
                say(f"building without CUDA kernels: {reason}")

    def files(*patterns: str) -> list[str]:
        return sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in (ROOT / "csrc").glob(pattern))

    options = {
        "include_dirs": [str(ROOT / "csrc")],
        "depends": files("**/*.h", "**/*.cuh", "**/*.cu"),
        "extra_compile_args": ["-O3", "-fopenmp", "-fvisibility=hidden", "-g0"],
    }
    module = CppExtension("mct_fast._C", files("*.cpp", "cpu/*.cpp"), **options, extra_link_args=["-fopenmp"])
    cuda = CppExtension(
        "mct_fast._C_cuda",
        files("cuda/*.cpp"),
        **{**options, "include_dirs": [str(ROOT / "csrc")]},
        libraries=["c10_cuda"],
        extra_link_args=[],
    )
    cuda.optional = True  # nobody looks for its file where it was not built
    return {"ext_modules": [module, cuda], "cmdclass": {"build_ext": OptionalBuildExtension}}


setup(
    packages=[*find_packages(include=["mct_fast", "mct_fast.*"], exclude=["mct_fast.kernels"]), "mct_fast.kernels"],
    package_dir={"mct_fast": "mct_fast", "mct_fast.kernels": "kernels"},
    **extension(),
)
