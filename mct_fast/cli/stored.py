"""What the commands read from folders: configurations of runs, distilled sets, the data they came from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from mct_fast.cli.arguments import StoreClaims
from mct_fast.cli.parsing import value_of
from mct_fast.run.errors import InputError


@dataclass(frozen=True)
class Source:
    """What a run is made of: a trajectory store, or data and a network by themselves."""

    trajectories: Path | None = None
    loaded: Callable[[Any, Any], tuple[Any, Any]] | None = None
    """Dataset and module, of a ``DistillConfig`` and a ``Progress``."""

    def arguments(self, config: Any, progress: Any) -> dict[str, Any]:
        """As :func:`mct_fast.distill.distill` takes them."""
        if self.trajectories is not None or self.loaded is None:
            return {"trajectories": self.trajectories}
        dataset, module = self.loaded(config, progress)
        return {"trajectories": None, "dataset": dataset, "model": module}


def without_store(experts: Any, claims: StoreClaims) -> Source:
    """The data and network of the settings ``experts``, with what ``claims`` say instead."""
    if claims.dataset is None and experts is None:
        raise InputError("dataset: missing; without a store give --dataset, such as --dataset cifar10")

    def loaded(config: Any, progress: Any) -> tuple[Any, Any]:
        from mct_fast.experts import expert_spec, load_for
        from mct_fast.models import build_model
        from mct_fast.ops.device import taken
        from mct_fast.settings import ExpertConfig

        said = {field.name: getattr(claims, field.name) for field in fields(claims)}
        wanted = {name: value for name, value in said.items() if value is not None and value is not False}
        own = {"data_path": config.engine.data_path, "device": taken(config.engine.device)}
        chosen = replace(experts or ExpertConfig(), **wanted, **own)
        dataset = load_for(chosen, progress)
        return dataset, build_model(expert_spec(chosen, dataset))

    return Source(loaded=loaded)


def stored_config(path: Path) -> tuple[Any, Source]:
    """The configuration of a run as it was frozen, a ``DistillConfig``, and what it is made of."""
    from mct_fast.run.files import reading
    from mct_fast.run.folder import CONFIG, Run
    from mct_fast.settings import DistillConfig

    config = Run.open(path).config
    trajectories, noted = config.get("trajectories"), config.get("source")
    spec: dict[str, Any] = config.get("model") or {}
    if trajectories is None and (noted is None or set(spec) == {"name"}):
        raise InputError(f"resume: {path} was made from what was in memory; go on with distill(..., resume=True)")

    def loaded(config: Any, progress: Any) -> tuple[Any, Any]:
        from mct_fast.data import load_noted
        from mct_fast.models import build_model
        from mct_fast.ops.device import taken

        assert noted is not None
        engine = config.engine
        dataset = load_noted(noted, data_path=engine.data_path, device=taken(engine.device), progress=progress)
        return dataset, build_model(spec)

    with reading("resume", path / CONFIG):
        return DistillConfig.of(config), Source(None if trajectories is None else Path(trajectories), loaded)


def resumed_in(words: Sequence[str]) -> Any:
    """The configuration of the run that ``words`` name with --resume; None where there is none."""
    path = value_of("resume", words)
    if path is None:
        return None
    from mct_fast.run.folder import Run

    with contextlib.suppress(OSError, ValueError):  # what is wrong is said once the words are understood
        return stored_config(Path(path))[0] if Run.holds_one(path) else None
    return None


def distilled_at(path: Path) -> tuple[Any, Path | None]:
    """The distilled set at ``path``, and the run it belongs to if ``path`` is a run."""
    from mct_fast.distilled import DistilledDataset
    from mct_fast.run.folder import CONFIG

    if not (path / CONFIG).is_file():
        return DistilledDataset.load(path), None
    if not (path / "distilled").is_dir():
        raise InputError(f"path: the run {path} has no distilled set yet; go on with: mct-fast distill --resume {path}")
    return DistilledDataset.load(path / "distilled"), path


def dataset_of(distilled: Any, run_path: Path | None, name: str | None, data_path: str | None, device: str) -> Any:
    """The dataset that ``distilled`` came from, or the one called ``name`` in the same form."""
    from mct_fast.data import load_noted
    from mct_fast.run.folder import Run
    from mct_fast.trajectory import TrajectoryStore

    kind = distilled.transform.state()[1].get("kind")
    noted: dict[str, Any] = {"name": distilled.provenance.get("dataset"), "zca": kind == "zca"}
    if kind not in ("table", "series"):
        noted["image_size"] = distilled.provenance.get("image_shape", distilled.images.shape)[-1]
    noted |= distilled.provenance.get("data", {})
    config = {} if run_path is None else Run.open(run_path).config
    store = config.get("trajectories")
    noted |= config.get("source") or {}
    if isinstance(store, str):
        with contextlib.suppress(InputError):  # moved since; what the set itself says must do
            noted |= TrajectoryStore.open(store).manifest["dataset"]
    noted["name"] = name or noted["name"]
    if noted["name"] is None:
        raise InputError("dataset: the distilled set does not say where it came from; give --dataset")
    return load_noted(noted, data_path=data_path, device=device)


def models(names: str) -> list[str]:
    """Names of networks, all known."""
    from mct_fast.models import check_name

    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted:
        raise InputError("model: names no network; give e.g. --model ConvNet,AlexNet")
    for name in wanted:
        check_name(name)
    return wanted


def buildable(names: list[str], own: dict[str, Any] | None, dataset: Any, task: Any) -> list[Any]:
    """``names``, once it is known that each can be built for ``dataset``; that of the set's ``own`` network is that one."""
    import torch

    from mct_fast.models import build_model
    from mct_fast.training import named_spec

    networks = [own if own is not None and own.get("name") == name else name for name in names]
    with torch.device("meta"):
        for network in networks:
            build_model(named_spec(network, dataset, task))
    return networks


def check_dataset(argument: str, name: str, dataset: str, trajectories: Path) -> None:
    """Raises :class:`InputError` if ``name``, given as ``argument``, is for another ``dataset`` than the store's."""
    from mct_fast.data.registry import canonical_name
    from mct_fast.trajectory import TrajectoryStore

    try:
        stored = str(TrajectoryStore.open(trajectories).manifest["dataset"]["name"])
    except InputError:
        return  # which whoever reads the store says
    # A tree of a set's images is that set: folder:cifar10.
    if canonical_name(stored.partition(":")[2] or stored) != canonical_name(dataset):
        raise InputError(
            f"{argument}: {name} is for {dataset}, the experts of {trajectories} saw {stored}; "
            f"choose a {argument} of that dataset, or give its settings as options"
        )


def check_claims(claims: StoreClaims, trajectories: Path) -> None:
    """Raises :class:`InputError` if the experts of the store are not what ``claims`` say."""
    from mct_fast.data.registry import canonical_name
    from mct_fast.settings.names import convnet_suffixes
    from mct_fast.trajectory import TrajectoryStore

    if claims == StoreClaims():
        return
    manifest = TrajectoryStore.open(trajectories).manifest
    data, model = manifest["dataset"], manifest["model"]
    name = str(data["name"])
    saw: dict[str, tuple[Any, Any]] = {}
    if claims.dataset is not None:
        saw["dataset"] = canonical_name(claims.dataset), canonical_name(name.partition(":")[2] or name)
    if claims.model is not None:
        wanted: dict[str, Any] = {"name": claims.model}
        if claims.model.startswith("ConvNet"):
            wanted = {"name": "ConvNet", **convnet_suffixes(claims.model)}
        saw["model"] = wanted, {key: model.get(key) for key in wanted}
    for argument in ("depth", "width", "image_size"):
        if getattr(claims, argument) is not None:
            saw[argument] = getattr(claims, argument), model.get(argument)
    if claims.zca:
        saw["zca"] = True, bool(data.get("zca"))
    for argument, (wanted, found) in saw.items():
        if wanted != found:
            raise InputError(
                f"{argument}: the experts of {trajectories} have {found}, not {wanted}; give another store, or leave it out"
            )
