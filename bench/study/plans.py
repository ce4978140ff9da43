"""Which studies there are: experts, arms, seeds and how a run is cut into pieces."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mct_fast.distill import DistillConfig
from mct_fast.experts import ExpertConfig
from mct_fast.presets import preset
from mct_fast.run.errors import InputError
from mct_fast.trajectory import ConvexTrajectory, Trajectory, TrajectoryStore

METHODS = ("mct", "mtt")
"""The arms that are the two methods themselves; others change one thing of the first."""
STEP_SIZES = (1.0, 0.3, 0.1, 0.03)
"""Parts of the learned step size with which a study's first images are evaluated again."""


@dataclass(frozen=True)
class Checkpoints:
    """MTT's path: every epoch's checkpoint, as it was."""

    def paths(self, store: TrajectoryStore) -> list[Trajectory]:
        return [store.trajectory(i, "discrete") for i in range(len(store))]


@dataclass(frozen=True)
class Convex:
    """A convexified path, fitted to the same experts' checkpoints."""

    waypoints: int = 2
    schedule: str = "arc_length"
    smooth: bool = False

    def paths(self, store: TrajectoryStore) -> list[Trajectory]:
        fitted: list[Trajectory] = []
        for i in range(len(store)):
            path = store.trajectory(i, "discrete")
            points = [[path.at(t)] for t in range(path.epochs + 1)]
            split = [
                [piece.view(shape) for piece, shape in zip(flat[0].split(_sizes(path)), path.shapes, strict=True)]
                for flat in points
            ]
            fitted.append(ConvexTrajectory.fit(split, self.waypoints, self.schedule, self.smooth))
        return fitted


def _sizes(path: Trajectory) -> list[int]:
    return [shape.numel() for shape in path.shapes]


@dataclass(frozen=True)
class Arm:
    """One way to distil: the experts' path, and what differs from the study's common settings."""

    name: str
    says: str
    """What it is, for the tables."""
    path: Checkpoints | Convex
    changes: Mapping[str, Any] = field(default_factory=dict)
    experts: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the study's experts; such an arm has experts of its own."""

    @property
    def store(self) -> str:
        """The folder of its experts."""
        return f"experts-{self.name}" if self.experts else "experts"

    def config(self, common: DistillConfig, seed: int, data_path: str | None) -> DistillConfig:
        kind = {"trajectory": "convex" if isinstance(self.path, Convex) else "discrete"}
        return replace(common, seed=seed, data_path=data_path, **{**kind, **self.changes})


@dataclass(frozen=True)
class Study:
    """A comparison: every arm distils with the same experts, iterations, seeds and evaluations."""

    name: str
    experts: ExpertConfig
    distill: DistillConfig
    """What all arms share."""
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    piece: int
    """Iterations of an arm before the next arm's turn."""
    published: Mapping[str, float] = field(default_factory=dict)
    """Test accuracies in percent that others report, by name, with their source in the name."""

    @property
    def step_sizes_of(self) -> tuple[str, ...]:
        """The arms whose first images are evaluated with several step sizes: the two methods themselves."""
        return tuple(arm.name for arm in self.arms if arm.name in METHODS)

    def on(self, device: str) -> Study:
        """The same, computed on ``device``."""
        return replace(self, experts=replace(self.experts, device=device), distill=replace(self.distill, device=device))

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)


def mtt(expert_epochs: int, max_start_epoch: int, **changes: Any) -> Arm:
    """Matching Training Trajectories: checkpoints, whole epochs."""
    window = {"sampling": "integer", "expert_epochs": expert_epochs, "max_start_epoch": max_start_epoch}
    return Arm("mtt", "MTT: checkpoints, whole epochs", Checkpoints(), {**window, **changes})


def mct(expert_epochs: float, max_start_epoch: float, **changes: Any) -> Arm:
    """Matching Convexified Trajectories: the paper's two waypoints, continuous sampling."""
    window = {"sampling": "continuous", "expert_epochs": expert_epochs, "max_start_epoch": max_start_epoch}
    return Arm("mct", "MCT: convex path of 2 waypoints, continuous sampling", Convex(), {**window, **changes})


def ablations(base: Arm) -> tuple[Arm, ...]:
    """The MCT arm ``base`` with one thing changed at a time: the paper's ablations, and the gradient."""
    window = {"expert_epochs": round(base.changes["expert_epochs"]), "max_start_epoch": base.changes["max_start_epoch"]}
    # MTT draws starts below the bound, so one more whole epoch covers the same window.
    whole = {**window, "sampling": "integer", "max_start_epoch": int(window["max_start_epoch"]) + 1}
    return (
        replace(base, name="mct-integer", says="MCT, whole epochs", changes={**base.changes, **whole}),
        replace(base, name="mct-uniform", says="MCT, uniform schedule", path=Convex(schedule="uniform")),
        replace(base, name="mct-decreasing", says="MCT, decreasing schedule", path=Convex(schedule="decreasing")),
        replace(base, name="mct-projected", says="MCT, projected schedule", path=Convex(schedule="projected")),
        replace(base, name="mct-4", says="MCT, 4 waypoints", path=Convex(waypoints=4)),
        replace(base, name="mct-4-smooth", says="MCT, 4 smoothed waypoints", path=Convex(waypoints=4, smooth=True)),
        replace(
            base, name="mct-truncated", says="MCT, truncated gradient", changes={**base.changes, "adjoint": "truncated"}
        ),
    )


def levers(base: Arm, max_loss: float) -> tuple[Arm, ...]:
    """The MCT arm ``base`` with one lever of the field each; ``max_loss`` lies above most of its losses."""

    def arm(name: str, says: str, experts: Mapping[str, Any] | None = None, **changes: Any) -> Arm:
        return replace(base, name=name, says=says, changes={**base.changes, **changes}, experts=experts or {})

    return (
        arm("ema", "average of the images, decay 0.99", ema=0.99),
        arm("threshold", f"iterations with a loss above {max_loss:g} skipped", max_loss=max_loss),
        arm("growing", "latest start grows from 1 over 100 iterations", growth_iterations=100, initial_start_epoch=1.0),
        arm("flat", "flat experts, GSAM", {"rho": 0.05, "gsam_alpha": 0.3}),
        arm("textures", "textures, canvases of 2 x 2 images", canvas=2),
        arm("assigned", "soft labels assigned by the experts", labels="expert"),
        arm("learned", "soft labels, learned from hard ones", lr_label=5.0),
    )


def _cifar10_ipc1() -> Study:
    """CIFAR-10 as a folder of classes, scaled down to two cores: six experts of 10 epochs, 20 student steps, 1,500 iterations.

    With 20 steps for the published 50, the student's first step size is 2.5 times as large, so that it comes as far.  lr_img
    is five times MTT's, for the iterations that are missing; MCT's and TESLA's codes run with that (1000, halved by their
    gradient).  lr_lr grows with the square of the step size, which keeps its relative pace.  Evaluation networks take a tenth
    of the step size, because of their momentum: with 0.025 training them is unstable and they end 9 to 11 points lower.
    """
    experts = ExpertConfig(
        dataset="folder:cifar10", zca=True, num_experts=6, train_epochs=10, parallel=2, keep_checkpoints=True
    )
    common = DistillConfig(
        ipc=1,
        syn_steps=20,
        lr_img=500.0,
        lr_lr=5e-7,
        lr_teacher=0.025,
        lr_net=0.0025,
        iterations=1500,
        eval_it=250,
        checkpoint_every=25,
    )
    published = {"MTT (Cazenavette et al. 2022), 100 experts, 5000 iterations": 46.3, "MCT's code, docstring": 48.48}
    return Study("cifar10-ipc1", experts, _scored(common), (mct(5, 3), mtt(2, 2)), (0, 1), 250, published)


def _digits() -> Study:
    """Scikit-learn's digits with our own preset's settings: minutes, and all ablations.

    They are as good as they get within 50 iterations, so it is the way there that is looked at.
    """
    own = preset("digits")
    experts = replace(own.experts, keep_checkpoints=True)
    common = _scored(replace(own.distill, iterations=100, eval_it=10))
    first, second = _methods(common)
    return Study("digits", experts, common, (first, second, *ablations(first)), (0, 1, 2), 100)


def _beginning(base: Study, name: str, arms: tuple[Arm, ...], seeds: tuple[int, ...], eval_it: int = 50) -> Study:
    """The first 200 iterations of ``base`` with other arms, beside which no published number stands."""
    common = replace(base.distill, iterations=200, eval_it=eval_it)
    return replace(base, name=name, distill=common, arms=arms, seeds=seeds, piece=200, published={})


def _levers(base: Study, name: str, max_loss: float, without: tuple[str, ...] = ()) -> Study:
    """What each lever does to MCT."""
    first = base.arm("mct")
    arms = tuple(arm for arm in levers(first, max_loss) if arm.name not in without)
    return _beginning(base, name, (first, *arms), (0, 1))


def _ablations(base: Study, name: str) -> Study:
    """Both methods and the ablations."""
    return _beginning(base, name, (*base.arms, *ablations(base.arm("mct"))), base.seeds)


def _fashion(ipc: int) -> Study:
    """Fashion-MNIST with our own presets' settings, at a width that two cores can do."""
    own = preset(f"fashion-mnist-ipc{ipc}")
    experts = replace(own.experts, parallel=2, keep_checkpoints=True)
    common = _scored(own.distill)
    source = "width 128, KIP's paper (Nguyen et al. 2021), table 1"
    published = {1: {"DC": 70.5, "DSA": 70.6}, 10: {"DC": 82.3, "DSA": 84.6}}[ipc]
    cited = {f"{method}, {source}": percent for method, percent in published.items()}
    return Study(f"fashion-ipc{ipc}", experts, common, _methods(common), (0, 1), common.evaluation.eval_it * 2, cited)


def _scored(config: DistillConfig) -> DistillConfig:
    """Runs of a study are scored on the test split too; random real images are a piece of their own, once for all arms."""
    return replace(config, eval_test=True, random_real=False)


def _methods(common: DistillConfig) -> tuple[Arm, Arm]:
    """MCT and MTT in the same window: MTT draws its starts below a bound, which therefore lies one epoch later."""
    epochs, latest = round(common.path.expert_epochs), round(common.path.max_start_epoch)
    return mct(epochs, latest), mtt(epochs, latest + 1)


def _search(base: Study, name: str, grid: Mapping[str, tuple[float, ...]]) -> Study:
    """MCT with every combination of ``grid``, one seed: what our own presets are chosen by."""
    # What a preset takes from a search must not make that search another study.
    base = replace(base, distill=replace(base.distill, **{key: values[0] for key, values in grid.items()}))
    plain = base.arm("mct")
    arms = []
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        says = ", ".join(f"{key} {value:g}" for key, value in point.items())
        label = "-".join(f"{value:g}" for value in values)
        arms.append(replace(plain, name=label, says=says, changes={**plain.changes, **point}))
    return _beginning(base, name, tuple(arms), (0,), eval_it=200)


def _searches() -> tuple[Study, ...]:
    return (
        _search(
            _digits(),
            "digits-search",
            {"lr_img": (30, 100, 300), "expert_epochs": (2.0, 4.0, 8.0), "lr_teacher": (0.01, 0.02, 0.04)},
        ),
        _search(
            _fashion(1),
            "fashion-search",
            {"lr_img": (100, 300, 1000), "expert_epochs": (1.0, 2.0, 4.0), "lr_teacher": (0.01, 0.03, 0.06)},
        ),
        _search(
            _fashion(10),
            "fashion-ipc10-search",
            {"lr_img": (300, 1000, 3000), "expert_epochs": (2.0, 4.0), "lr_teacher": (0.01, 0.03)},
        ),
    )


def studies() -> dict[str, Study]:
    """All studies by name."""
    digits, fashion = _digits(), _fashion(1)
    every = (
        digits,
        _levers(digits, "digits-levers", max_loss=0.9),
        _cifar10_ipc1(),
        fashion,
        _fashion(10),
        _ablations(fashion, "fashion-ablations"),
        # Flat experts take twice the time of the others, and theirs is longer than all the rest of this study's.
        _levers(fashion, "fashion-levers", max_loss=0.8, without=("flat",)),
        *_searches(),
    )
    return {study.name: study for study in every}


def study_named(name: str) -> Study:
    """The study ``name``.

    Raises:
        InputError: there is none.
    """
    known = studies()
    if name not in known:
        raise InputError(f"study: unknown {name!r}; choose one of {', '.join(known)}")
    return known[name]
