"""What a run is asked to do, and what it notes about itself: data, paths, network, task, provenance."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mct_fast.data import Dataset, load_noted
from mct_fast.distill.config import check_config, check_memory, noted
from mct_fast.distill.paths import ExpertPaths
from mct_fast.distilled import DistilledDataset
from mct_fast.kernels.precision import conv_precision
from mct_fast.models import FunctionalModel, build_model, model_spec
from mct_fast.run.errors import InputError
from mct_fast.run.progress import Progress
from mct_fast.settings import DistillConfig
from mct_fast.tasks import Task, task_from_state, task_named
from mct_fast.trajectory import Trajectory, TrajectoryStore

log = logging.getLogger("mct_fast")


@dataclass(frozen=True)
class Job:
    """One run's settings and what they refer to, found and checked.

    ``spec`` describes the network, which is ``module`` where the user brought one; ``origin`` is the store's folder.  Without
    experts, which not every objective needs, there are no ``paths``.
    """

    config: DistillConfig
    paths: ExpertPaths | None
    dataset: Dataset
    given_task: Task
    spec: dict[str, Any]
    module: nn.Module | None = None
    origin: str | None = None

    @classmethod
    def find(
        cls,
        config: DistillConfig,
        trajectories: TrajectoryStore | str | Path | Sequence[Trajectory] | None,
        dataset: Dataset | None,
        module: nn.Module | None,
        task: Task | None,
        progress: Progress,
    ) -> Job:
        """Opens the store and loads the data that its manifest names, where they are not given.

        Raises:
            InputError: something is missing, or the data are not those that the experts saw.
        """
        engine = config.engine
        if trajectories is None:
            if config.goal.objective == "matching":
                raise InputError(
                    "trajectories: missing; objective='matching' follows experts, so give a store or paths"
                )
            if module is None or dataset is None:
                raise InputError(
                    "model: without a store nothing names model or dataset; pass model=... and dataset=..."
                )
            return cls(config, None, dataset, task or task_named(dataset.task), _spec_of(module), module)
        source = TrajectoryStore.open(trajectories) if isinstance(trajectories, (str, Path)) else trajectories
        if not isinstance(source, TrajectoryStore):
            if module is None or dataset is None:
                raise InputError(
                    "model: paths given as a list name neither model nor dataset; pass model=... and dataset=..."
                )
            paths = ExpertPaths(source, config.path.trajectory, engine.device)
            return cls(config, paths, dataset, task or task_named(dataset.task), _spec_of(module), module)
        noted = source.manifest["dataset"]
        if dataset is None:
            dataset = load_noted(noted, data_path=engine.data_path, device=engine.device, progress=progress)
        if noted.get("fingerprint") not in (None, dataset.fingerprint):
            raise InputError(
                f"dataset: {dataset.name} is not the data the experts were trained on (fingerprints differ); "
                "load it with the same splits and transform, or train experts on it"
            )
        task = task or task_from_state(source.manifest.get("task"), dataset.task)
        paths = ExpertPaths(source, config.path.trajectory, engine.device)
        # Absolute: a run may be resumed from another working directory.
        return cls(config, paths, dataset, task, source.manifest["model"], module, str(source.path.absolute()))

    def configured(self, config: DistillConfig) -> Job:
        """The same data and experts under other settings."""
        paths = None if self.paths is None else self.paths.of_kind(config.path.trajectory)
        return replace(self, config=config, paths=paths)

    def check(self) -> None:
        """Raises :class:`InputError` for settings that do not fit the data, the network or the paths."""
        check_memory(self.config, self.dataset, self.student().num_params)
        check_config(self.config, self.dataset, None if self.paths is None else self.paths[0], self.task)

    def selectable(self) -> Job:
        """The same, but images selected on the test split where there is no validation split, which is said."""
        if self.config.evaluation.select_on != "val" or len(self.dataset.val):
            return self
        log.warning(
            "%s has no validation split: the best images are selected on the test split, whose results are labelled so",
            self.dataset.name,
        )
        return replace(self, config=replace(self.config, select_on="test"))

    @property
    def task(self) -> Task:
        """What the synthetic set's labels say, and which loss students have."""
        return (
            self.given_task.kept_prior(self.dataset.train.labels) if self.config.student.keep_prior else self.given_task
        )

    @property
    def network(self) -> nn.Module | dict[str, Any]:
        """What evaluation networks are built from."""
        return self.spec if self.module is None else self.module

    def student(self) -> FunctionalModel:
        """The student's network as a function of its parameters."""
        return FunctionalModel(build_model(self.spec) if self.module is None else self.module)

    @property
    def num_experts(self) -> int:
        """How many experts there are."""
        return 0 if self.paths is None else len(self.paths)

    def described(self) -> dict[str, Any]:
        """What makes two runs the same: the configuration of a run folder."""
        return {
            **noted(self.config),
            "trajectories": self.origin,
            "experts": self.num_experts,
            "model": self.spec,
            "dataset": self.dataset.name,
            "fingerprint": self.dataset.fingerprint,
            "task": self.task.state(),
            **({} if self.config.engine.device == "cpu" else {"precision": conv_precision()}),
            **({} if self.paths is not None else {"source": {**self.dataset.source, "name": self.dataset.name}}),
        }

    def distilled(self, images: Tensor, labels: Tensor, syn_lr: float, iteration: int) -> DistilledDataset:
        """The set of ``iteration`` with where it comes from."""
        dataset = self.dataset
        provenance = {
            "dataset": dataset.name,
            "fingerprint": dataset.fingerprint,
            "model": self.spec,
            "config": noted(self.config),
            "iteration": iteration,
            "experts": self.num_experts,
            "image_shape": list(dataset.image_shape),
            "task": self.task.state(),
        }
        if dataset.kind != "images":
            data = {name: value for name, value in dataset.source.items() if name != "data_path"}
            provenance |= {"target": list(dataset.target), "data": data}
        return DistilledDataset(
            images.detach().cpu().clone(), labels.cpu(), syn_lr, dataset.transform, dataset.class_names, provenance
        )


def _spec_of(module: nn.Module) -> dict[str, Any]:
    try:
        return model_spec(module)
    except InputError:  # a module of the user's own: described by its name alone
        return {"name": type(module).__name__}
