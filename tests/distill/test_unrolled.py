"""The unrolled objective: fresh students that do well on real data, without experts."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mct_fast.distill.objectives
from mct_fast.cli import main
from mct_fast.data import Dataset, augmentation, load_dataset
from mct_fast.distill import DistillConfig, distill, sweep
from mct_fast.distill.initial import initial_state
from mct_fast.distill.job import Job
from mct_fast.distill.matches import Matches
from mct_fast.distill.sampling import draw_batches
from mct_fast.models import ConvNet, FunctionalModel
from mct_fast.run.distributed import Single
from mct_fast.run.errors import InputError
from mct_fast.run.folder import Run
from mct_fast.run.progress import quiet
from mct_fast.run.seeds import derive_seed, generator
from mct_fast.students.recording import Launches
from tests.again import Again
from tests.distill.runs import last_images, records, same_runs

NETWORK = ConvNet(depth=1, width=8, channels=1, image_size=8, num_classes=10)
TINY = DistillConfig(
    objective="unrolled", syn_steps=6, window=3, real_batch=32, lr_teacher=0.05, img_optimizer="adam", lr_img=0.1,
    cosine=True, clip=2.0, iterations=5, eval_it=2, num_eval=1, epoch_eval_train=2, checkpoint_every=2, random_real=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def run(config: DistillConfig, dataset: Dataset, out: Path, **how: Any) -> Any:
    return distill(config, None, dataset, model=copy.deepcopy(NETWORK), out=out, **how)


def oracle(config: DistillConfig, dataset: Dataset, images: Tensor, labels: Tensor, iteration: int) -> list[Tensor]:
    """Mean loss and gradient by the images of one iteration, written out in float64 from the named random streams."""
    model, student = FunctionalModel(copy.deepcopy(NETWORK).double()), config.student
    seed, train, shape = config.engine.seed, dataset.train, (1, 8, 8)
    window = config.goal.window or student.syn_steps
    stream = generator(seed, "window", iteration)
    share = min(1.0, iteration / config.goal.growing) if config.goal.growing else 1.0
    most = window + math.floor(share * (student.syn_steps - window))
    steps = int(torch.randint(window, most + 1, (), generator=stream))
    stream = generator(seed, "iteration", iteration)
    batches = [
        draw_batches(len(images), student.batch_syn or len(images), steps, stream) for _ in range(student.students)
    ]
    sizes = [int((row >= 0).sum()) for row in batches[0]]
    chosen = config.augmentation
    augment = augmentation("images", chosen.dsa, chosen.dsa_strategy, chosen.jitter)
    plan = None if augment is None else augment.plan(student.students, steps, sizes, shape, stream)
    x, losses = images.double().requires_grad_(), []
    for s in range(student.students):
        theta = FunctionalModel(NETWORK).init(derive_seed(seed, "student", iteration, s)).double().requires_grad_()
        for step in range(steps):
            rows, inside = batches[s][step][: sizes[step]], step >= steps - window
            batch = (x if inside else x.detach())[rows]
            batch = batch if plan is None else plan.draws[s][step].apply(batch)
            loss = nn.functional.cross_entropy(model(theta, batch), labels[rows])
            (g,) = torch.autograd.grad(loss, theta, create_graph=inside)
            theta = theta - student.lr_teacher * g
            theta = theta if inside else theta.detach().requires_grad_()
        stream = generator(seed, "real-batch", iteration, s)
        real = torch.randperm(len(train), generator=stream)[: config.goal.real_batch]
        if config.goal.balanced:  # of ten classes
            order = torch.randperm(len(train), generator=generator(seed, "real-batch", iteration, s))
            each = [order[train.labels[order] == c].tolist() for c in range(10)]
            real = torch.tensor([each[turn % 10][turn // 10] for turn in range(config.goal.real_batch)])
        losses.append(nn.functional.cross_entropy(model(theta, train.images[real].double()), train.labels[real]))
    mean = torch.stack(losses).mean()
    return [mean.detach(), *torch.autograd.grad(mean, x)]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"window": None},
        {"students": 2},
        {"batch_syn": 4},
        {"dsa": False},
        {"window": 1},
        {"micro_batch": 3},
        {"balanced": True},
        {"growing": 2},
    ],
    ids=lambda change: "-".join(change) or "plain",
)
def test_an_iteration_is_training_written_out(change: dict[str, Any], digits: Dataset) -> None:
    config = replace(TINY, device="cpu", **change)
    job = Job.find(config, None, digits, copy.deepcopy(NETWORK), None, quiet())
    matches, state = Matches([job], Single()), initial_state(job)
    befores = set()
    for iteration in range(3):
        state.iteration = iteration
        result, segment = matches.solve({0: state})[0]
        befores.add(segment.start)
        assert iteration or not config.goal.growing or segment.start == 0, "at first no longer than the window"
        loss, by_images = oracle(config, digits, state.images.detach(), state.labels.value, iteration)
        assert float(result.loss.mean()) == pytest.approx(float(loss), rel=1e-5)
        assert (result.grad_images - by_images).norm() < 2e-5 * by_images.norm()
        assert segment.target - segment.start == (config.goal.window or config.student.syn_steps)
    assert len(befores) > 1 or config.goal.window is None, "students are met at different ages"


def test_recorded_steps_before_the_window_change_no_bit(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(TINY, digits, tmp_path / "plain")
    recorder = Again()
    monkeypatch.setattr(mct_fast.distill.objectives, "recorder_for", lambda graphs: recorder if graphs else Launches())
    run(TINY, digits, tmp_path / "recorded")
    same_runs(tmp_path / "recorded", tmp_path / "plain")
    assert recorder.recorded == 1 and recorder.replayed > 3
    run(replace(TINY, cuda_graphs=False), digits, tmp_path / "launched")
    assert recorder.recorded == 1, "without cuda_graphs nothing is"


def test_a_killed_run_goes_on_to_the_same_bits(digits: Dataset, tmp_path: Path) -> None:
    run(TINY, digits, tmp_path / "whole")
    run(TINY, digits, tmp_path / "stopped", until=3)
    run(TINY, digits, tmp_path / "stopped", resume=True)
    same_runs(tmp_path / "stopped", tmp_path / "whole")


def test_runs_side_by_side_have_the_bits_that_they_have_alone(digits: Dataset, tmp_path: Path) -> None:
    """Also where their students train for different numbers of steps before the window."""
    configs = [replace(TINY, seed=seed, lr_teacher=0.02 * (seed + 1), growing=2 * seed) for seed in range(3)]
    outs = [tmp_path / f"side{i}" for i in range(3)]
    sweep(configs, None, digits, model=copy.deepcopy(NETWORK), outs=outs)
    for i, config in enumerate(configs):
        run(config, digits, tmp_path / f"alone{i}")
        same_runs(outs[i], tmp_path / f"alone{i}")


def test_the_images_get_better(digits: Dataset, tmp_path: Path) -> None:
    """The loss on real data of the last iterations is below that of the first; at a fixed step size nothing else moves."""
    config = replace(TINY, iterations=60, eval_it=0, syn_steps=10, window=10, lr_lr=0, students=2, lr_teacher=0.5)
    run(config, digits, tmp_path / "run")
    losses = [r["loss"] for r in records(tmp_path / "run") if r["kind"] == "iter"]
    assert sum(losses[-10:]) < 0.85 * sum(losses[:10])


def test_a_store_may_name_data_and_network(tiny_store: Path, tmp_path: Path) -> None:
    config = replace(TINY, iterations=2)
    distill(config, tiny_store, out=tmp_path / "run")
    assert Run.open(tmp_path / "run").config["experts"] == 2


# Settings of the images' optimiser


def test_a_cosine_takes_the_step_size_to_zero(digits: Dataset, tmp_path: Path) -> None:
    plain = replace(TINY, cosine=False, clip=0.0, img_optimizer="sgd", lr_img=1.0, mom_img=0.0, iterations=4, eval_it=1)
    moved = []
    for cosine in (False, True):
        out, steps, before = tmp_path / str(cosine), [], None
        for until in range(5):
            config = replace(plain, cosine=cosine, lr_lr=0)
            run(config, digits, out, until=until, resume=until > 0)
            now = last_images(out) if until else None
            if before is not None and now is not None:
                steps.append((now - before).norm().item())
            before = now
        moved.append(steps)
    gradients = [r["grad_norm"] for r in records(tmp_path / "True") if r["kind"] == "iter"]
    factors = [step / norm for step, norm in zip(moved[1], gradients[1:], strict=True)]
    assert factors == pytest.approx([0.8536, 0.5, 0.1464], rel=1e-3)
    gradients = [r["grad_norm"] for r in records(tmp_path / "False") if r["kind"] == "iter"]
    assert [s / n for s, n in zip(moved[0], gradients[1:], strict=True)] == pytest.approx([1, 1, 1], rel=1e-3)


def test_long_gradients_are_shortened_to_the_median(digits: Dataset, tmp_path: Path) -> None:
    plain = replace(TINY, cosine=False, img_optimizer="sgd", lr_img=1.0, mom_img=0.0, lr_lr=0, iterations=6, eval_it=0)
    out, clip, before, norms = tmp_path / "run", 1.0, None, [0.0]
    for until in range(1, 7):
        run(replace(plain, clip=clip), digits, out, until=until, resume=until > 1)
        now, norms = last_images(out), [r["grad_norm"] for r in records(out) if r["kind"] == "iter"]
        if before is not None:
            allowed = clip * sorted(norms)[len(norms) // 2]
            assert (now - before).norm().item() == pytest.approx(min(norms[-1], allowed), rel=1e-3)
        before = now
    assert any(norm > sorted(norms[: i + 1])[(i + 1) // 2] for i, norm in enumerate(norms)), "one was shortened"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"window": 7}, "window: 7 steps are more than syn_steps=6"),
        ({"labels": "expert"}, "labels: 'expert' needs experts"),
        ({"objective": "matching", "real_batch": 256, "window": None}, "trajectories: missing"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], said: str, digits: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        run(replace(TINY, **change), digits, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_settings_without_a_part_are_refused() -> None:
    with pytest.raises(InputError, match="window: plays no part in objective='matching'"):
        DistillConfig(window=3)
    with pytest.raises(InputError, match="real_batch: plays no part"):
        DistillConfig(real_batch=3)
    with pytest.raises(InputError, match="balanced: plays no part"):
        DistillConfig(balanced=True)
    with pytest.raises(InputError, match="growing: plays no part"):
        DistillConfig(growing=3)
    with pytest.raises(InputError, match="growing: steps grow from the window"):
        DistillConfig(objective="unrolled", growing=3)


def test_without_a_network_or_data_it_says_so(digits: Dataset) -> None:
    with pytest.raises(InputError, match="model: without a store nothing names model or dataset"):
        distill(TINY, None, digits)


# The command line


def words(out: Path, *more: str) -> list[str]:
    return [
        "distill", "--objective=unrolled", "--depth=1", "--width=4", f"--out={out}", "--iterations=4",
        "--syn_steps=4", "--window=2", "--eval_it=2", "--num_eval=1", "--epoch_eval_train=2", "--checkpoint_every=1", *more,
    ]  # fmt: skip


def test_the_command_needs_no_store_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(words(tmp_path / "whole", "--dataset=digits")) == 0
    stop = mct_fast.distill.objectives.Unrolled.course

    def killed(self: Any, iteration: int, segments: Any) -> Any:
        if iteration == 3:
            raise KeyboardInterrupt
        return stop(self, iteration, segments)

    monkeypatch.setattr(mct_fast.distill.objectives.Unrolled, "course", killed)
    assert main(words(tmp_path / "killed", "--dataset=digits")) == 130
    monkeypatch.undo()
    assert main(["distill", f"--resume={tmp_path / 'killed'}"]) == 0
    same_runs(tmp_path / "killed", tmp_path / "whole")
    assert main(["evaluate", str(tmp_path / "whole"), "--num_eval=1", "--epoch_eval_train=2"]) == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "dataset: missing; without a store give --dataset"),
        (["--dataset=digts"], "digits"),
        (["--dataset=digits", "--model=ConvNot"], "ConvNot"),
        (["--dataset=digits", "--window=5"], "window: 5 steps are more than syn_steps=4"),
        (["--dataset=digits", "--width=0"], "width"),
    ],
)
def test_what_the_command_misses_is_one_line(
    more: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(tmp_path / "run", *more)) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_experts_are_not_followed_without_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "--dataset=digits", f"--out={tmp_path / 'run'}"]) == 2
    assert "trajectories: missing" in capsys.readouterr().err


def test_its_page_names_the_command_that_repeats_it(tmp_path: Path) -> None:
    assert main(words(tmp_path / "run", "--dataset=digits")) == 0
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "mct-fast distill --dataset digits --model ConvNet --depth 1 --width 4 --out run-again" in page
    assert "--objective unrolled" in page
