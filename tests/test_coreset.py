"""Herding and k-centre choose what their definitions say, the same each time, from each class."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from mct_fast import cli
from mct_fast.coreset import METHODS, coreset, evaluate_coreset, features_of, herding, kcenter, kmeans
from mct_fast.data import Dataset, TableSpec, load_dataset, table_dataset
from mct_fast.models import build_model
from mct_fast.run.errors import InputError
from mct_fast.run.folder import Run
from mct_fast.settings import EvalConfig
from mct_fast.tasks import format_metric
from mct_fast.view.facts import Facts, compared
from mct_fast.view.report import write_report

POINTS = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def test_each_image_of_herding_brings_the_mean_nearest() -> None:
    picked = herding(POINTS, 6)
    assert len(set(picked)) == 6
    mean = POINTS.double().mean(0)
    for number in range(1, 7):
        before = picked[: number - 1]
        gap = {
            row: float((POINTS[[*before, row]].double().mean(0) - mean).norm())
            for row in range(12)
            if row not in before
        }
        assert min(gap, key=lambda row: gap[row]) == picked[number - 1]


def test_each_centre_is_the_furthest_and_covers_within_twice_the_best() -> None:
    picked = kcenter(POINTS, 4)
    between = torch.cdist(POINTS.double(), POINTS.double())
    assert picked[0] == int((POINTS - POINTS.mean(0)).norm(dim=1).argmin())
    for number in range(1, 4):
        assert picked[number] == int(between[:, picked[:number]].amin(1).argmax())

    def radius(rows: tuple[int, ...]) -> float:
        return float(between[:, list(rows)].amin(1).max())

    best = min(radius(rows) for rows in itertools.combinations(range(12), 4))
    assert radius(tuple(picked)) <= 2 * best  # Gonzalez, 1985


@pytest.mark.parametrize("method", METHODS)
def test_equal_rows_are_picked_once_each(method: str) -> None:
    assert sorted(METHODS[method](torch.ones(5, 2), 5)) == [0, 1, 2, 3, 4]


def test_features_are_what_the_last_layer_is_given(digits: Dataset) -> None:
    network = build_model({"name": "ConvNet", "width": 4, "depth": 2, **digits.model_inputs}).eval()
    images = digits.train.images[:7]
    last = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
    features = features_of(network, images, chunk=3)
    assert torch.allclose(last(features), network(images), atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("epochs", [0, 1])
def test_a_coreset_is_of_real_images_and_the_same_each_time(method: str, epochs: int, digits: Dataset) -> None:
    model = {"name": "MLP", "depth": 1, "width": 8}
    chosen = coreset(digits, 2, method, model=model, epochs=epochs)
    again = coreset(digits, 2, method, model=model, epochs=epochs)
    assert torch.equal(chosen.images, again.images)
    assert chosen.labels.tolist() == [c for c in range(10) for _ in range(2)]
    real = {
        image.numpy().tobytes(): int(label)
        for image, label in zip(digits.train.images, digits.train.labels, strict=True)
    }
    assert [real[image.numpy().tobytes()] for image in chosen.images] == chosen.labels.tolist()
    assert len({image.numpy().tobytes() for image in chosen.images}) == 20


def test_centres_of_clusters_are_picked() -> None:
    points = torch.cat([torch.randn(30, 2, generator=torch.Generator().manual_seed(i)) / 9 + 5 * i for i in range(3)])
    assert sorted(row // 30 for row in kmeans(points, 3)) == [0, 1, 2]
    for row in kmeans(points, 3):
        centre = points[row // 30 * 30 :][:30].mean(0)
        nearest = (points - centre).norm(dim=1).argmin()
        assert row == int(nearest)


def test_of_several_labels_rows_are_chosen_of_all() -> None:
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(90, 3)), columns=list("abc"))
    frame = frame.assign(died=(frame["a"] > 0).astype(int), shock=(frame["b"] > 0.5).astype(int))
    dataset = table_dataset(frame, TableSpec(target=("died", "shock")))
    chosen = coreset(dataset, 4, "kmeans", epochs=1)
    assert len(chosen) == 8 and chosen.labels.shape == (8, 2) and len(chosen.images.unique(dim=0)) == 8
    with pytest.raises(InputError, match=r"^ipc: 200 is more than there are, \d+; lower it"):
        coreset(dataset, 100, "herding")


def test_the_better_step_size_counts(digits: Dataset) -> None:
    chosen = coreset(digits, 1, "herding", model="MLP", epochs=0)
    how = EvalConfig(num_eval=1, epoch_eval_train=20)
    both, poor, good = (
        evaluate_coreset(chosen, digits, how, model="MLP", lrs=lrs) for lrs in ((1e-6, 0.01), (1e-6,), (0.01,))
    )
    assert both.scores == good.scores and both.lr == 0.01 and good.mean > poor.mean


def test_what_cannot_be_chosen_is_refused(digits: Dataset) -> None:
    with pytest.raises(InputError, match="^coreset: unknown method 'best'; "):
        coreset(digits, 1, "best")
    with pytest.raises(InputError, match=r"^ipc: 500 is more than the \d+ training images"):
        coreset(digits, 500, "herding")


def test_a_run_keeps_its_controls_and_its_page_shows_them(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    quick = ["--num_eval", "2", "--epoch_eval_train", "2", "--coreset_epochs", "0"]
    assert cli.main(["evaluate", str(path), "--model", "ConvNet,MLP", "--coreset", "kcenter,herding", *quick]) == 0
    printed = capsys.readouterr().out
    records = {record["model"]: record for record in Run.open(path).evaluations()}
    assert len(records) == 2
    for record in records.values():
        assert list(record["coresets"]) == ["kcenter", "herding"]
        for found in record["coresets"].values():
            assert found["epochs"] == 0 and len(found["scores"]) == 2
            assert found["mean"] == pytest.approx(sum(found["scores"]) / 2)
            assert format_metric("accuracy", found["mean"], found["std"]) in printed
    page = write_report(path).read_text(encoding="utf-8")
    for record in records.values():
        assert all(format_metric("accuracy", f["mean"], f["std"]) in page for f in record["coresets"].values())
    final = Run.open(path).metrics()[-1]
    rows = compared(Facts.of(Run.open(path)))
    wanted = records[final["model"]]["coresets"]
    assert {name: score for name, score, _ in rows if "chosen" in name} == {
        f"10 real images chosen by {'k-centre' if method == 'kcenter' else method}": format_metric(
            "accuracy", found["mean"], found["std"]
        )
        for method, found in wanted.items()
    }
    # Evaluated again without them, a record has none.
    assert cli.main(["evaluate", str(path), *quick]) == 0
    assert ["coresets" in record for record in Run.open(path).evaluations()].count(True) == 1


def test_controls_stand_beside_the_result(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--num_eval", "1", "--epoch_eval_train", "2", "--coreset_epochs", "0"]
    words = ["evaluate", str(tiny_run / "distilled"), "--coreset", "herding,kcenter", *quick]
    assert cli.main(words) == 0
    head, row = capsys.readouterr().out.splitlines()[-2:]
    assert head.split()[-2:] == ["herding", "kcenter"] and row.count("%") == 4
    assert cli.main([*words[:3], "best", *quick]) == 2
