"""Evaluation: the field's protocol against a plain loop, the baseline, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import mct_fast.evaluate
from mct_fast.data import DSA, Dataset, Identity, load_dataset, random_real
from mct_fast.distilled import DistilledDataset
from mct_fast.evaluate import (
    EvalConfig,
    EvalResult,
    default_model,
    evaluate,
    evaluate_random_real,
    evaluate_splits,
    split_of,
)
from mct_fast.models import FunctionalModel, build_model, model_spec
from mct_fast.run.errors import InputError
from mct_fast.run.seeds import derive_seed, generator

SMALL = {"name": "ConvNet", "depth": 1, "width": 4}
QUICK = EvalConfig(num_eval=2, epoch_eval_train=6, batch_train=8, seed=4)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="module")
def some(digits: Dataset) -> DistilledDataset:
    images, labels = random_real(digits.train, 2, generator(0, "test"))
    return DistilledDataset(images, labels, 0.1, digits.transform, digits.class_names)


def plain(
    images: Tensor, labels: Tensor, lr: float, dataset: Dataset, config: EvalConfig, row: int, window: int | None = None
) -> float:
    """One network's accuracy by torch.optim.SGD in float64; with ``window`` on random windows of canvases."""
    network = build_model({**SMALL, "channels": 1, "image_size": 8, "num_classes": 10})
    initial = FunctionalModel(network).init(derive_seed(config.seed, "eval-init", row))
    nn.utils.vector_to_parameters(initial, network.parameters())
    network, stream = network.double(), generator(config.seed, "eval", row)
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    for epoch in range(config.epoch_eval_train):
        if epoch == config.epoch_eval_train // 2 + 1:
            optimizer = torch.optim.SGD(network.parameters(), lr=0.1 * lr, momentum=0.9, weight_decay=5e-4)
        for rows in torch.randperm(len(images), generator=stream).split(config.batch_train):
            x = images[rows].double()
            if window is not None:
                corners = torch.stack(
                    [torch.randint(side, (len(rows),), generator=stream) for side in images.shape[-2:]], 1
                )
                rolled = [
                    torch.roll(one, (-down, -right), (1, 2))
                    for one, (down, right) in zip(x, corners.tolist(), strict=True)
                ]
                x = torch.stack(rolled)[..., :window, :window]
            if config.dsa:
                x = DSA().draw(len(rows), (1, 8, 8), stream).apply(x)
            optimizer.zero_grad()
            y = labels[rows]
            nn.functional.cross_entropy(network(x), y.double() if y.is_floating_point() else y).backward()
            optimizer.step()
    with torch.no_grad():
        guesses = network(dataset.test.images.double()).argmax(1)
    return float((guesses == dataset.test.labels).double().mean())


@pytest.mark.parametrize("dsa", [True, False], ids=["dsa", "plain"])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_the_protocol_equals_a_plain_loop(soft: bool, dsa: bool, digits: Dataset, some: DistilledDataset) -> None:
    config = replace(QUICK, dsa=dsa)
    labels = nn.functional.one_hot(some.labels, 10).float() * 0.9 + 0.01 if soft else some.labels
    result = evaluate(replace(some, labels=labels), digits, config, model=SMALL)
    expected = [plain(some.images, labels, some.syn_lr, digits, config, row) for row in range(2)]
    # One test image in 360 may sit on the boundary between two classes in float32.
    assert result.scores == pytest.approx(expected, abs=1.01 / len(digits.test))
    assert len(set(expected)) == 2 and min(expected) > 0.15
    assert result.split == "test" and result.model == "ConvNet" and result.lr == 0.1
    assert result.mean == pytest.approx(sum(result.scores) / 2)
    assert result.std == pytest.approx(abs(result.scores[0] - result.scores[1]) / 2)


def test_the_network_is_the_sets_own_by_default(digits: Dataset, some: DistilledDataset) -> None:
    spec = {**SMALL, **digits.model_inputs, "num_classes": digits.num_classes}
    noted = replace(some, provenance={"model": model_spec(build_model(spec))})
    assert evaluate(noted, digits, QUICK) == evaluate(some, digits, QUICK, model=SMALL)
    with pytest.raises(InputError, match="^model: .*Sequential.*pass it"):
        evaluate(replace(some, provenance={"model": {"name": "Sequential"}}), digits, QUICK)


@pytest.mark.parametrize(("kind", "name"), [("images", "ConvNet"), ("table", "MLP"), ("series", "GRU")])
def test_where_a_set_names_no_network_its_data_do(kind: str, name: str, digits: Dataset) -> None:
    data = digits if kind == "images" else load_dataset("breast_cancer")
    assert default_model(replace(data, kind=kind) if kind == "series" else data) == name
    if kind == "table":
        images, labels = random_real(data.train, 1, generator(0, "test"))
        rows = DistilledDataset(images, labels, 0.01, data.transform, data.class_names)
        quick = EvalConfig(num_eval=1, epoch_eval_train=1)
        assert evaluate(rows, data, quick).model == evaluate_random_real(1, data, quick).model == "MLP"


def test_the_step_size_is_the_learned_one_unless_given(digits: Dataset, some: DistilledDataset) -> None:
    learned = evaluate(some, digits, QUICK, model=SMALL)
    given = evaluate(replace(some, syn_lr=7.0), digits, replace(QUICK, lr_net=0.1), model=SMALL)
    assert learned == given
    assert evaluate(replace(some, syn_lr=1e-4), digits, QUICK, model=SMALL).scores != learned.scores


def test_same_seed_same_accuracies_and_every_network_its_own(digits: Dataset, some: DistilledDataset) -> None:
    first = evaluate(some, digits, QUICK, model=SMALL)
    assert first == evaluate(some, digits, QUICK, model=SMALL)
    more = evaluate(some, digits, replace(QUICK, num_eval=3), model=SMALL)
    assert more.scores[:2] == first.scores
    assert evaluate(some, digits, replace(QUICK, seed=5), model=SMALL).scores != first.scores


@pytest.mark.parametrize("name", ["ResNet18BN", "VGG11BN", "AlexNet", "LeNet", "MLP", "ConvNetW8BN"])
def test_other_architectures(name: str) -> None:
    size = 8 if name in ("MLP", "ConvNetW8BN") else 32
    dataset = load_dataset("digits", image_size=size)
    test = replace(dataset.test, images=dataset.test.images[:20], labels=dataset.test.labels[:20])
    dataset = replace(dataset, test=test)
    images, labels = random_real(dataset.train, 1, generator(0, "test"))
    few = DistilledDataset(images[:4], labels[:4], 0.01, dataset.transform, dataset.class_names)
    result = evaluate(few, dataset, EvalConfig(num_eval=1, epoch_eval_train=1), model=name)
    assert len(result.scores) == 1 and 0 <= result.mean <= 1 and result.std == 0


def test_a_module_of_the_user_is_trained_from_scratch(digits: Dataset, some: DistilledDataset) -> None:
    network = build_model({**SMALL, "channels": 1, "image_size": 8, "num_classes": 10})
    by_module = evaluate(some, digits, QUICK, model=network)
    assert by_module == evaluate(some, digits, QUICK, model=SMALL)


def test_the_baseline_draws_anew_for_each_network(digits: Dataset) -> None:
    result = evaluate_random_real(2, digits, QUICK, model=SMALL, lrs=(0.1,))
    for row in range(2):
        images, labels = random_real(digits.train, 2, generator(QUICK.seed, "random-real", row))
        expected = plain(images, labels, 0.1, digits, QUICK, row)
        assert result.scores[row] == pytest.approx(expected, abs=1.01 / len(digits.test))


@pytest.mark.parametrize("select_on", ["val", "test"])
def test_the_baseline_takes_its_best_step_size(
    select_on: str, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = mct_fast.evaluate._Given.train_and_score
    asked: list[tuple[float, str]] = []

    def spy(*args: object) -> dict[str, EvalResult]:
        results = real(*args)  # pyright: ignore[reportArgumentType]
        asked.extend((result.lr, split) for split, result in results.items())
        return results

    monkeypatch.setattr(mct_fast.evaluate._Given, "train_and_score", spy)
    config = replace(QUICK, epoch_eval_train=20, select_on=select_on, lr_net=3.0)
    result = evaluate_random_real(2, digits, config, model=SMALL, lrs=(1e-5, 0.1))
    splits = dict.fromkeys((select_on, "test"))
    assert asked == [(lr, split) for lr in (1e-5, 0.1) for split in splits], "each step size is trained with once"
    assert result.lr == 0.1 and result.split == "test"


def test_canvases_are_trained_on_by_windows(digits: Dataset, some: DistilledDataset) -> None:
    canvases = replace(some, images=some.images.repeat(1, 1, 2, 2))
    result = evaluate(canvases, digits, QUICK, model=SMALL)
    expected = [plain(canvases.images, some.labels, some.syn_lr, digits, QUICK, row, window=8) for row in range(2)]
    assert result.scores == pytest.approx(expected, abs=1.01 / len(digits.test))
    assert result != evaluate(some, digits, QUICK, model=SMALL)
    for size in ((16, 8), (12, 12)):
        with pytest.raises(InputError, match="^dataset: "):
            evaluate(replace(some, images=torch.zeros(len(some), 1, *size)), digits, QUICK, model=SMALL)


def test_several_splits_score_the_same_networks(digits: Dataset, some: DistilledDataset) -> None:
    both = evaluate_splits(some, digits, QUICK, model=SMALL, splits=("val", "test"))
    assert both == {split: evaluate(some, digits, QUICK, model=SMALL, split=split) for split in ("val", "test")}


def test_what_does_not_fit_is_refused(digits: Dataset, some: DistilledDataset) -> None:
    with pytest.raises(InputError, match="^dataset: "):
        evaluate(replace(some, images=some.images[..., :7]), digits, QUICK, model=SMALL)
    with pytest.raises(InputError, match="^dataset: "):
        evaluate(replace(some, class_names=some.class_names[:9]), digits, QUICK, model=SMALL)
    with pytest.raises(InputError, match="^dataset: .*space"):
        evaluate(replace(some, transform=Identity()), digits, QUICK, model=SMALL)
    for bad in ({"num_eval": 0}, {"epoch_eval_train": 0}, {"batch_train": 0}, {"lr_net": 0.0}, {"select_on": "tset"}):
        with pytest.raises(InputError, match=f"^{next(iter(bad))}"):
            evaluate(some, digits, replace(QUICK, **bad), model=SMALL)
    with pytest.raises(InputError, match="^split: unknown 'tests'"):
        split_of(digits, "tests")
    with pytest.raises(InputError, match="val_fraction"):
        split_of(load_dataset("digits", val_fraction=0), "val")
    with pytest.raises(InputError, match="^ipc"):
        evaluate_random_real(1000, digits, QUICK, model=SMALL)


class Seen:
    """A progress display that keeps each task's name, units and steps."""

    def __init__(self) -> None:
        self.done: list[tuple[str, int, int]] = []

    @contextmanager
    def task(self, name: str, total: int, *, done: int = 0) -> Iterator[Seen]:
        place = len(self.done)
        self.done.append((name, total, done))
        self._open = place
        yield self

    def advance(self, n: int = 1, **shown: object) -> None:
        name, total, done = self.done[self._open]
        self.done[self._open] = name, total, done + n


def test_progress_says_what_is_trained_on_and_how_far_scoring_is(digits: Dataset, some: DistilledDataset) -> None:
    seen = Seen()
    for iteration in (None, 0, 7):
        made = replace(some, provenance={} if iteration is None else {"iteration": iteration})
        evaluate_splits(made, digits, QUICK, model=SMALL, progress=seen)
    evaluate_random_real(1, digits, QUICK, model=SMALL, lrs=(0.01, 0.1), split="test", progress=seen)
    what = (
        "images given",
        "first images",
        "images of iteration 7",
        *(f"random real images, step size {lr}" for lr in (0.01, 0.1)),
    )
    sizes = {"val": len(digits.val), "test": len(digits.test)}
    scoring = [(f"score on {name}", size, size) for name, size in sizes.items()]
    assert seen.done == [
        task for each in what for task in ((f"evaluate ConvNet, {each}", QUICK.networks.epoch_eval_train, 6), *scoring)
    ]
