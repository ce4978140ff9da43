"""``mct-fast export`` and ``mct-fast import``: distilled sets in the files of other programs.

Annotations are evaluated here (no ``from __future__ import annotations``), as in `mct_fast.cli.commands`.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from mct_fast.cli.output import distilled_rows, print_rows
from mct_fast.cli.parsing import parse, use_plugin
from mct_fast.cli.stored import distilled_at
from mct_fast.run.errors import InputError


@dataclasses.dataclass(frozen=True)
class _Export:
    """Write a distilled set in the files of another program."""

    path: Positional[Path]
    """A run folder, or the folder of a distilled set."""
    to: Literal["mtt", "ddranking", "npz", "png", "hf"]
    """mtt: images_best.pt, labels_best.pt, lr_best.pt; ddranking: the same with its settings; npz: one file of NumPy;
    png: a picture an image in a folder a class; hf: a folder for Hugging Face's load_from_disk (needs the package datasets)."""
    out: Path
    """Folder to write."""


def export(words: list[str]) -> None:
    """Write a distilled set for MTT, DD-Ranking, NumPy, picture viewers or Hugging Face."""
    given = parse("export", _Export, words)
    from mct_fast.distilled.exchange import export

    distilled, _ = distilled_at(given.path)
    files = export(distilled, given.to, given.out)
    print_rows([("folder", str(given.out)), ("files", f"{len(files)}, from {files[0].name} on")])


@dataclasses.dataclass(frozen=True)
class _Import:
    """Take over somebody's distilled set, so that 'mct-fast evaluate OUT' scores it by the same protocol as any other.

    Reads images_best.pt, labels_best.pt and lr_best.pt as MTT, FTD, TESLA and DATM write them, or an .npz. Nothing in such a
    file is ever run.
    """

    path: Positional[Path]
    """images_best.pt or another file of images, the folder that holds it, or an .npz with images and labels."""
    dataset: str
    """Name of the dataset that the set was distilled from, e.g. cifar10."""
    out: Path
    """Folder of the distilled set to write."""
    data_path: str | None = None
    """Folder that holds the dataset."""
    download: bool = False
    """Fetch the dataset if it is missing."""
    image_size: int | None = None
    """Side of the images, of datasets that come in several."""
    zca: bool = False
    """The images are ZCA-whitened."""
    pixels: bool = False
    """The images are pixels, in [0, 1] or bytes, not normalised or whitened ones."""
    plugin: str | None = None
    """Your Python module, in this folder or installed, that registers datasets and networks of your own."""
    lr: float | None = None
    """Step size to train networks with; left out, the one beside the images, or else 0.01."""


def import_(words: list[str]) -> None:
    """Take over somebody's distilled set: tensors of MTT, DATM, FTD, or an .npz."""
    use_plugin(words)
    given = parse("import", _Import, words)
    from mct_fast.data import load_dataset
    from mct_fast.distilled.exchange import take_over

    if not given.path.exists():
        raise InputError(f"path: {given.path} does not exist; give images_best.pt, its folder, or an .npz")
    dataset = load_dataset(
        given.dataset,
        data_path=given.data_path,
        download=given.download,
        image_size=given.image_size,
        zca=given.zca,
        val_fraction=0.0 if given.zca else 0.1,  # the field fits its whitening on the whole training set
    )
    distilled, said = take_over(given.path, dataset, pixels=given.pixels, lr=given.lr)
    distilled.save(given.out)
    found = [(name, text) for name, _, text in (line.partition(": ") for line in said)]
    print_rows([*found, *distilled_rows(distilled), ("go on with", f"mct-fast evaluate {given.out}")])
