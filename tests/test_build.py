"""An install without compiled kernels works; where they are required it fails, and `make test` requires them."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

import mct_fast
from mct_fast import ops

ROOT = Path(__file__).resolve().parents[1]
COMPILER = shutil.which(os.environ.get("CXX", "c++").split()[0])


def switched(**variables: str) -> dict[str, str]:
    """This process's environment without our switches, and with ``variables``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MCT_FAST_", "MAKE"))}
    return {**kept, **variables}


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A checkout whose C++ does not compile."""
    for name in ("setup.py", "pyproject.toml", "Makefile", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for folder in ("mct_fast", "kernels", "csrc/cpu"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("mct_fast/__init__.py", "kernels/__init__.py"):
        shutil.copy(ROOT / file, tmp_path / file)
    (tmp_path / "csrc" / "ops.cpp").write_text("#error does not compile\n")
    return tmp_path


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize("required", ["1", "0"])
def test_a_broken_build_fails_where_the_extension_is_required(broken: Path, required: str) -> None:
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    environment = switched(MCT_FAST_REQUIRE_EXT=required)
    done = subprocess.run(command, cwd=broken, env=environment, capture_output=True, text=True, timeout=300)
    assert "compiling the extension failed" in done.stderr
    assert (done.returncode != 0) == (required == "1")


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, "1" if COMPILER else "0"),
        ({"CXX": "no-such-compiler"}, "0"),
        ({"MCT_FAST_NO_EXT": "1"}, "0"),
    ],
    ids=["as-it-is", "no-compiler", "switched-off"],
)
def test_make_test_requires_the_extension_where_there_is_a_compiler(
    broken: Path, variables: dict[str, str], wanted: str
) -> None:
    if shutil.which("make") is None:
        pytest.skip("no make")
    tools = broken / "venv" / "bin"
    tools.mkdir(parents=True)
    for name in ("pip", "python", "ruff", "pyright", "pytest"):
        (tools / name).write_text('#!/bin/sh\necho "${0##*/} ${MCT_FAST_REQUIRE_EXT}" >> said\n')
        (tools / name).chmod(0o755)
    command = ["make", "test", "VENV=venv", f"PYTHON={sys.executable}"]
    subprocess.run(command, cwd=broken, env=switched(**variables), check=True, capture_output=True, timeout=60)
    said = (broken / "said").read_text().splitlines()
    assert f"pip {wanted}" in said
    assert f"pytest {wanted}" in said


def test_the_extension_is_there_where_it_is_required() -> None:
    """An install from before, without it, would skip what it cannot test."""
    if os.environ.get("MCT_FAST_REQUIRE_EXT", "0") in ("", "0"):
        pytest.skip("MCT_FAST_REQUIRE_EXT is not set")
    assert ops.extension_loaded()


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_pytorchs_c_interface_is_declared_as_its_headers_do(tmp_path: Path) -> None:
    """What `csrc/torch_c.h` says of functions that it looks up by name, compiled beside the installed PyTorch's headers."""
    source = tmp_path / "declarations.cpp"
    source.write_text("""
        #include <torch/csrc/inductor/aoti_torch/c/shim.h>
        #include <torch/csrc/stable/c/shim.h>
        #include <type_traits>
        #include "torch_c.h"
        #define MCT_SAME(name, result, arguments) \\
          static_assert(std::is_same_v<decltype(&::name), decltype(mct::torch_c::Functions::name)>, #name);
        MCT_TORCH_FUNCTIONS(MCT_SAME)
        #if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 13
        MCT_TORCH_NEWER_FUNCTIONS(MCT_SAME)
        #endif
    """)
    headers = Path(torch.__file__).parent / "include"
    command = [
        *os.environ.get("CXX", "c++").split(),
        "-std=c++20",
        "-fsyntax-only",
        f"-I{ROOT / 'csrc'}",
        f"-I{headers}",
    ]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


NEWEST = {
    "GLIBC": (2, 28),
    "GLIBCXX": (3, 4, 24),
    "CXXABI": (1, 3, 11),
    "GCC": (7, 0, 0),
    "GOMP": (4, 5),
    "OMP": (4, 5),
}
"""Of manylinux_2_28, as auditwheel has it."""


@pytest.mark.skipif(not ops.extension_loaded(), reason="the compiled extension is not installed")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or platform.machine() != "x86_64", reason="not Linux on x86-64")
def test_the_extension_runs_on_systems_of_2018() -> None:
    """The versions of symbols that the file asks the system's libraries for, by name in its table of strings."""
    (file,) = Path(mct_fast.__path__[0]).glob("_cpu*.so")
    wanted = re.findall(rb"\0(GLIBC|GLIBCXX|CXXABI|GCC|GOMP|OMP)_([0-9.]+)(?=\0)", file.read_bytes())
    assert len(wanted) >= 8, "the table is not where it was looked for"
    for name, version in wanted:
        numbers = tuple(map(int, version.decode().split(".")))
        assert numbers <= NEWEST[name.decode()], f"{name.decode()}_{version.decode()}"


def test_an_isolated_build_fetches_no_pytorch() -> None:
    """One file serves every version, and nothing of gigabytes is fetched to compile it."""
    included = [
        name
        for file in (ROOT / "csrc").rglob("*.*")
        for name in re.findall(r"#include <(.*)>", file.read_text())
        if name.startswith(("ATen", "c10", "torch"))
    ]
    assert included == []
    (required,) = re.findall(r"^requires = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert required == '"setuptools>=77"'


def test_what_people_install_holds_the_pages_and_what_they_compile_everything(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info", "results", "pages", "kernels")
    for folder in ("mct_fast", "csrc", "docs", "examples", "bench"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=ignored)
    shutil.copytree(ROOT / "kernels", tree / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"):
        shutil.copy(ROOT / name, tree)
    command = [sys.executable, "setup.py", "-q", "sdist", "bdist_wheel"]
    subprocess.run(command, cwd=tree, env=switched(MCT_FAST_NO_EXT="1"), check=True, capture_output=True, timeout=120)
    (wheel,), (source,) = (tree / "dist").glob("*.whl"), (tree / "dist").glob("*.tar.gz")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        installed = set(archive.namelist())
    pages = {f"mct_fast/pages/{page.relative_to(ROOT / 'docs')}" for page in (ROOT / "docs").rglob("*.md")}
    assert pages <= installed
    assert {"mct_fast/py.typed", "mct_fast/kernels/conv3x3.py"} <= installed
    assert not [name for name in installed if name.startswith(("tests", "csrc", "bench")) or name.endswith(".json")]
    with tarfile.open(source) as archive:
        given = {name.partition("/")[2] for name in archive.getnames()}
    assert {"docs/glossary.md", "bench/ops.py", "csrc/cpu/pool.h", "CITATION.cff", "CHANGELOG.md"} <= given
    assert any(name.startswith("examples/") for name in given)
