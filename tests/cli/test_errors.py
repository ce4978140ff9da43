"""Wrong input on the command line: one line on stderr that names the remedy, a non-zero status, no traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mct_fast.cli import main
from mct_fast.data import load_dataset, register_dataset
from mct_fast.distill import DistillConfig, distill
from mct_fast.distilled import DistilledDataset
from mct_fast.evaluate import evaluate
from mct_fast.experts import ExpertConfig, train_experts
from mct_fast.matching import match
from mct_fast.models import ConvNet, FunctionalModel
from mct_fast.run.errors import InputError

TINY = ExpertConfig(num_experts=1, train_epochs=3, depth=1, width=4, batch_train=700)
SHORT = [
    "--iterations=1",
    "--syn-steps=1",
    "--eval-it=0",
    "--num-eval=1",
    "--epoch-eval-train=1",
    "--max-start-epoch=1",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, a finished run, a file in the way, and image trees that are wrong."""
    folder = tmp_path_factory.mktemp("cli")
    digits = load_dataset("digits")
    store = train_experts(TINY, folder / "store", digits)
    config = DistillConfig(
        syn_steps=1, max_start_epoch=1.0, iterations=1, eval_it=0, num_eval=1, epoch_eval_train=1, expert_epochs=1.0
    )
    distill(config, store, digits, out=folder / "run")
    (folder / "file").write_text("in the way")
    (folder / "empty").mkdir()
    for size, name in ((8, "square"), (9, "other")):
        for part in ("train", "test"):
            for label in "ab":
                image = folder / name / part / label / "0.png"
                image.parent.mkdir(parents=True)
                Image.fromarray(np.full((size, 8, 3), 7, dtype=np.uint8)).save(image)
    return folder


NO_DATA = ["--dataset=cifar10", "--data-path=nowhere"]

CASES: dict[str, tuple[list[str], str]] = {
    "command-missing": (["distil"], "distill"),
    "dataset-unknown": (["experts", "--out=NEW", "--dataset=digitz"], "digits"),
    "data-missing": (["experts", "--out=NEW", "--dataset=cifar10", "--data-path=empty"], "download"),
    "data-path-missing": (["experts", "--out=NEW", "--dataset=folder:x", "--data-path=nowhere"], "nowhere"),
    "data-path-left-out": (["experts", "--out=NEW", "--dataset=tiny-imagenet"], "data_path"),
    "data-is-a-file": (["experts", "--out=NEW", "--dataset=folder:x", "--data-path=file"], "file"),
    "images-not-square": (["experts", "--out=NEW", "--dataset=folder:x", "--data-path=other"], "image_size"),
    "image-size": (["experts", "--out=NEW", "--image-size=0"], "image_size"),
    "expert-field": (["experts", "--out=NEW", "--train-epoch=3"], "--train_epochs"),
    "expert-value": (["experts", "--out=NEW", "--train-epochs=many"], "--help"),
    "expert-choice": (["experts", "--out=NEW", "--norm=instanz"], "instance"),
    "expert-strategy": (["experts", "--out=NEW", "--dsa-strategy=colour"], "color"),
    "expert-zero": (["experts", "--out=NEW", "--num-experts=0"], "num_experts"),
    "expert-device": (["experts", "--out=NEW", "--device=abacus"], "device"),
    "expert-out-is-a-file": (["experts", "--out=file", "--num-experts=1"], "out"),
    "expert-out-under-a-file": (["experts", "--out=file/deeper", "--num-experts=1"], "out"),
    "expert-out-unwritable": (["experts", "--out=/proc/nowhere", "--num-experts=1"], "out"),
    "expert-out-missing": (["experts"], "out"),
    "expert-other-recipe": (["experts", "--out=store", "--lr-teacher=0.3", "--depth=1", "--width=4"], "recipe"),
    "val-fraction": (["experts", "--out=NEW", "--val-fraction=1.5"], "val_fraction"),
    "ipc": (["distill", "--trajectories=store", "--out=NEW", "--ipc=5000"], "ipc"),
    "expert-epochs": (["distill", "--trajectories=store", "--out=NEW", "--expert-epochs=7"], "expert_epochs"),
    "max-start-epoch": (["distill", "--trajectories=store", "--out=NEW"], "max_start_epoch"),
    "no-checkpoints": (
        ["distill", "--trajectories=store", "--out=NEW", "--trajectory=discrete", "--sampling=integer", *SHORT],
        "--keep-checkpoints",
    ),
    "adjoint": (["distill", "--trajectories=store", "--out=NEW", "--adjoint=magic"], "exact"),
    "distill-field": (["distill", "--trajectories=store", "--out=NEW", "--syn-step=3"], "--syn_steps"),
    "distill-store-missing": (["distill", "--trajectories=nowhere", "--out=NEW"], "manifest.json"),
    "distill-store-empty": (["distill", "--trajectories=empty", "--out=NEW"], "mct-fast experts"),
    "distill-store-left-out": (["distill", "--out=NEW"], "--trajectories"),
    "distill-out-left-out": (["distill", "--trajectories=store"], "--out"),
    "distill-out-is-a-file": (["distill", "--trajectories=store", "--out=file", *SHORT], "out"),
    "distill-out-unwritable": (["distill", "--trajectories=store", "--out=/proc/nowhere", *SHORT], "out"),
    "distill-out-other-run": (["distill", "--trajectories=store", "--out=run", *SHORT, "--seed=7"], "another"),
    "distill-out-full": (["distill", "--trajectories=store", "--out=square", *SHORT], "out"),
    "resume-missing": (["distill", "--resume=nowhere"], "config.json"),
    "resume-with-more": (["distill", "--resume=run", "--ipc=2"], "resume"),
    "evaluate-missing": (["evaluate", "nowhere"], "distilled"),
    "evaluate-model": (["evaluate", "run", "--model=ConvNut"], "ConvNut"),
    "evaluate-split": (["evaluate", "run", "--split=trial", "--epoch-eval-train=1"], "split"),
    "evaluate-dataset": (["evaluate", "run", "--dataset=digitz"], "digits"),
    "evaluate-zero": (["evaluate", "run", "--num-eval=0"], "num_eval"),
    "evaluate-other-data": (["evaluate", "run", "--dataset=folder:x", "--data-path=square"], "dataset"),
    "compress-missing": (["compress", "nowhere", "--out=NEW", "--dataset=digits"], "replay_buffer"),
    "compress-no-buffer": (["compress", "file", "--out=NEW", "--dataset=digits"], "source"),
    "compress-dataset": (["compress", "file", "--out=NEW", "--dataset=cifer10"], "cifar10"),
    "compress-model": (["compress", "file", "--out=NEW", "--dataset=digits", "--model=ConvNet"], "JSON"),
    "expert-out-is-a-run": (["experts", "--out=run", "--num-experts=1"], "out: run holds other results (config.json)"),
    "report-missing": (["report", "nowhere"], "run"),
    "report-no-run": (["report", "store"], "run"),
    "inspect-missing": (["inspect", "nowhere"], "nowhere"),
    "demo-out-is-a-file": (["demo", "--out=file"], "out"),
    "expert-no-mps": (["experts", "--out=NEW", "--device=mps"], "use auto, cpu, cuda or cuda:N"),
    "expert-no-xpu": (["experts", "--out=NEW", "--device=xpu:0"], "use auto, cpu, cuda or cuda:N"),
    "inspect-no-meta": (["inspect", "store", "--device=meta", "--split=val"], "use auto, cpu, cuda or cuda:N"),
    "bezier-no-mps": (["bezier", "store", "--device=mps"], "use auto, cpu, cuda or cuda:N"),
    "evaluate-no-mps": (["evaluate", "run", "--device=mps"], "use auto, cpu, cuda or cuda:N"),
    "distill-no-xpu": (
        ["distill", "--trajectories=store", "--out=NEW", "--device=xpu"],
        "use auto, cpu, cuda or cuda:N",
    ),
    "expert-out-empty": (["experts", "--out", ""], "out: is empty"),
    "expert-out-is-empty": (["experts", "--out="], "out: is empty"),
    "report-of-nothing": (["report", ""], "an argument is empty"),
    "expert-out-nul": (["experts", "--out", "a\0b"], "out: holds a character that no path does"),
    "expert-out-long": (["experts", "--out", "a" * 300], "out: is too long"),
    "expert-data-path-long": (["experts", "--out=NEW", "--data_path", "a/" * 3000], "data_path: is too long"),
    "inspect-long": (["inspect", "a" * 100_000], "path: is too long"),
    "evaluate-name-long": (["evaluate", "run", "--model", "n" * 100_000], "use ConvNet"),
    "expert-name-long": (["experts", "--out=NEW", "--dataset", "n" * 100_000], "register_dataset"),
    "expert-width": (
        ["experts", "--out=NEW", "--model=MLP", "--width=2147483647"],
        "width: the network's parameters would take",
    ),
    "expert-depth": (
        ["experts", "--out=NEW", "--model=MLP", "--depth=2147483647"],
        "depth: got 2147483647; give at most",
    ),
    "expert-parallel": (
        ["experts", "--out=NEW", "--parallel=9000000", "--num-experts=9000000"],
        "parallel: so many experts at once would take",
    ),
    "expert-image-size": (["experts", "--out=NEW", "--image-size=500000"], "image_size: the images would take"),
    "distill-syn-steps": (
        ["distill", "--trajectories=store", "--out=NEW", "--syn-steps=2147483647"],
        "syn_steps: a student's parameters",
    ),
    "distill-canvas": (
        ["distill", "--trajectories=store", "--out=NEW", "--canvas=100000", "--pix-init=noise"],
        "canvas: the images",
    ),
    "distill-students": (
        ["distill", "--trajectories=store", "--out=NEW", "--students=2147483647"],
        "students: the images'",
    ),
    "evaluate-num-eval": (
        ["evaluate", "run", "--num-eval=2147483647"],
        "num_eval: so many networks at once would take",
    ),
    "expert-model-before-data": (["experts", "--out=NEW", "--model=ConvNut", *NO_DATA], "ConvNut"),
    "expert-norm-before-data": (["experts", "--out=NEW", "--norm=instanz", *NO_DATA], "instance"),
    "expert-activation-before-data": (["experts", "--out=NEW", "--activation=rely", *NO_DATA], "relu"),
    "expert-strategy-before-data": (["experts", "--out=NEW", "--dsa-strategy=colour", *NO_DATA], "color"),
    "expert-task-before-data": (["experts", "--out=NEW", "--task=regression", *NO_DATA], "multilabel"),
    "expert-schedule-before-data": (["experts", "--out=NEW", "--schedule=arc", *NO_DATA], "arc_length"),
    "evaluate-model-before-data": (["evaluate", "run", "--model=ConvNut", *NO_DATA], "ConvNut"),
    "evaluate-later-model-before-the-first": (
        ["evaluate", "run", "--model=ConvNet,ConvNetD9", "--num-eval=1"],
        "depth=9",
    ),
    "distill-preset-of-other-data": (
        ["distill", "--trajectories=store", "--out=NEW", "--preset=mct-cifar10-ipc1"],
        "preset: mct-cifar10-ipc1 is for cifar10, the experts of store saw digits",
    ),
    "expert-other-recipe-names-both": (
        [
            "experts",
            "--out=store",
            "--lr-teacher=0.3",
            "--depth=1",
            "--width=4",
            "--train-epochs=3",
            "--batch-train=700",
        ],
        "recipe (lr_teacher: 0.01 there, 0.3 here)",
    ),
    "expert-other-model-names-both": (
        ["experts", "--out=store", "--depth=2", "--width=4"],
        "model (depth: 1 there, 2 here)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_names_the_remedy(
    case: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words, remedy = CASES[case]
    monkeypatch.chdir(place)
    monkeypatch.setenv("MCT_FAST_CACHE", str(tmp_path / "cache"))
    before = sorted(place.rglob("*"))
    status = main([word.replace("NEW", str(tmp_path / "new")) for word in words])
    output = capsys.readouterr()
    assert status != 0
    lines = output.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("mct-fast: error: ") and remedy in lines[0]
    assert sorted(place.rglob("*")) == before and not (tmp_path / "new" / "config.json").exists()


def test_a_process_says_it_in_one_line_too(place: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mct_fast", "distill", "--trajectories=store", "--out=new", "--ipc=5000"],
        cwd=place, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("mct-fast: error: ipc: ")


def damaged_config(run: Path) -> None:
    file = run / "config.json"
    content = {**json.loads(file.read_text().replace('"syn_steps"', '"syn_stepz"')), "checksum": None}
    file.write_text(json.dumps(content))


def damaged_shard(run: Path) -> None:
    file = run / "distilled" / "distilled.safetensors"
    file.write_bytes(file.read_bytes()[:-4])


def damaged_metrics(run: Path) -> None:
    file = run / "metrics.jsonl"
    file.write_text("{not json\n" + file.read_text())


@pytest.mark.parametrize(
    ("damage", "command", "remedy"),
    [
        (damaged_config, ["distill", "--resume=run"], "syn_step"),
        (damaged_shard, ["evaluate", "run"], "distilled.safetensors"),
        (damaged_metrics, ["report", "run"], "line 1"),
        (damaged_metrics, ["inspect", "run"], "line 1"),
    ],
    ids=["config-field-misspelt", "distilled-cut", "report-metrics", "inspect-metrics"],
)
def test_a_damaged_run_is_named(
    damage: Callable[[Path], None], command: list[str], remedy: str, place: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for file in place.joinpath("run").rglob("*"):
        if file.is_file():
            copy = tmp_path / file.relative_to(place)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    damage(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert main(command) != 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and remedy in lines[0]


# What only Python can hand in


def test_pixels_and_labels_of_the_user() -> None:
    images, labels = torch.rand(6, 1, 8, 8), torch.tensor([0, 1, 0, 1, 0, 1])
    nan = images.clone()
    nan[2, 0, 3, 3] = float("nan")
    for bad, message in (
        ((nan, labels), "NaN"),
        ((images[:, 0, 0], labels), "shape"),
        ((images * 300, labels), "scale"),
        ((images, labels - 1), "negative"),
        ((images, labels[:5]), "labels"),
        ((images, labels + 1), "class 0"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            register_dataset("bad", bad, (images, labels))
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="out of range"):
        register_dataset("bad", (images, labels), (images, labels + 1))


def test_match_names_the_argument() -> None:
    model = ConvNet(depth=1, width=3, channels=1, image_size=8, num_classes=4)
    start = FunctionalModel(model).init(0)
    images, labels, rows = torch.randn(4, 1, 8, 8), torch.arange(4), torch.tensor([[0, 1], [2, 3]])
    nan = images.clone()
    nan[0, 0, 0, 0] = float("nan")
    for changed, argument in (
        ({"images": nan}, "images"),
        ({"images": torch.randn(4, 1, 9, 7)[..., :5]}, "images"),
        ({"images": torch.randn(4, 3, 8, 8)}, "images"),
        ({"labels": labels + 1}, "labels"),
        ({"labels": labels.float()}, "labels"),
        ({"syn_lr": -0.1}, "syn_lr"),
        ({"target": start}, "target"),
        ({"start": start[:-1]}, "start"),
        ({"batches": rows + 2}, "batches"),
    ):
        given = dict(images=images, labels=labels, syn_lr=0.1, start=start, target=start + 1, batches=rows)
        with pytest.raises(InputError, match=f"^{argument}: ") as caught:
            match(model, **{**given, **changed})  # pyright: ignore[reportArgumentType]
        assert "\n" not in str(caught.value)


def test_a_distilled_set_that_cannot_be_trained_on(place: Path) -> None:
    distilled = DistilledDataset.load(place / "run" / "distilled")
    images = distilled.images.clone()
    images[0, 0, 0, 0] = float("nan")
    digits = load_dataset("digits")
    for bad, message in (
        ({"images": images}, "NaN"),
        ({"labels": distilled.labels + 1}, "out of range"),
        ({"labels": distilled.labels[:-1]}, "one label"),
        ({"images": distilled.images.expand(-1, 3, -1, -1)}, "shape"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate(replace(distilled, **bad), digits)
