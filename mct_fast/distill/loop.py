"""Stage 3: the outer loop.  Match a student trained on synthetic images to an expert's path, and improve the images."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mct_fast.data import AugmentPlan, Dataset, augmentation, load_noted, random_real
from mct_fast.distill.config import DistillConfig, adjoint_of, check_config, evaluation_of, layout_of, sampler_of
from mct_fast.distill.learned import HardLabels, ImageAverage, Labels, SoftLabels, StepSize, assigned
from mct_fast.distill.paths import ExpertPaths
from mct_fast.distill.sampling import draw_batches
from mct_fast.distilled import DistilledDataset
from mct_fast.distilled.table import nearest_real
from mct_fast.evaluate import baseline_lrs, evaluate_random_real, evaluate_splits
from mct_fast.matching import Matcher
from mct_fast.matching.adjoint import MatchResult
from mct_fast.models import FunctionalModel, build_model, model_spec
from mct_fast.run.distributed import Communicator, Single, check_agreement
from mct_fast.run.errors import InputError
from mct_fast.run.files import sha256_tensor
from mct_fast.run.folder import Run, Unkept
from mct_fast.run.progress import Progress, quiet
from mct_fast.run.seeds import generator
from mct_fast.tasks import Task, task_from_state, task_named
from mct_fast.trajectory import Trajectory, TrajectoryStore


def distill(
    config: DistillConfig,
    trajectories: TrajectoryStore | str | Path | Sequence[Trajectory],
    dataset: Dataset | None = None,
    *,
    model: nn.Module | None = None,
    task: Task | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    until: int | None = None,
    progress: Progress = quiet(),
    communicator: Communicator = Single(),
) -> DistilledDataset:
    """Distils ``dataset`` into ``config.ipc`` images a class and returns the best set found.

    ``trajectories``: a store (its manifest names model and dataset), or paths together with ``model`` and ``dataset``.
    ``task``: what the labels say and which loss students have; by default that of the store's experts, or of the dataset.
    ``out``: a run folder to write (config, metrics, checkpoints, images); with ``resume`` a killed run goes on there and
    reaches the same bits as an uninterrupted one.  ``until`` stops after so many iterations, evaluated if an evaluation is
    due there, and returns the best set so far; the same call with a later ``until``, or none, goes on.  Students and
    evaluation networks are split over the processes of ``communicator``, which all call this with the same arguments and
    get the same set, that of one process.  Raises
    :class:`InputError` before anything is computed if the configuration does not fit the data or the paths.
    """
    paths, spec, dataset, origin, task = communicator.lead_first(
        lambda: _resolve(config, trajectories, dataset, model, task, progress)
    )
    check_config(config, dataset, paths[0], task)
    loop = _Loop(config, paths, dataset, task, model, spec, communicator)
    end = config.iterations if until is None else until
    if out is None:
        return loop.run_to_end(progress, end)
    described = {
        **asdict(config),
        "trajectories": origin,
        "experts": len(paths),
        "model": spec,
        "dataset": dataset.name,
        "fingerprint": dataset.fingerprint,
        "task": task.state(),
    }
    run = communicator.lead(lambda: _reopen(out, described) if resume else Run.create(out, described))
    finished = communicator.tell(lambda: _finished(run))
    if finished is not None:
        return finished
    with ExitStack() as held:
        communicator.lead(lambda: None if run is None else held.enter_context(run.held()))
        loop.attach(run)
        return loop.run_to_end(progress, end)


def _reopen(out: str | Path, described: dict[str, Any]) -> Run:
    """The run at ``out`` if it was begun with the same settings; only folders may have moved since."""
    run = Run.open(out)
    plain = json.loads(json.dumps(described))
    for name in sorted({*plain, *run.config} - {"trajectories", "data_path"}):
        if plain.get(name) != run.config.get(name):
            raise InputError(
                f"resume: {out} was begun with another {name} ({run.config.get(name)!r}, not {plain.get(name)!r}); "
                "a run goes on with its own settings, so begin a new one for others"
            )
    return run


def _finished(run: Run | None) -> DistilledDataset | None:
    """The result of ``run`` if it has come to its end."""
    if run is None or not any(record["kind"] == "final" for record in run.metrics()):
        return None
    return DistilledDataset.load(run.path / "distilled")


def _resolve(
    config: DistillConfig,
    trajectories: TrajectoryStore | str | Path | Sequence[Trajectory],
    dataset: Dataset | None,
    model: nn.Module | None,
    task: Task | None,
    progress: Progress,
) -> tuple[ExpertPaths, dict[str, Any], Dataset, str | None, Task]:
    source = TrajectoryStore.open(trajectories) if isinstance(trajectories, (str, Path)) else trajectories
    if not isinstance(source, TrajectoryStore):
        if model is None or dataset is None:
            raise InputError(
                "model: paths given as a list name neither model nor dataset; pass model=... and dataset=..."
            )
        paths = ExpertPaths(source, config.trajectory, config.device)
        return paths, _spec_of(model), dataset, None, task or task_named(dataset.task)
    noted = source.manifest["dataset"]
    if dataset is None:
        dataset = load_noted(noted, data_path=config.data_path, device=config.device, progress=progress)
    if noted.get("fingerprint") not in (None, dataset.fingerprint):
        raise InputError(
            f"dataset: {dataset.name} is not the data the experts were trained on (fingerprints differ); "
            "load it with the same splits and transform, or train experts on it"
        )
    task = task or task_from_state(source.manifest.get("task"), dataset.task)
    # Absolute: a run may be resumed from another working directory.
    return (
        ExpertPaths(source, config.trajectory, config.device),
        source.manifest["model"],
        dataset,
        str(source.path.absolute()),
        task,
    )


def _spec_of(model: nn.Module) -> dict[str, Any]:
    try:
        return model_spec(model)
    except InputError:  # a module of the user's own: described by its name alone
        return {"name": type(model).__name__}


class _Loop:
    """The outer loop of one run.  All randomness of iteration i comes from (seed, i): nothing random is carried over."""

    def __init__(
        self,
        config: DistillConfig,
        paths: ExpertPaths,
        dataset: Dataset,
        task: Task,
        model: nn.Module | None,
        spec: dict[str, Any],
        communicator: Communicator,
    ) -> None:
        self.config, self.paths, self.dataset, self.task, self.spec = config, paths, dataset, task, spec
        self.communicator = communicator
        self.run: Run | Unkept = Unkept()
        self.reporting = False
        self.network: nn.Module | dict[str, Any] = spec if model is None else model
        template = FunctionalModel(build_model(spec) if model is None else model)
        self.matcher = Matcher(
            template,
            task=task,
            adjoint=adjoint_of(config),
            micro_batch=config.micro_batch,
            communicator=communicator,
        )
        self.sampler, self.layout = sampler_of(config), layout_of(config)
        self.augment = augmentation(dataset.kind, config.dsa, config.dsa_strategy, config.jitter)
        images, labels = self._initial_rows()
        self.images = images.requires_grad_()
        self.labels = self._initial_labels(labels, template)
        self.average = ImageAverage(self.images, config.ema)
        self.optimizer = self._optimizer()
        self.step_size = StepSize(config.lr_teacher, config.lr_lr, config.mom_img)
        self.iteration, self.skipped, self.seconds = 0, 0, 0.0
        self.evaluated = -1  # the last iteration whose images were evaluated
        self.best: dict[str, Any] = {"score": -1.0, "iteration": 0, "syn_lr": config.lr_teacher}
        self.best_images, self.best_labels = self.images.detach().clone(), self.labels.value

    def attach(self, run: Run | None) -> None:
        """Writes to ``run`` from now on, after going back to its last checkpoint if it has one.

        Of several processes the leader has the run; the others follow it from the same checkpoint.
        """
        self.run, self.reporting = run or Unkept(), True
        self._restore(self.communicator.tell(lambda: None if run is None else run.load_checkpoint()))

    def _initial_rows(self) -> tuple[Tensor, Tensor]:
        """Real images with their labels; or noise, with the labels that real images would have."""
        config, train = self.config, self.dataset.train
        stream = generator(config.seed, "pix-init")
        if config.pix_init == "real":
            images, labels = self.layout.real(train, config.ipc, self.task, stream)
        else:
            _, labels = random_real(train, config.ipc, stream, self.task)
            shape = self.layout.shape(self.dataset.image_shape)
            images = torch.randn((len(labels), *shape), generator=generator(config.seed, "pix-init"))
        return images.to(config.device), labels.to(config.device)

    def _initial_labels(self, hard: Tensor, model: FunctionalModel) -> Labels:
        config, link = self.config, self.task.link
        if config.labels == "expert":
            experts = [self.paths[i] for i in range(len(self.paths))]
            seen = assigned(self.images.detach(), model, experts, link)
            return SoftLabels(seen, config.lr_label, config.mom_img, link)
        if config.lr_label == 0:
            return HardLabels(hard)
        first = link.smoothed(self.task.soft(hard, self.dataset.num_classes, self.images.dtype))
        return SoftLabels(first, config.lr_label, config.mom_img, link)

    def _optimizer(self) -> torch.optim.Optimizer:
        if self.config.img_optimizer == "adam":
            return torch.optim.Adam([self.images], lr=self.config.lr_img)
        return torch.optim.SGD([self.images], lr=self.config.lr_img, momentum=self.config.mom_img)

    def run_to_end(self, progress: Progress, until: int) -> DistilledDataset:
        config = self.config
        end = min(until, config.iterations)
        with progress.task("distil", end, done=self.iteration) as bar:
            while self.iteration < end:
                self._evaluate_if_due(progress)
                metrics = self._iterate()
                bar.advance(1, loss=metrics["loss"], lr=self.step_size.value)
                # The last one precedes the last evaluation, which a run that is killed after it does again.
                if self.iteration % config.checkpoint_every == 0 or self.iteration == end:
                    self._save()
        if end < config.iterations:
            if self._evaluate_if_due(progress):
                self._save()
            return self._best()
        self._evaluate(progress)
        return self._finish(progress)

    def _evaluate_if_due(self, progress: Progress) -> bool:
        every = self.config.eval_it
        due = every > 0 and self.iteration % every == 0 and self.iteration != self.evaluated
        if due:
            self._evaluate(progress)
        return due

    def _iterate(self) -> dict[str, Any]:
        began = time.perf_counter()
        result, segments = self._match()
        loss = float(result.loss.mean())
        norm = float(result.grad_images.double().norm())
        accepted = math.isfinite(loss) and loss <= self.config.max_loss and math.isfinite(norm)
        accepted = accepted and math.isfinite(float(result.grad_lr))
        if not (accepted and self._descend(result)):
            self.skipped += 1
        self.iteration += 1
        self.average.update(self.images, self.iteration)
        spent = time.perf_counter() - began
        self.seconds += spent
        metrics = {
            "kind": "iter",
            "iteration": self.iteration,
            "loss": loss if math.isfinite(loss) else None,
            "syn_lr": self.step_size.value,
            "grad_norm": norm if math.isfinite(norm) else None,
            "start": segments[0][0],
            "target": segments[0][1],
            "seconds": spent,
            "skipped": self.skipped,
        }
        self.run.log(**metrics)
        return {**metrics, "loss": loss}

    def _descend(self, result: MatchResult) -> bool:
        """One step of pixels and step size; undone, and False, if it would leave pixels that are not finite."""
        before = self.images.detach().clone()
        self._set_lr_img()
        self.images.grad = result.grad_images
        self.optimizer.step()
        if not bool(torch.isfinite(self.images).all()):
            with torch.no_grad():
                self.images.copy_(before)
            self.optimizer.state.clear()  # the momentum has overflowed as well
            return False
        self.step_size.step(float(result.grad_lr))
        self.labels.step(result.grad_labels)
        return True

    def _match(self) -> tuple[MatchResult, list[tuple[float, float]]]:
        config = self.config
        stream = generator(config.seed, "iteration", self.iteration)
        starts, targets, segments, batches = [], [], [], []
        for student in range(config.students):
            path = self.paths[self._expert(self.iteration * config.students + student)]
            segment = self.sampler.draw(path.epochs, self.iteration, stream)
            starts.append(path.at(segment[0]))
            targets.append(path.at(segment[1]))
            segments.append(segment)
            count = len(self.images)
            batches.append(draw_batches(count, config.batch_syn or count, config.syn_steps, stream))
        plan = self._plan(batches, stream)
        device = config.device
        ends = torch.stack(starts).to(device), torch.stack(targets).to(device)

        def match(images: Tensor, labels: Tensor, rows: Tensor) -> MatchResult:
            return self.matcher(images, labels, self.step_size.value, *ends, rows, augment=plan)

        rows = torch.stack(batches).to(device)
        return self.layout.match(self.images.detach(), self.labels.value, rows, stream, match), segments

    def _expert(self, turn: int) -> int:
        """Experts take turns in a fresh order each round."""
        count = len(self.paths)
        order = torch.randperm(count, generator=generator(self.config.seed, "experts", turn // count))
        return int(order[turn % count])

    def _plan(self, batches: Sequence[Tensor], stream: torch.Generator) -> AugmentPlan | None:
        if self.augment is None:
            return None
        sizes = (batches[0] >= 0).sum(1).tolist()
        return self.augment.plan(len(batches), self.config.syn_steps, sizes, self.dataset.image_shape, stream)

    def _set_lr_img(self) -> None:
        config = self.config
        decays = self.iteration // config.lr_decay_every if config.lr_decay_every else 0
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr_img * config.lr_decay**decays

    def _evaluate(self, progress: Progress) -> None:
        began = time.perf_counter()
        check_agreement(self.communicator, "images", sha256_tensor(self.images))
        images, labels = self._current(), self.labels.value
        candidate = self._distilled(images, labels, self.step_size.value, self.iteration)
        chosen = self.config.select_on
        splits = tuple(dict.fromkeys((chosen, "test"))) if self.config.eval_test else (chosen,)
        results = evaluate_splits(
            candidate,
            self.dataset,
            evaluation_of(self.config),
            model=self.network,
            task=self.task,
            splits=splits,
            progress=progress,
            communicator=self.communicator,
        )
        result, self.evaluated = results[chosen], self.iteration
        if result.mean > self.best["score"]:
            self.best = {"score": result.mean, "iteration": self.iteration, "syn_lr": self.step_size.value}
            if "test" in results:  # what a last evaluation of these images would find again
                self.best["test"] = results["test"].record()
            self.best_images, self.best_labels = images.clone(), labels.clone()
        record = {"kind": "eval", "iteration": self.iteration, **result.json()}
        if self.config.eval_test:
            record["test"] = results["test"].json()
        self.run.log(**record, seconds=time.perf_counter() - began)
        self.run.keep(self._best())

    def _current(self) -> Tensor:
        """The images that are evaluated and saved."""
        return self.average.value if self.config.ema else self.images.detach()

    def _finish(self, progress: Progress) -> DistilledDataset:
        best, config = self._best(), evaluation_of(self.config)
        near = None
        if self.dataset.kind != "images":
            near = nearest_real(best.images, self.dataset)
            best = replace(best, provenance={**best.provenance, "nearest_real": near})
        if not self.reporting:
            return best
        common: dict[str, Any] = {
            "model": self.network, "task": self.task, "progress": progress, "communicator": self.communicator
        }  # fmt: skip
        test = self.best.get("test")
        if test is None:
            test = evaluate_splits(best, self.dataset, config, splits=("test",), **common)["test"].record()
        random = None
        if self.config.random_real:
            random = evaluate_random_real(
                self.config.ipc, self.dataset, config, split="test", lrs=baseline_lrs(best), **common
            )
        best = replace(best, provenance={**best.provenance, "test": {k: v for k, v in test.items() if k != "model"}})
        self.run.keep(best)
        self.run.log(
            kind="final",
            model=test["model"],
            iteration=self.best["iteration"],
            select_on=self.config.select_on,
            num_eval=self.config.num_eval,
            test_mean=test["mean"],
            test_std=test["std"],
            test_scores=test["scores"],
            metric=test["metric"],
            test_metrics=test["metrics"],
            labels="soft" if best.labels.is_floating_point() else "hard",
            distill_seconds=self.seconds,
            skipped=self.skipped,
            **({} if random is None else random.baseline()),
            **({} if near is None else {"nearest_real": {k: v for k, v in near.items() if k != "distances"}}),
        )
        return best

    def _best(self) -> DistilledDataset:
        return self._distilled(self.best_images, self.best_labels, self.best["syn_lr"], self.best["iteration"])

    def _distilled(self, images: Tensor, labels: Tensor, syn_lr: float, iteration: int) -> DistilledDataset:
        provenance = {
            "dataset": self.dataset.name,
            "fingerprint": self.dataset.fingerprint,
            "model": self.spec,
            "config": asdict(self.config),
            "iteration": iteration,
            "experts": len(self.paths),
            "image_shape": list(self.dataset.image_shape),
            "task": self.task.state(),
        }
        if self.dataset.kind != "images":
            data = {name: value for name, value in self.dataset.source.items() if name != "data_path"}
            provenance |= {"target": list(self.dataset.target), "data": data}
        return DistilledDataset(
            images.detach().cpu().clone(),
            labels.cpu(),
            syn_lr,
            self.dataset.transform,
            self.dataset.class_names,
            provenance,
        )

    def _save(self) -> None:
        tensors = {"images": self.images.detach(), "best_images": self.best_images, "best_labels": self.best_labels}
        tensors |= {"average": self.average.value, **self.labels.tensors()}
        moments = self.optimizer.state[self.images]
        tensors |= {f"optimizer.{name}": value for name, value in moments.items() if isinstance(value, Tensor)}
        state = {
            "iteration": self.iteration,
            "syn_lr": self.step_size.value,
            "syn_lr_velocity": self.step_size.velocity,
            "skipped": self.skipped,
            "seconds": self.seconds,
            "evaluated": self.evaluated,
            "best": self.best,
        }
        self.run.save_checkpoint({name: value.detach().cpu() for name, value in tensors.items()}, state)

    def _restore(self, saved: tuple[dict[str, Tensor], dict[str, Any]] | None) -> None:
        if saved is None:
            return
        tensors, state = saved
        with torch.no_grad():
            self.images.copy_(tensors["images"])
        self.best_images = tensors["best_images"].to(self.config.device)
        self.best_labels = tensors["best_labels"].to(self.config.device)
        self.average.value = tensors["average"].to(self.config.device)
        self.labels.restore(tensors)
        prefix = "optimizer."
        moments = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
        if moments:
            # Adam keeps its step count as a CPU tensor; the moments live with the images.
            placed = {name: v if v.ndim == 0 else v.to(self.config.device) for name, v in moments.items()}
            self.optimizer.state[self.images] = cast(dict, placed)
        self.iteration, self.skipped, self.seconds = state["iteration"], state["skipped"], state["seconds"]
        self.step_size.value, self.step_size.velocity = state["syn_lr"], state["syn_lr_velocity"]
        self.best, self.evaluated = state["best"], state["evaluated"]
