"""Atomic files, JSON and hashes."""

import hashlib
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mct_fast.run.errors import InputError
from mct_fast.run.files import atomic_write, read_json, sha256_file, sha256_tensor, write_json


def test_atomic_write_creates_folders_and_leaves_nothing_else(tmp_path: Path):
    target = tmp_path / "a" / "b" / "x.bin"

    def write(path: Path) -> None:
        path.write_bytes(b"new")

    atomic_write(target, write)
    assert target.read_bytes() == b"new"
    assert [file.name for file in target.parent.iterdir()] == ["x.bin"]


def test_atomic_write_keeps_the_old_file_when_the_writer_fails(tmp_path: Path):
    target = tmp_path / "x.bin"
    target.write_bytes(b"old")

    def fail(path: Path):
        path.write_bytes(b"half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        atomic_write(target, fail)
    assert target.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["x.bin"]


def test_atomic_write_hands_the_suffix_to_the_writer(tmp_path: Path):
    seen = []
    atomic_write(tmp_path / "grid.png", lambda path: seen.append(path.suffix))
    assert seen == [".png"]


def test_new_files_have_ordinary_permissions(tmp_path: Path):
    plain = tmp_path / "plain"
    plain.write_text("")
    write_json(tmp_path / "x.json", {})
    atomic_write(tmp_path / "x.safetensors", lambda path: save_file({"x": torch.ones(2)}, path))
    for name in ("x.json", "x.safetensors"):
        assert (tmp_path / name).stat().st_mode == plain.stat().st_mode


def test_unwritable_folder_is_an_input_error(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="choose a folder") as caught:
        write_json(tmp_path / "file" / "x.json", {})
    assert "\n" not in str(caught.value)


def test_json_round_trip(tmp_path: Path):
    value = {"name": "Größe", "list": [1, 2.5, None, True]}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value


def test_json_refuses_nan(tmp_path: Path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"loss": math.nan})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b'{"a": ', b"", b"\xff\xfe\x00"], ids=["cut", "empty", "not-utf8"])
def test_malformed_json_is_an_input_error(tmp_path: Path, content: bytes):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not valid JSON") as caught:
        read_json(path)
    assert "\n" not in str(caught.value)


def test_missing_json_is_an_input_error(tmp_path: Path):
    with pytest.raises(InputError, match="does not exist"):
        read_json(tmp_path / "x.json")


def test_sha256_file_equals_hashlib(tmp_path: Path):
    content = bytes(range(256)) * 5000  # more than one piece of 1 MiB
    (tmp_path / "x").write_bytes(content)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(content).hexdigest()
    with pytest.raises(InputError, match="check the path"):
        sha256_file(tmp_path / "y")


def test_sha256_tensor_depends_on_values_shape_and_dtype_only():
    tensor = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    reference = sha256_tensor(tensor)
    assert sha256_tensor(tensor.t().contiguous().t()) == reference  # strides do not matter
    assert sha256_tensor(tensor.clone().requires_grad_()) == reference
    others = [tensor.reshape(4, 3), tensor.double(), tensor + 1e-3, -tensor, tensor.to(torch.bfloat16)]
    assert len({reference, *(sha256_tensor(other) for other in others)}) == 1 + len(others)
    assert sha256_tensor(torch.empty(0, 3)) != sha256_tensor(torch.empty(0, 4))
