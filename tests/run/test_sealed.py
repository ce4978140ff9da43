"""A checksum that lost its name is damage, and no file of an earlier release."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mct_fast.run.errors import InputError
from mct_fast.run.sealed import read_sealed, read_tensors, write_sealed, write_tensors

NAME = b'"checksum"'
DAMAGED = [
    *(NAME[:i] + bytes([byte]) + NAME[i + 1 :] for i in range(1, 9) for byte in b"x{0 "),
    *(NAME[:i] + NAME[i + 1 :] for i in range(1, 9)),
    *(NAME[:i] + b"ee" + NAME[i:] for i in range(1, 9)),
    b'""', b'"sum"', b'"checchecksum"',
]  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_the_name_of_a_checksum_may_not_change(name: bytes, tmp_path: Path) -> None:
    file, tensors = tmp_path / "a.json", tmp_path / "a.safetensors"
    write_sealed(file, {"threads": 1, "fingerprint": "0a" * 32})
    write_tensors(tensors, {"x": torch.arange(3)}, {"state": "1"})
    assert read_sealed(file, "run", "restore it")[0] == {"threads": 1, "fingerprint": "0a" * 32}
    for path, read in ((file, read_sealed), (tensors, read_tensors)):
        data = path.read_bytes()
        assert data.count(NAME) == 1
        path.write_bytes(data.replace(NAME, name))
        with pytest.raises(InputError, match="^run: .*restore it") as caught:
            read(path, "run", "restore it")
        assert "\n" not in str(caught.value)


def test_files_of_earlier_releases_have_no_checksum_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"threads": 1, "fingerprint": "0a" * 32, "sha": "0a" * 20}))
    assert read_sealed(tmp_path / "a.json", "run", "restore it")[1] is None
    write_tensors(tmp_path / "b.safetensors", {"x": torch.arange(3)})
    assert read_tensors(tmp_path / "b.safetensors", "run", "restore it")[2] is None
