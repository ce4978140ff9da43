"""Tasks: losses against PyTorch's, metrics against scikit-learn's, labels, layouts."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, balanced_accuracy_score, brier_score_loss, roc_auc_score
from torch import Tensor

from mct_fast.run.errors import InputError
from mct_fast.tasks import (
    Binary,
    Classification,
    MultiLabel,
    format_metric,
    spread_order,
    task_from_state,
    task_named,
)
from mct_fast.tasks.layout import balanced_rows, rows_of_labels
from mct_fast.tasks.metrics import calibration_error


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(9,), (9, 1)], ids=str)
def test_binary_loss_is_pytorchs(shape: tuple[int, ...]) -> None:
    logits, soft = 30 * random(9, 1), random(*shape, seed=1).sigmoid()
    truth = F.binary_cross_entropy_with_logits(logits, soft.reshape(9, 1), pos_weight=torch.tensor(3.0))
    torch.testing.assert_close(Binary(3.0).loss(logits, soft), truth, rtol=1e-12, atol=0)
    hard = (soft.flatten() > 0.5).long()
    torch.testing.assert_close(Binary().loss(logits, hard), Binary().loss(logits, hard.double()))


def test_multilabel_loss_is_pytorchs() -> None:
    logits, labels = 30 * random(7, 3), (random(7, 3, seed=1) > 0).double()
    pos, weight = (1.0, 2.0, 0.5), (3.0, 1.0, 0.25)
    truth = F.binary_cross_entropy_with_logits(
        logits, labels, torch.tensor(weight), pos_weight=torch.tensor(pos, dtype=torch.float64)
    )
    torch.testing.assert_close(MultiLabel(pos, weight).loss(logits, labels), truth, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("task", "soft"),
    [(Binary(), False), (Binary(2.5), True), (MultiLabel(), True), (MultiLabel((4.0,), (1.0, 2.0, 0.5)), True)],
    ids=["binary-hard", "binary-soft", "labels", "labels-weighted"],
)
def test_head_agrees_with_the_loss(task: Binary | MultiLabel, soft: bool) -> None:
    outputs = 1 if isinstance(task, Binary) else 3
    h, w, b = random(2, 5, 4), random(2, outputs, 4, seed=1), random(2, outputs, seed=2)
    y = random(2, 5, outputs, seed=3).sigmoid()
    y = y if soft else (y[..., 0] > 0.5).long()
    head = task.head()
    loss, _, gw, _ = head.gradient(h, w, b, head.targets(y, outputs, h))
    for s in range(2):
        weight = w[s].clone().requires_grad_()
        truth = task.loss(F.linear(h[s], weight, b[s]), y[s])
        (grad,) = torch.autograd.grad(truth, weight)
        torch.testing.assert_close(loss[s], truth, rtol=1e-12, atol=0)
        torch.testing.assert_close(gw[s], grad, rtol=1e-10, atol=1e-15)


def test_binary_metrics_are_scikit_learns() -> None:
    logits, labels = random(200, 1), (random(200, seed=1) > 0.8).long()
    found = Binary().metrics(logits, labels)
    truth, score = labels.numpy(), logits[:, 0].numpy()
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, score), abs=1e-12)
    assert found["auprc"] == pytest.approx(average_precision_score(truth, score), abs=1e-12)
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, score > 0), abs=1e-12)
    assert found["brier"] == pytest.approx(brier_score_loss(truth, logits[:, 0].sigmoid().numpy()), abs=1e-12)
    assert Binary().score(logits, labels) == found["auroc"]


def test_multilabel_metrics_are_scikit_learns() -> None:
    logits, labels = random(200, 3), (random(200, 3, seed=1) > torch.tensor([0.0, 1.0, 1.5])).double()
    found = MultiLabel().metrics(logits, labels)
    for average in ("macro", "micro"):
        truth = roc_auc_score(labels.numpy(), logits.numpy(), average=average)
        assert found[f"{average}_auroc"] == pytest.approx(truth, abs=1e-12)
    labels[:, 1] = 0  # a label that nobody has is left out of the macro mean
    truth = roc_auc_score(labels[:, [0, 2]].numpy(), logits[:, [0, 2]].numpy())
    assert MultiLabel().score(logits, labels) == pytest.approx(truth, abs=1e-12)


def test_classification_metrics() -> None:
    logits, labels = random(300, 4), torch.randint(4, (300,), generator=torch.Generator().manual_seed(1))
    found = Classification().metrics(logits, labels)
    predicted = logits.argmax(1).numpy()
    assert found["accuracy"] == Classification().score(logits, labels)
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels.numpy(), predicted), abs=1e-12)
    assert found == Classification().metrics(logits, F.one_hot(labels).double())


def test_calibration_error_of_a_known_case() -> None:
    # 0.95 in the top bin, of which 3 of 4 are right: |0.95 - 0.75|; 0.5 in a middle bin, all right: 0.5
    confidence = torch.tensor([0.95, 0.95, 0.95, 0.95, 0.5], dtype=torch.float64)
    correct = torch.tensor([1, 1, 1, 0, 1], dtype=torch.float64)
    assert calibration_error(confidence, correct) == pytest.approx(0.8 * 0.2 + 0.2 * 0.5)
    assert calibration_error(torch.ones(3), torch.ones(3)) == 0


@pytest.mark.parametrize("value", [0, 1])
def test_one_class_only_gives_an_undefined_auroc(value: int) -> None:
    found = Binary().metrics(random(5, 1), torch.full((5,), value))
    assert math.isnan(found["auroc"])
    assert math.isnan(found["auprc"])
    assert 0 <= found["accuracy"] <= 1
    assert format_metric("auroc", found["auroc"], 0.0) == "undefined (one class only)"
    assert math.isnan(MultiLabel().score(random(5, 2), torch.full((5, 2), float(value))))


def test_a_network_that_diverged_ranks_nothing() -> None:
    logits = torch.full((6, 1), torch.nan)
    assert Binary().metrics(logits, torch.tensor([0, 1, 0, 1, 1, 0]))["auroc"] == 0.5


@pytest.mark.parametrize(
    ("task", "labels", "outputs", "named"),
    [
        (Binary(), torch.tensor([0, 1]), 2, "model"),
        (Binary(), torch.tensor([0, 2]), 1, "labels"),
        (Binary(), torch.tensor([0.0, 1.5]), 1, "labels"),
        (Binary(), torch.tensor([0.0, math.nan]), 1, "labels"),
        (Binary(), torch.zeros(2, 2), 1, "labels"),
        (Binary(), torch.zeros(2, dtype=torch.int32), 1, "labels"),
        (MultiLabel(), torch.zeros(2, 3), 4, "labels"),
        (MultiLabel(), torch.zeros(2, dtype=torch.int64), 1, "labels"),
        (MultiLabel(), torch.full((2, 3), -0.1), 3, "labels"),
        (MultiLabel((1.0, 2.0)), torch.zeros(2, 3), 3, "pos_weight"),
    ],
    ids=["outputs", "two", "above", "nan", "columns", "int32", "width", "classes", "below", "weights"],
)
def test_labels_that_do_not_fit_are_refused(
    task: Binary | MultiLabel, labels: Tensor, outputs: int, named: str
) -> None:
    with pytest.raises(InputError, match=f"^{named}: "):
        task.check(labels, outputs)


def test_wrong_tasks_and_weights_are_refused() -> None:
    for make in (lambda: Binary(0.0), lambda: MultiLabel((1.0, -1.0)), lambda: MultiLabel(weight=())):
        with pytest.raises(InputError, match="weight: "):
            make()
    with pytest.raises(InputError, match="^task: "):
        task_named("regression")
    with pytest.raises(InputError, match="^task: "):
        task_from_state({"name": "binary", "colour": 1})
    with pytest.raises(InputError, match="^task: "):
        Binary().num_outputs(3)
    with pytest.raises(InputError, match="^pos_weight: "):
        Classification().weighted(2.0, torch.zeros(3))


@pytest.mark.parametrize("task", [Classification(), Binary(2.0), MultiLabel((1.0, 3.0), (2.0,))], ids=lambda t: t.name)
def test_state_round_trips(task: Classification | Binary | MultiLabel) -> None:
    assert task_from_state(task.state()) == task
    assert type(task_named(task.name)) is type(task)


def test_balanced_weights() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    assert Binary().weighted(0, labels) == Binary(3.0)
    columns = torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert MultiLabel().weighted(0, columns) == MultiLabel((2.0, 0.5, 1.0))
    assert MultiLabel().weighted(7.0, columns) == MultiLabel((7.0,))


def test_a_kept_prior_balances_a_set_as_the_data_are() -> None:
    """As many rows of each class with the weight have the mean loss of rows as frequent as in the data, but for a factor."""
    labels = torch.tensor([0, 0, 0, 1])
    task = Binary(6.0).kept_prior(labels)
    assert task == Binary(2.0) and Binary().weighted(0, labels).kept_prior(labels) == Binary()
    logits = torch.tensor([[0.3], [-1.2]])
    even = 2 * task.loss(logits, torch.tensor([0, 1]))
    frequent = 4 * Binary(6.0).loss(logits[labels], labels)
    assert float(frequent) == pytest.approx(3 * float(even))
    assert MultiLabel((2.0,)).kept_prior(torch.zeros(4, 2)) == MultiLabel((2.0,))
    with pytest.raises(InputError, match="^keep_prior: is for binary tasks"):
        Classification().kept_prior(labels)


@pytest.mark.parametrize("count", [1, 7, 30, 100])
def test_balanced_rows_have_as_many_of_each_stratum(count: int) -> None:
    strata = torch.tensor([0] * 50 + [2] * 3 + [3] * 20)
    rows = balanced_rows(strata, count, torch.Generator().manual_seed(count))
    counts = torch.bincount(strata[rows], minlength=4)
    assert len(rows) == count and counts[1] == 0 and int(counts[[0, 2, 3]].max() - counts[[0, 2, 3]].min()) <= 1
    for stratum in (0, 2, 3):
        own = rows[strata[rows] == stratum]
        assert len(own.unique()) == min(len(own), int((strata == stratum).sum())), "none twice while there are others"
    assert not torch.equal(balanced_rows(strata, 100, torch.Generator().manual_seed(1)), rows)


def test_rows_of_a_multilabel_set_show_every_label() -> None:
    labels = torch.zeros(100, 3)
    labels[::2, 0], labels[17, 1] = 1, 1  # label 1 has one row of a hundred, label 2 none
    for seed in range(20):
        rows = rows_of_labels(labels, 6, torch.Generator().manual_seed(seed))
        assert len(rows.unique()) == 6
        assert bool(labels[rows, 0].any())
        assert 17 in rows
    with pytest.raises(InputError, match="^ipc: "):
        MultiLabel().draw_rows(labels, 3, 40, torch.Generator())


def test_strata_follow_the_rarest_label() -> None:
    labels = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    assert MultiLabel().strata(labels).tolist() == [1, 0, 2]
    assert Binary().strata(torch.tensor([0, 1, 1])).tolist() == [0, 1, 1]


def test_rare_rows_are_spread_over_the_batches() -> None:
    strata = torch.zeros(403, dtype=torch.int64)
    strata[:4] = 1
    seen = set()
    for seed in range(10):
        order = spread_order(strata, torch.Generator().manual_seed(seed))
        assert torch.equal(order.sort().values, torch.arange(403))
        places = (strata[order] == 1).nonzero().flatten()
        assert int(places.diff().min()) >= 403 // 4 - 1
        seen.add(int(places[0]))
    assert len(seen) > 5  # at random, all the same
