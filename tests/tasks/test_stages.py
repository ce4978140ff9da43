"""Binary and multi-label tasks through all stages: experts, distilling, evaluation, report, on tables and series."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from mct_fast import cli
from mct_fast.data import Dataset, TableSpec, load_dataset, table_dataset
from mct_fast.distill import DistillConfig, distill
from mct_fast.distilled import DistilledDataset
from mct_fast.distilled.table import table_frame
from mct_fast.evaluate import EvalConfig, evaluate, evaluate_random_real, evaluate_splits
from mct_fast.experts import ExpertConfig, train_experts
from mct_fast.experts.bezier import BezierConfig, fit_bezier
from mct_fast.models import FunctionalModel, build_model
from mct_fast.run.errors import InputError
from mct_fast.run.folder import Run
from mct_fast.tasks import Binary, Classification, MultiLabel
from mct_fast.trajectory import TrajectoryStore
from mct_fast.view.inspect import inspect_store
from mct_fast.view.report import write_report

EXPERTS = ExpertConfig(model="MLP", depth=1, width=8, num_experts=2, train_epochs=4, lr_teacher=0.1, batch_train=32)
DISTILL = DistillConfig(
    ipc=2, syn_steps=3, expert_epochs=1.0, max_start_epoch=2.0, lr_img=0.1, lr_teacher=0.1, iterations=3, eval_it=1,
    num_eval=2, epoch_eval_train=4, img_optimizer="adam",
)  # fmt: skip
QUICK = EvalConfig(num_eval=2, epoch_eval_train=20, lr_net=0.1)


def frame(count: int = 300) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 4))
    noisy = x + 0.5 * rng.normal(size=x.shape)
    return pd.DataFrame(x, columns=list("abcd")).assign(
        died=(noisy[:, 0] > 0.8) * 1, shock=(noisy[:, 1] > 1) * 1, block=(noisy[:, 2] > 0) * 1
    )


def one() -> Dataset:
    return table_dataset(frame().drop(columns=["shock", "block"]), TableSpec(target=("died",)))


def several() -> Dataset:
    return table_dataset(frame(), TableSpec(target=("died", "shock", "block")))


def stays(path: Path, targets: int) -> Dataset:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(120, 5, 3))
    y = (x[:, :, :targets].mean(1) > 0).astype(np.int64)
    np.savez(path, x=x, y=y[:, 0] if targets == 1 else y)
    return load_dataset("series", data_path=path)


def test_a_set_of_a_rare_class_keeps_its_prior(tmp_path: Path) -> None:
    dataset = one()
    positives = float(dataset.train.labels.double().mean())
    store = train_experts(EXPERTS, tmp_path / "experts", dataset)
    config = replace(DISTILL, keep_prior=True)
    distilled = distill(config, store, dataset, out=tmp_path / "run")
    assert isinstance(distilled.task, Binary) and distilled.task.pos_weight == pytest.approx(
        positives / (1 - positives)
    )
    assert DistilledDataset.load(tmp_path / "run" / "distilled").task == distilled.task
    assert not torch.equal(distill(DISTILL, store, dataset).images, distilled.images)
    assert evaluate(distilled, dataset, QUICK).metric == "auroc"
    with pytest.raises(InputError, match="^keep_prior: "):
        distill(replace(config, seed=1), store, dataset, task=Classification())


@pytest.mark.parametrize("made", [one, several], ids=["binary", "multilabel"])
def test_a_table_goes_through_all_stages(made: Callable[[], Dataset], tmp_path: Path) -> None:
    dataset = made()
    outputs, rows = (1, 4) if dataset.task == "binary" else (3, 6)
    headline = "auroc" if dataset.task == "binary" else "macro_auroc"
    store = train_experts(EXPERTS, tmp_path / "experts", dataset)
    assert store.manifest["task"]["name"] == dataset.task and store.manifest["model"]["num_classes"] == outputs
    info = store.info(0)
    assert 0.5 < info[headline] <= 1 and "accuracy" not in info

    distilled = distill(DISTILL, store, dataset, out=tmp_path / "run")
    assert distilled.task == (Binary() if outputs == 1 else MultiLabel()) and len(distilled) == rows
    final = Run.open(tmp_path / "run").metrics()[-1]
    assert final["metric"] == headline and len(final["test_scores"]) == 2
    assert final["test_metrics"][headline] == final["test_scores"]
    assert set(final["test_metrics"]) >= {"accuracy", "ece"} and set(final["random_real_metrics"]) >= {"accuracy"}
    again = DistilledDataset.load(tmp_path / "run" / "distilled")
    assert again.task == distilled.task
    page = write_report(tmp_path / "run").read_text()
    assert ("Test AUROC" if outputs == 1 else "Test macro AUROC") in page and "accuracy, %" not in page
    assert len(table_frame(distilled)) == rows


def test_the_score_is_scikit_learns_area_of_the_trained_network(tmp_path: Path) -> None:
    dataset = one()
    store = train_experts(replace(EXPERTS, encoding="float32"), tmp_path / "experts", dataset)
    model = FunctionalModel(build_model(store.manifest["model"]))
    theta = store.trajectory(1).at(float(store[1].epochs))
    logits = model(theta, dataset.val.images).flatten().detach().numpy()
    assert store.info(1)["auroc"] == pytest.approx(roc_auc_score(dataset.val.labels.numpy(), logits), abs=1e-6)


def test_students_have_the_loss_of_their_experts(tmp_path: Path) -> None:
    dataset = one()
    weighted = train_experts(replace(EXPERTS, pos_weight=0.0), tmp_path / "weighted", dataset)
    positives = float(dataset.train.labels.double().mean())
    assert weighted.manifest["task"]["pos_weight"] == pytest.approx((1 - positives) / positives)
    plain = train_experts(EXPERTS, tmp_path / "plain", dataset)
    config = replace(DISTILL, iterations=1)
    noted = distill(config, weighted, dataset)
    assert isinstance(noted.task, Binary) and noted.task.pos_weight == weighted.manifest["task"]["pos_weight"]
    paths = [weighted.trajectory(i) for i in range(2)]
    network = build_model(weighted.manifest["model"])
    same = distill(config, paths, dataset, model=network, task=noted.task, out=tmp_path / "same")
    other = distill(config, paths, dataset, model=network, out=tmp_path / "other")
    assert other.task == Binary()
    losses = [Run.open(tmp_path / name).metrics()[1]["loss"] for name in ("same", "other")]
    assert losses[0] != losses[1] and bool(torch.isfinite(same.images).all())
    assert not torch.equal(plain[0].at(2.0), weighted[0].at(2.0))


def test_two_classes_may_be_told_apart_by_cross_entropy(tmp_path: Path) -> None:
    dataset = one()
    store = train_experts(replace(EXPERTS, task="classification"), tmp_path / "experts", dataset)
    assert store.manifest["model"]["num_classes"] == 2 and "accuracy" in store.info(0)
    assert distill(replace(DISTILL, iterations=1), store, dataset).task.name == "classification"
    with pytest.raises(InputError, match="labels: got torch.int64"):
        train_experts(replace(EXPERTS, task="multilabel"), tmp_path / "wrong", dataset)


def test_stratified_batches_hold_their_share_of_rare_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mct_fast import training

    dataset = table_dataset(
        frame(2000).drop(columns=["shock", "block"]), TableSpec(target=("died",), subsample_positive=0.05)
    )
    share = float(dataset.train.labels.double().mean())
    off: list[float] = []
    real = training.FlatStack.step

    def spy(self: training.FlatStack, x: torch.Tensor, y: torch.Tensor, lr: float) -> torch.Tensor:
        off.extend(abs(float(labels.sum()) - share * len(labels)) for labels in y)
        return real(self, x, y, lr)

    monkeypatch.setattr(training.FlatStack, "step", spy)
    config = replace(EXPERTS, train_epochs=1, batch_train=200)
    train_experts(replace(config, stratify=True), tmp_path / "spread", dataset)
    assert len(off) == 2 * -(-len(dataset.train) // 200) and max(off) <= 1.01
    off.clear()
    train_experts(config, tmp_path / "plain", dataset)
    assert max(off) > 1.01


@pytest.mark.parametrize("made", [one, several], ids=["binary", "multilabel"])
@pytest.mark.parametrize("labels", ["hard", "expert"])
def test_labels_that_are_learned_stay_probabilities(made: Callable[[], Dataset], labels: str, tmp_path: Path) -> None:
    dataset = made()
    store = train_experts(EXPERTS, tmp_path / "experts", dataset)
    config = replace(DISTILL, labels=labels, lr_label=1.0, pix_init="noise")
    found = distill(config, store, dataset, out=tmp_path / "run")
    first = distill(replace(config, iterations=1, eval_it=0, lr_label=0.0), store, dataset)
    assert found.labels.is_floating_point() and float(found.labels.min()) > 0 and float(found.labels.max()) < 1
    if labels == "expert":
        assert not torch.equal(found.labels, first.labels) or found.provenance["iteration"] == 0
    assert len(table_frame(found)) == len(found)
    resumed = distill(config, store, dataset, out=tmp_path / "run", resume=True)
    assert torch.equal(resumed.labels, found.labels)


@pytest.mark.parametrize("model", ["GRU", "TCN", "MLP"])
@pytest.mark.parametrize("targets", [1, 2], ids=["binary", "multilabel"])
def test_series_go_through_all_stages(model: str, targets: int, tmp_path: Path) -> None:
    dataset = stays(tmp_path / "stays.npz", targets)
    config = replace(EXPERTS, model=model, train_epochs=3, jitter=0.1)
    store = train_experts(config, tmp_path / "experts", dataset)
    assert store.manifest["model"]["depth"] == 1 and store.manifest["model"]["width"] == 8
    assert store.manifest["recipe"]["jitter"] == 0.1
    fit_bezier(store, BezierConfig(epochs=1, batch_train=32), dataset)
    for kind in ("convex", "bezier"):
        made = distill(replace(DISTILL, trajectory=kind, jitter=0.1, iterations=2), store, dataset)
        assert bool(torch.isfinite(made.images).all()) and len(made) == 4
    report = inspect_store(store, data_path=str(tmp_path / "stays.npz"), points=2)
    assert report.along is not None and report.metric == report.along.metric == made.task.headline


def test_evaluation_measures_and_drops(tmp_path: Path) -> None:
    dataset = one()
    store = train_experts(EXPERTS, tmp_path / "experts", dataset)
    distilled = distill(replace(DISTILL, iterations=1), store, dataset)
    results = evaluate_splits(distilled, dataset, QUICK, model="MLP")
    for split, result in results.items():
        assert result.metric == "auroc" and result.metrics["auroc"] == result.scores and "(AUROC, " in str(result)
        assert all(len(values) == 2 for values in result.metrics.values()), split
    dropped = evaluate(distilled, dataset, replace(QUICK, dropout=0.5), model="MLP")
    assert dropped.scores != results["test"].scores
    noisy = evaluate(distilled, dataset, replace(QUICK, jitter=0.5), model="MLP")
    assert noisy.scores != results["test"].scores
    random = evaluate_random_real(3, several(), QUICK, model="MLP")
    assert random.metric == "macro_auroc" and len(random.scores) == 2
    module = build_model({**store.manifest["model"]})
    with pytest.raises(InputError, match="dropout: a module of your own"):
        evaluate(distilled, dataset, replace(QUICK, dropout=0.5), model=module)


def test_a_split_of_one_kind_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    dataset = one()
    store = train_experts(EXPERTS, tmp_path / "experts", dataset)
    healthy = dataset.val.labels == 0
    val = replace(dataset.val, images=dataset.val.images[healthy], labels=dataset.val.labels[healthy])
    with pytest.raises(InputError, match="AUROC has no answer on the val split"):
        distill(DISTILL, [store[0], store[1]], replace(dataset, val=val), model=build_model(store.manifest["model"]))


def test_the_command_line_speaks_of_the_metric(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame().drop(columns=["block"]).to_csv(tmp_path / "t.csv", index=False)
    words = f"--dataset table --data-path {tmp_path / 't.csv'} --target died shock --model MLP --depth 1 --width 8"
    words += f" --num-experts 2 --train-epochs 3 --pos-weight 0 --stratify --out {tmp_path / 'experts'}"
    assert cli.main(["experts", *words.split()]) == 0
    assert "macro AUROC" in capsys.readouterr().out
    words = f"--trajectories {tmp_path / 'experts'} --out {tmp_path / 'run'} --ipc 2 --syn-steps 2 --iterations 2"
    words += " --max-start-epoch 1 --expert-epochs 1 --eval-it 1 --num-eval 1 --epoch-eval-train 2 --jitter 0.05 --max-loss 1e6"
    assert cli.main(["distill", *words.split()]) == 0
    assert "macro AUROC 0." in capsys.readouterr().out
    assert cli.main(["evaluate", str(tmp_path / "run"), "--num-eval", "1", "--epoch-eval-train", "2"]) == 0
    (record,) = Run.open(tmp_path / "run").evaluations()
    assert record["metric"] == "macro_auroc" and "micro_auroc" in record["metrics"]
    assert cli.main(["inspect", str(tmp_path / "experts"), "--points", "2"]) == 0
    assert "Macro AUROC along the path" in capsys.readouterr().out
    assert cli.main(["experts", "--jitter", "0.1", "--out", str(tmp_path / "no")]) == 2
    assert "jitter: is for tables and series" in capsys.readouterr().err


def test_stores_of_another_task_are_not_mixed(tmp_path: Path) -> None:
    dataset = one()
    store = train_experts(EXPERTS, tmp_path / "experts", dataset)
    assert isinstance(store, TrajectoryStore)
    with pytest.raises(InputError, match="task"):
        train_experts(replace(EXPERTS, num_experts=3, pos_weight=2.0), tmp_path / "experts", dataset)
