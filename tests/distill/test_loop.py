"""The outer loop: it descends as PyTorch's optimisers do, survives kills to the same bits, and keeps bad iterations out."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mct_fast.distill.matches
import mct_fast.distill.selection
import mct_fast.evaluate
from mct_fast.data import Dataset, load_dataset
from mct_fast.distill import DistillConfig, DistilledDataset, distill
from mct_fast.distill.learned import StepSize
from mct_fast.evaluate import EvalConfig, evaluate
from mct_fast.experts import ExpertConfig, train_experts
from mct_fast.matching import Asked, Matcher
from mct_fast.matching.points import Points
from mct_fast.matching.problem import MatchResult
from mct_fast.run.errors import InputError
from mct_fast.run.folder import Run
from mct_fast.trajectory import ConvexTrajectory, TrajectoryStore
from mct_fast.view.report import write_report
from tests.distill.runs import last_images, records, same_runs

EXPERTS = ExpertConfig(
    num_experts=2, train_epochs=4, depth=1, width=4, batch_train=500, lr_teacher=0.05, keep_checkpoints=True, dsa=False
)
TINY = DistillConfig(
    ipc=1, syn_steps=3, expert_epochs=1.5, max_start_epoch=2.0, lr_img=20.0, lr_lr=1e-4, lr_teacher=0.05,
    iterations=5, eval_it=2, num_eval=2, epoch_eval_train=2, checkpoint_every=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="module")
def store(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> TrajectoryStore:
    return train_experts(EXPERTS, tmp_path_factory.mktemp("experts") / "store", digits)


@dataclass
class Call:
    """What the loop gave the matcher, and what it got."""

    images: Tensor
    syn_lr: float
    start: Tensor
    target: Tensor
    batches: Tensor
    augmented: bool
    result: MatchResult


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Records every match of the loop."""
    seen: list[Call] = []

    class Recorder(Matcher):
        def trusted(self, asked: Sequence[Asked]) -> list[MatchResult]:
            found = super().trusted(asked)
            for one, result in zip(asked, found, strict=True):
                start, target = (points.dense() for points in Points.of_paths(one.start, one.target))
                augmented = one.augment is not None
                seen.append(
                    Call(one.images.detach().clone(), one.syn_lr, start, target, one.batches, augmented, result)
                )
            return found

    monkeypatch.setattr(mct_fast.distill.matches, "Matcher", Recorder)
    return seen


# Descent


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_pixels_and_step_size_descend_as_torch_does(
    optimizer: str, digits: Dataset, store: TrajectoryStore, calls: list[Call], tmp_path: Path
) -> None:
    lr = 20.0 if optimizer == "sgd" else 0.05
    config = replace(TINY, img_optimizer=optimizer, lr_img=lr, lr_decay=0.3, lr_decay_every=2, eval_it=0, lr_lr=1e-3)
    distill(config, store, digits, out=tmp_path / "run")
    pixels = calls[0].images.clone().requires_grad_()
    alpha = torch.tensor(config.lr_teacher, dtype=torch.float64, requires_grad=True)
    make = torch.optim.Adam if optimizer == "adam" else lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.5)
    pixel_optimizer = make([pixels], lr=lr)
    alpha_optimizer = torch.optim.SGD([alpha], lr=1e-3, momentum=0.5)
    for iteration, call in enumerate(calls):
        assert torch.equal(call.images, pixels.detach())
        assert call.syn_lr == pytest.approx(
            float(alpha.detach()), rel=1e-14
        )  # PyTorch may multiply and add in one rounding
        pixel_optimizer.param_groups[0]["lr"] = lr * 0.3 ** (iteration // 2)
        pixels.grad, alpha.grad = call.result.grad_images, call.result.grad_lr.double()
        pixel_optimizer.step()
        alpha_optimizer.step()
    assert len(calls) == 5 and torch.equal(last_images(tmp_path / "run"), pixels.detach())
    assert not torch.equal(calls[0].images, pixels.detach())


def test_convex_continuous_segments_lie_on_the_path(
    digits: Dataset, store: TrajectoryStore, calls: list[Call], tmp_path: Path
) -> None:
    config = replace(TINY, eval_it=0, growth_iterations=4, initial_start_epoch=0.5, iterations=6)
    distill(config, store, digits, out=tmp_path / "run")
    starts, experts = [], []
    for iteration, (record, call) in enumerate(zip(records(tmp_path / "run", "iter"), calls, strict=True)):
        start, target = record["start"], record["target"]
        assert 0 <= start <= min(0.5 + 1.5 * iteration / 4, 2.0) and target == start + 1.5
        on_path = [torch.equal(call.start[0], path.at(start)) for path in store]
        assert sum(on_path) == 1
        assert torch.equal(call.target[0], store[on_path.index(True)].at(target))
        starts.append(start)
        experts.append(on_path.index(True))
    assert any(start != int(start) for start in starts) and len(set(starts)) == len(starts)
    # The experts take turns: each is used once a round, in an order of its own.
    assert [sorted(experts[i : i + 2]) for i in (0, 2, 4)] == [[0, 1]] * 3


def test_mtt_draws_whole_epochs_of_the_checkpoints(
    digits: Dataset, store: TrajectoryStore, calls: list[Call], tmp_path: Path
) -> None:
    config = replace(
        TINY, trajectory="discrete", sampling="integer", expert_epochs=2, max_start_epoch=3, eval_it=0, iterations=8
    )
    distill(config, store, digits, out=tmp_path / "run")
    kept = [store.trajectory(i, "discrete") for i in range(2)]
    starts = set()
    for record, call in zip(records(tmp_path / "run", "iter"), calls, strict=True):
        start, target = record["start"], record["target"]
        assert start in (0, 1, 2) and target == start + 2
        assert any(
            torch.equal(call.start[0], path.at(start)) and torch.equal(call.target[0], path.at(target)) for path in kept
        )
        starts.add(start)
    assert len(starts) > 1


def test_batch_syn_with_a_remainder(digits: Dataset, store: TrajectoryStore, calls: list[Call]) -> None:
    distill(replace(TINY, batch_syn=4, students=2, eval_it=0, syn_steps=6, iterations=2), store, digits)
    for call in calls:
        assert call.batches.shape == (2, 6, 4)
        for rows in call.batches:  # ten images: 4 + 4 + 2, twice, each image once a round
            for round_ in rows.reshape(2, 12):
                used = round_[round_ >= 0]
                assert sorted(used.tolist()) == list(range(10))


def test_initial_images(digits: Dataset, store: TrajectoryStore, calls: list[Call]) -> None:
    distill(replace(TINY, ipc=2, iterations=1, eval_it=0), store, digits)
    real = calls[-1].images
    for row, image in enumerate(real):
        found = (digits.train.images == image).flatten(1).all(1)
        assert digits.train.labels[found].tolist() == [row // 2] * int(found.sum()) and found.any()
    distill(replace(TINY, pix_init="noise", iterations=1, eval_it=0), store, digits)
    noise = calls[-1].images
    assert abs(float(noise.mean())) < 0.2 and abs(float(noise.std()) - 1) < 0.1


def test_dsa_can_be_switched_off(digits: Dataset, store: TrajectoryStore, calls: list[Call]) -> None:
    distill(replace(TINY, dsa=False, iterations=1, eval_it=0), store, digits)
    distill(replace(TINY, iterations=1, eval_it=0), store, digits)
    assert [call.augmented for call in calls] == [False, True]


def test_same_seed_same_bits(digits: Dataset, store: TrajectoryStore) -> None:
    config = replace(TINY, eval_it=0)
    first, again = distill(config, store, digits), distill(config, store.path)
    other = distill(replace(config, seed=1), store, digits)
    assert torch.equal(first.images, again.images) and first.syn_lr == again.syn_lr
    assert not torch.equal(first.images, other.images)
    assert isinstance(first.syn_lr, float) and first.syn_lr != float(torch.tensor(first.syn_lr)), "kept in double"
    json.dumps(dict(first.provenance))


def test_any_module_of_the_user(digits: Dataset) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 10))
    g = torch.Generator().manual_seed(0)
    points = [[0.3 * torch.randn(p.shape, generator=g) for p in network.parameters()] for _ in range(4)]
    path = ConvexTrajectory.fit(points)
    before = [p.detach().clone() for p in network.parameters()]
    made = distill(replace(TINY, max_start_epoch=1.0), [path], digits, model=network)
    assert made.images.shape == (10, 1, 8, 8) and made.provenance["model"] == {"name": "Sequential"}
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True)), "left alone"


# Kills


class Killed(BaseException):
    pass


class Killer:
    """A progress display that kills the run at its ``at``-th step (of any task), and counts the steps."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.names, self._task = at, [], []

    def task(self, name: str, total: int, *, done: int = 0) -> Killer:
        self._task.append(name)
        return self

    def __enter__(self) -> Killer:
        return self

    def __exit__(self, *_: object) -> None:
        self._task.pop()

    def advance(self, n: int = 1, **shown: float | str) -> None:
        self.names.append(self._task[-1])
        if len(self.names) == self.at:
            raise Killed


@pytest.fixture(scope="module", params=["sgd-S2", "adam-discrete"])
def whole(
    request: pytest.FixtureRequest, digits: Dataset, store: TrajectoryStore, tmp_path_factory: pytest.TempPathFactory
) -> tuple[DistillConfig, Path, list[str]]:
    config = {
        "sgd-S2": replace(TINY, students=2, batch_syn=4),
        "adam-discrete": replace(
            TINY, img_optimizer="adam", lr_img=0.05, trajectory="discrete", sampling="integer", expert_epochs=2
        ),
    }[request.param]
    run, counter = tmp_path_factory.mktemp("whole") / "run", Killer()
    distill(config, store, digits, out=run, progress=counter)
    return config, run, counter.names


def test_a_killed_run_goes_on_to_the_same_bits(
    whole: tuple[DistillConfig, Path, list[str]], digits: Dataset, store: TrajectoryStore, tmp_path: Path
) -> None:
    config, run, steps = whole
    assert [r["iteration"] for r in records(run, "iter")] == [1, 2, 3, 4, 5]
    assert [r["iteration"] for r in records(run, "eval")] == [0, 2, 4, 5]
    # After every iteration's metrics line, and within the evaluations between, at the end and of the baseline.
    places = [i for i, name in enumerate(steps, 1) if name == "distil"] + list(range(2, len(steps) + 1, 5))
    reference = tmp_path / "reference"  # load_checkpoint cuts the metrics back, so compare with a copy
    for place in sorted(set(places)):
        killed = tmp_path / f"killed{place}"
        with pytest.raises(Killed):
            distill(config, store, digits, out=killed, progress=Killer(place))
        if place % 2:
            with open(killed / "metrics.jsonl", "a") as file:
                file.write('{"kind": "iter", "iter')  # torn by the kill
        resumed = distill(config, store, digits, out=killed, resume=True)
        shutil.rmtree(reference, ignore_errors=True)
        shutil.copytree(run, reference)
        same_runs(killed, reference)
        assert torch.equal(resumed.images, DistilledDataset.load(reference / "distilled").images)


@pytest.mark.parametrize("written", [False, True], ids=["before", "after"])
def test_a_kill_around_a_checkpoint(
    written: bool, digits: Dataset, store: TrajectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distill(TINY, store, digits, out=tmp_path / "whole")
    save = Run.save_checkpoint
    for turn in (1, 2, 3):
        seen = 0

        def dying(self: Run, tensors: dict[str, Tensor], state: dict[str, Any], turn: int = turn) -> None:
            nonlocal seen
            seen += 1
            if seen < turn or written:
                save(self, tensors, state)
            if seen == turn:
                raise Killed

        monkeypatch.setattr(Run, "save_checkpoint", dying)
        with pytest.raises(Killed):
            distill(TINY, store, digits, out=tmp_path / f"killed{turn}")
        monkeypatch.setattr(Run, "save_checkpoint", save)
        distill(TINY, store, digits, out=tmp_path / f"killed{turn}", resume=True)
        shutil.copytree(tmp_path / "whole", tmp_path / f"copy{turn}")
        same_runs(tmp_path / f"killed{turn}", tmp_path / f"copy{turn}")


def test_a_finished_run_is_not_done_again(digits: Dataset, store: TrajectoryStore, tmp_path: Path) -> None:
    made = distill(TINY, store, digits, out=tmp_path / "run")
    before = {f: f.read_bytes() for f in (tmp_path / "run").rglob("*") if f.is_file()}
    counter = Killer()
    again = distill(TINY, store, digits, out=tmp_path / "run", resume=True, progress=counter)
    assert counter.names == [] and torch.equal(again.images, made.images) and again.provenance == made.provenance
    assert before == {f: f.read_bytes() for f in (tmp_path / "run").rglob("*") if f.is_file()}
    final = records(tmp_path / "run", "final")
    assert len(final) == 1 and 0 <= final[0]["test_mean"] <= 1 and final[0]["num_eval"] == 2


def test_without_resume_a_run_is_left_alone_unless_it_is_this_one_and_finished(
    digits: Dataset, store: TrajectoryStore, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    distill(TINY, store, digits, out=run, until=2)
    before = {f: f.read_bytes() for f in run.rglob("*") if f.is_file()}
    with pytest.raises(InputError, match=f"^out: {run} holds a run that is not finished; .*--resume {run}") as caught:
        distill(TINY, store, digits, out=run)
    assert "\n" not in str(caught.value) and before == {f: f.read_bytes() for f in run.rglob("*") if f.is_file()}
    made = distill(TINY, store, digits, out=run, resume=True)
    counter = Killer()
    again = distill(TINY, store, digits, out=run, progress=counter)
    assert counter.names == [] and torch.equal(again.images, made.images)


@pytest.mark.parametrize(
    "lost", ["images", "best_images", "optimizer.momentum_buffer", "labels.z", "average", "best", "seconds"]
)
def test_a_checkpoint_of_another_release_is_refused_in_one_line(
    lost: str, digits: Dataset, store: TrajectoryStore, tmp_path: Path
) -> None:
    config = replace(TINY, ema=0.5, lr_label=1.0)
    distill(config, store, digits, out=tmp_path / "run", until=2)
    run = Run.open(tmp_path / "run")
    saved = run.load_checkpoint()
    assert saved is not None
    tensors, numbers = saved
    if lost in numbers:
        del numbers[lost]
    elif lost == "optimizer.momentum_buffer":
        tensors["images"] = tensors["images"][:3]
    else:
        del tensors[lost]
    run.save_checkpoint(tensors, numbers)
    with pytest.raises(InputError, match="^resume: the checkpoint in ") as caught:
        distill(config, store, digits, out=tmp_path / "run", resume=True)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_with_an_average_that_nobody_asked_for(
    digits: Dataset, store: TrajectoryStore, tmp_path: Path
) -> None:
    """Earlier releases kept the average of the pixels always."""
    whole = distill(TINY, store, digits, out=tmp_path / "whole")
    distill(TINY, store, digits, out=tmp_path / "run", until=2)
    run = Run.open(tmp_path / "run")
    saved = run.load_checkpoint()
    assert saved is not None and "average" not in saved[0]
    run.save_checkpoint({**saved[0], "average": saved[0]["images"].clone()}, saved[1])
    resumed = distill(TINY, store, digits, out=tmp_path / "run", resume=True)
    assert torch.equal(resumed.images, whole.images)


def test_moved_run_and_store_can_be_gone_on_with(digits: Dataset, store: TrajectoryStore, tmp_path: Path) -> None:
    distill(TINY, store, digits, out=tmp_path / "whole")
    with pytest.raises(Killed):
        distill(TINY, store, digits, out=tmp_path / "run", progress=Killer(10))
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    shutil.copytree(store.path, tmp_path / "store")
    distill(TINY, tmp_path / "store", digits, out=tmp_path / "elsewhere", resume=True)
    same_runs(tmp_path / "elsewhere", tmp_path / "whole")


def test_resuming_with_other_settings_is_refused(digits: Dataset, store: TrajectoryStore, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        distill(TINY, store, digits, out=tmp_path / "run", progress=Killer(6))
    with pytest.raises(InputError, match="^resume: .*another lr_img"):
        distill(replace(TINY, lr_img=21.0), store, digits, out=tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="another lr_img"):
        distill(replace(TINY, lr_img=21.0), store, digits, out=tmp_path / "run")
    with pytest.raises(InputError, match="^run: "):
        distill(TINY, store, digits, out=tmp_path / "nowhere", resume=True)
    config = tmp_path / "run" / "config.json"
    content = {**json.loads(config.read_text().replace('"syn_steps"', '"syn_stepz"')), "checksum": None}
    config.write_text(json.dumps(content))
    with pytest.raises(InputError, match="syn_step"):
        distill(TINY, store, digits, out=tmp_path / "run", resume=True)
    bigger = train_experts(replace(EXPERTS, num_experts=3), shutil.copytree(store.path, tmp_path / "bigger"), digits)
    with pytest.raises(Killed):
        distill(TINY, store, digits, out=tmp_path / "other", progress=Killer(6))
    with pytest.raises(InputError, match="another experts"):
        distill(TINY, bigger, digits, out=tmp_path / "other", resume=True)


# Bad iterations


def spoil(kind: str, result: MatchResult) -> MatchResult:
    if kind == "loss-nan":
        return replace(result, loss=torch.full_like(result.loss, math.nan))
    if kind == "loss-huge":
        return replace(result, loss=torch.full_like(result.loss, 1e9))
    if kind == "pixels-nan":
        bad = result.grad_images.clone()
        bad[3, 0, 2, 2] = math.nan
        return replace(result, grad_images=bad)
    if kind.startswith("labels"):
        assert result.grad_labels is not None
        bad = torch.full_like(result.grad_labels, 3e38)  # finite, but a step along it is not
        bad[:, ::2] *= -1
        if kind == "labels-nan":
            bad[1, 2] = math.nan
        return replace(result, grad_labels=bad)
    if kind == "pixels-overflow":  # finite, but a step along it is not
        return replace(result, grad_images=torch.full_like(result.grad_images, 3e38))
    return replace(result, grad_lr=torch.tensor(-math.inf))


@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [
        ("loss-nan", "sgd"),
        ("loss-nan", "adam"),
        ("loss-huge", "sgd"),
        ("pixels-nan", "sgd"),
        ("pixels-nan", "adam"),
        ("pixels-overflow", "sgd"),  # Adam's step is bounded, whatever the gradient
        ("lr-inf", "sgd"),
        ("labels-nan", "sgd"),
        ("labels-nan", "adam"),
        ("labels-overflow", "sgd"),
    ],
)
def test_a_bad_iteration_is_skipped_and_counted(
    kind: str, optimizer: str, digits: Dataset, store: TrajectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[Tensor, Tensor, float]] = []

    class Spoiler(Matcher):
        def trusted(self, asked: Sequence[Asked]) -> list[MatchResult]:
            (one,), (result,) = asked, super().trusted(asked)
            given.append((one.images.detach().clone(), one.labels.clone(), one.syn_lr))
            return [spoil(kind, result) if len(given) in (1, 3) else result]

    monkeypatch.setattr(mct_fast.distill.matches, "Matcher", Spoiler)
    lr = 20.0 if optimizer == "sgd" else 0.05
    config = replace(TINY, eval_it=0, img_optimizer=optimizer, lr_img=lr)
    config = replace(config, lr_label=5.0) if "labels" in kind else config
    distill(config, store, digits, out=tmp_path / "run")
    same = [torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and a[2] == b[2] for a, b in itertools.pairwise(given)]
    assert same == [True, False, True, False]
    log = records(tmp_path / "run", "iter")
    assert [r["skipped"] for r in log] == [1, 1, 2, 2, 2]
    assert (log[0]["loss"] is None) == (kind == "loss-nan")
    assert records(tmp_path / "run", "final")[0]["skipped"] == 2
    assert torch.isfinite(last_images(tmp_path / "run")).all()


@pytest.mark.parametrize("lr_lr", [1e6, 1e300])
def test_the_step_size_stays_positive(lr_lr: float, digits: Dataset, store: TrajectoryStore, tmp_path: Path) -> None:
    distill(replace(TINY, lr_lr=lr_lr, eval_it=0, iterations=12), store, digits, out=tmp_path / "run")
    found = [r["syn_lr"] for r in records(tmp_path / "run", "iter")]
    assert all(0 < value < math.inf for value in found) and len(set(found)) > 1
    for before, after in zip([TINY.lr_teacher, *found], found, strict=False):
        assert before / 2 <= after <= before * 2


def test_step_size_is_sgd_with_momentum_within_its_bounds() -> None:
    step = StepSize(0.1, 1e-3, 0.5)
    alpha = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([alpha], lr=1e-3, momentum=0.5)
    for grad in (3.0, -7.0, 11.0, 0.5):
        step.step(grad)
        alpha.grad = torch.tensor(grad, dtype=torch.float64)
        optimizer.step()
        assert step.value == pytest.approx(float(alpha.detach()), rel=1e-14)
    value = step.value
    step.step(1e9)
    assert step.value == value / 2
    step.step(-1e9)
    assert step.value == value
    for _ in range(300):  # halved so often, a float32 would be zero
        step.step(1e9)
    assert step.value == pytest.approx(1e-4)
    step.step(-1e9)
    assert step.value == pytest.approx(2e-4)
    fixed = StepSize(0.1, 0.0, 0.5)
    fixed.step(5.0)
    assert fixed.value == 0.1


# Selection


def test_the_best_images_on_the_chosen_split_are_kept(
    digits: Dataset, store: TrajectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    means = iter([0.2, 0.7, 0.7, 0.4])  # iterations 0, 2, 4, 5
    real = mct_fast.distill.selection.evaluate_splits
    splits = []

    def scripted(*args: Any, **kw: Any) -> Any:
        splits.extend(kw["splits"])
        return {split: replace(r, scores=(next(means),)) for split, r in real(*args, **kw).items()}

    monkeypatch.setattr(mct_fast.distill.selection, "evaluate_splits", scripted)
    made = distill(replace(TINY, select_on="test"), store, digits, out=tmp_path / "run")
    assert splits == ["test"] * 4, "what picked the images is not trained again"
    final = records(tmp_path / "run", "final")[0]
    assert final["iteration"] == 2 == made.provenance["iteration"] and final["select_on"] == "test"
    assert [r["split"] for r in records(tmp_path / "run", "eval")] == ["test"] * 4
    log = records(tmp_path / "run", "iter")
    assert made.syn_lr == log[1]["syn_lr"] != log[-1]["syn_lr"]
    assert not torch.equal(made.images, last_images(tmp_path / "run"))
    assert made.provenance["test"]["mean"] == final["test_mean"] == 0.7


def test_validation_selects_by_default_and_the_test_split_is_looked_at_once(
    digits: Dataset, store: TrajectoryStore, tmp_path: Path
) -> None:
    distill(TINY, store, digits, out=tmp_path / "run")
    assert {r["split"] for r in records(tmp_path / "run", "eval")} == {"val"}
    final = records(tmp_path / "run", "final")[0]
    assert final["select_on"] == "val" and len(final["test_scores"]) == 2
    best = DistilledDataset.load(tmp_path / "run" / "distilled")
    assert final["random_real_lr"] in (best.syn_lr, TINY.lr_teacher)
    assert (tmp_path / "run" / "images.png").stat().st_size > 0


def test_curves_on_the_test_split_pick_nothing(digits: Dataset, store: TrajectoryStore, tmp_path: Path) -> None:
    distill(TINY, store, digits, out=tmp_path / "plain")
    distill(replace(TINY, eval_test=True), store, digits, out=tmp_path / "curves")
    plain, curves = records(tmp_path / "plain", "eval"), records(tmp_path / "curves", "eval")
    tests = [record.pop("test") for record in curves]
    assert plain == curves and [test["split"] for test in tests] == ["test"] * 4
    final = records(tmp_path / "curves", "final")[0]
    assert final == records(tmp_path / "plain", "final")[0]
    # The networks that were scored on both splits are those that the final evaluation trains.
    chosen = [test for record, test in zip(curves, tests, strict=True) if record["iteration"] == final["iteration"]]
    assert chosen[-1]["scores"] == final["test_scores"]


def test_what_was_scored_is_not_trained_again(
    digits: Dataset, store: TrajectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``eval_test`` the last evaluation of the best images is known, also after a pause; the baseline may be left out."""
    trained: list[Any] = []
    real = mct_fast.evaluate._Given.train_and_score
    monkeypatch.setattr(mct_fast.evaluate._Given, "train_and_score", lambda *a: trained.append(a) or real(*a))
    config = replace(TINY, eval_test=True, random_real=False)
    distill(config, store, digits, out=tmp_path / "run", until=3)
    made = distill(config, store, digits, out=tmp_path / "run", resume=True)
    assert len(trained) == len(records(tmp_path / "run", "eval"))
    final = records(tmp_path / "run", "final")[0]
    assert made.provenance["test"]["scores"] == final["test_scores"] and "random_real_mean" not in final


def test_the_step_size_of_evaluation_networks_goes_with_the_images(
    digits: Dataset, store: TrajectoryStore, tmp_path: Path
) -> None:
    made = distill(replace(TINY, lr_net=0.007), store, digits, out=tmp_path / "run")
    assert {record["lr"] for record in records(tmp_path / "run", "eval")} == {0.007}
    assert made.provenance["test"]["lr"] == 0.007 and made.syn_lr != 0.007
    assert records(tmp_path / "run", "final")[0]["random_real_lr"] in (0.007, TINY.lr_teacher)
    loaded = DistilledDataset.load(tmp_path / "run" / "distilled")
    quick = EvalConfig(num_eval=1, epoch_eval_train=1)
    assert evaluate(loaded, digits, quick, model=store.manifest["model"]).lr == loaded.lr_net == 0.007
    assert "networks are trained with 0.007" in write_report(tmp_path / "run").read_text()


# Pauses


@pytest.mark.parametrize("stops", [(2, 4), (1, 3), (5, 5), (0, 2, 2, 9)])
def test_a_run_in_pieces_is_the_run_in_one(
    stops: tuple[int, ...], digits: Dataset, store: TrajectoryStore, tmp_path: Path
) -> None:
    whole = distill(TINY, store, digits, out=tmp_path / "whole")
    for stop in stops:
        distill(TINY, store, digits, out=tmp_path / "pieces", until=stop, resume=stop != stops[0])
        done = [record["iteration"] for record in records(tmp_path / "pieces", "iter")]
        assert len(done) == min(stop, TINY.iterations)
        # What is due at the stop has been evaluated, and only once.
        seen = [record["iteration"] for record in records(tmp_path / "pieces", "eval")]
        assert seen == [i for i in (0, 2, 4, 5) if i <= stop]
    made = distill(TINY, store, digits, out=tmp_path / "pieces", resume=True)
    assert torch.equal(made.images, whole.images) and made.syn_lr == whole.syn_lr
    assert records(tmp_path / "pieces") == records(tmp_path / "whole")
    assert torch.equal(last_images(tmp_path / "pieces"), last_images(tmp_path / "whole"))


def test_two_processes_cannot_write_one_run(digits: Dataset, store: TrajectoryStore, tmp_path: Path) -> None:
    distill(TINY, store, digits, out=tmp_path / "run", until=2)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    taken = rf"^out: {tmp_path / 'run'} is being written by process {os.getpid()}"
    with Run.open(tmp_path / "run").held(), pytest.raises(InputError, match=taken):
        distill(TINY, store, digits, out=tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    distill(TINY, store, digits, out=tmp_path / "run", resume=True)
    with Run.open(tmp_path / "run").held():  # a finished one is only read
        distill(TINY, store, digits, out=tmp_path / "run")
    assert not (tmp_path / "run" / ".lock").exists()


# Levers

LEVERS: dict[str, dict[str, Any]] = {
    "ema": {"ema": 0.7},
    "textures": {"canvas": 2, "students": 2},
    "textures from noise": {"canvas": 2, "pix_init": "noise", "lr_label": 0.1},
    "assigned labels": {"labels": "expert"},
    "learned labels": {"labels": "expert", "lr_label": 5.0, "ema": 0.5},
    "labels learned from hard ones": {"lr_label": 5.0},
    "growing window": {"growth_iterations": 4, "min_start_epoch": 1.0, "initial_min_start_epoch": 0.0},
    "threshold": {"max_loss": 0.5},
}


@pytest.mark.parametrize("lever", LEVERS)
def test_levers_survive_pauses_to_the_same_bits(
    lever: str, digits: Dataset, store: TrajectoryStore, tmp_path: Path
) -> None:
    config = replace(TINY, **LEVERS[lever])
    whole = distill(config, store, digits, out=tmp_path / "whole")
    for stop in (1, 3, 4):
        distill(config, store, digits, out=tmp_path / "pieces", until=stop, resume=stop > 1)
    made = distill(config, store, digits, out=tmp_path / "pieces", resume=True)
    assert torch.equal(made.images, whole.images) and torch.equal(made.labels, whole.labels)
    assert records(tmp_path / "pieces") == records(tmp_path / "whole")
    plain = distill(TINY, store, digits, out=tmp_path / "plain")
    # Either the course differs, or (the average) only what is kept.
    same_course = records(tmp_path / "plain", "iter") == records(tmp_path / "whole", "iter")
    assert same_course == (lever == "ema")
    assert not torch.equal(plain.images, whole.images)
    assert plain.labels.dtype == torch.int64 and plain.images.shape[-1] == 8
    soft = "label" in lever or "noise" in lever
    assert records(tmp_path / "whole", "final")[0]["labels"] == ("soft" if soft else "hard")
    assert whole.images.shape[-1] == (16 if "textures" in lever else 8)
    if soft:
        assert torch.allclose(whole.labels.sum(1), torch.ones(10))


def test_the_average_is_what_is_kept(
    digits: Dataset, store: TrajectoryStore, calls: list[Call], tmp_path: Path
) -> None:
    config = replace(TINY, ema=0.5, eval_it=0)
    made = distill(config, store, digits, out=tmp_path / "run")
    history = [*(call.images for call in calls), last_images(tmp_path / "run")]
    average = history[0].double()
    for i, images in enumerate(history[1:], start=1):
        decay = min(0.5, (1 + i) / (10 + i))
        average = decay * average + (1 - decay) * images
    assert torch.allclose(made.images.double(), average, atol=1e-5)
    assert not torch.allclose(made.images, history[-1], atol=1e-3)


def test_learned_labels_follow_their_gradient(
    digits: Dataset, store: TrajectoryStore, calls: list[Call], tmp_path: Path
) -> None:
    distill(replace(TINY, lr_label=5.0, eval_it=0), store, digits, out=tmp_path / "run")
    z = torch.full((10, 10), 0.1 / 9, dtype=torch.float64).fill_diagonal_(0.9).log().requires_grad_()
    optimizer = torch.optim.SGD([z], lr=5.0, momentum=0.5)
    for call in calls:
        assert call.result.grad_labels is not None
        optimizer.zero_grad()
        (z.softmax(1) * call.result.grad_labels.double()).sum().backward()
        optimizer.step()
    made = DistilledDataset.load(tmp_path / "run" / "distilled").labels
    assert torch.allclose(made.double(), z.detach().softmax(1), atol=1e-5)
    assert not torch.allclose(made[0, 0], torch.tensor(0.9), atol=1e-4)


# Refusals

BAD: dict[str, dict[str, Any]] = {
    "ipc": {"ipc": 10_000},
    "ipc ": {"ipc": 0},
    "syn_steps": {"syn_steps": 0},
    "iterations": {"iterations": 0},
    "students": {"students": 0},
    "batch_syn": {"batch_syn": 0},
    "num_eval": {"num_eval": 0},
    "epoch_eval_train": {"epoch_eval_train": 0},
    "eval_it": {"eval_it": -1},
    "lr_teacher": {"lr_teacher": -1.0},
    "lr_net": {"lr_net": 0.0},
    "lr_img": {"lr_img": math.nan},
    "lr_lr": {"lr_lr": math.inf},
    "mom_img": {"mom_img": 1.0},
    "max_loss": {"max_loss": math.inf},
    "ema": {"ema": 1.0},
    "lr_label": {"lr_label": -1.0},
    "labels": {"labels": "wild"},
    "labels ": {"labels": "expert", "canvas": 2},
    "canvas": {"canvas": 0},
    "ipc  ": {"canvas": 20},
    "initial_min_start_epoch": {"initial_min_start_epoch": 0.5},
    "expert_epochs": {"expert_epochs": 4.5},
    "max_start_epoch": {"max_start_epoch": 5.0},
    "min_start_epoch": {"min_start_epoch": 3.0},
    "sampling": {"sampling": "sometimes"},
    "sampling ": {"trajectory": "discrete"},
    "adjoint": {"adjoint": "magic"},
    "pix_init": {"pix_init": "zeros"},
    "img_optimizer": {"img_optimizer": "lion"},
    "trajectory": {"trajectory": "spline"},
    "select_on": {"select_on": "train"},
    "strategy": {"dsa_strategy": "colour"},
}


@pytest.mark.parametrize("field", BAD)
def test_bad_settings_are_named_and_leave_no_run_behind(
    field: str, digits: Dataset, store: TrajectoryStore, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=field.strip()) as caught:
        distill(replace(TINY, **BAD[field]), store, digits, out=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_textures_are_not_whitened(tmp_path: Path) -> None:
    white = load_dataset("digits", zca=True)
    whitened = train_experts(replace(EXPERTS, zca=True, num_experts=1), tmp_path / "experts", white)
    with pytest.raises(InputError, match="^canvas: .*leave out zca"):
        distill(replace(TINY, canvas=2), whitened, white)


def test_other_data_than_the_experts_saw_is_refused(store: TrajectoryStore) -> None:
    other = load_dataset("digits", split_seed=1)
    with pytest.raises(InputError, match="^dataset: .*fingerprints differ"):
        distill(TINY, store, other)


def test_paths_in_memory_need_a_model_and_a_dataset(store: TrajectoryStore) -> None:
    with pytest.raises(InputError, match="^model: "):
        distill(TINY, [store[0]])
    with pytest.raises(InputError, match="hold no expert"):
        distill(TINY, [], load_dataset("digits"), model=nn.Linear(2, 2))
