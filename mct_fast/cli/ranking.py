"""``mct-fast ranking``: DD-Ranking's scores of a distilled set.

Annotations are evaluated here (no ``from __future__ import annotations``), as in `mct_fast.cli.commands`.
"""

import contextlib
import dataclasses
from pathlib import Path
from statistics import fmean

from tyro.conf import Positional

from mct_fast.cli.output import print_rows
from mct_fast.cli.parsing import parse, use_plugin
from mct_fast.cli.session import progress_bars, resumable
from mct_fast.cli.stored import buildable, dataset_of, distilled_at, models
from mct_fast.run.errors import InputError
from mct_fast.settings import EvalConfig


@dataclasses.dataclass(frozen=True)
class _Ranking:
    """Score a distilled set of images with hard labels as DD-Ranking does, by its label-robust and augmentation-robust
    scores, both from 0 to 1.

    They say how much of an accuracy is the images', beside as many random real images and training on all real data.
    """

    path: Positional[Path]
    """A run folder, or the folder of a distilled set."""
    real_hard: float | None = None
    """Accuracy of the network trained on all real data, from 0 to 1. Left out, the mean of the experts of the run's store."""
    weight: float = 0.5
    """Weight of the first of the two terms of each score; DD-Ranking's leaderboard takes 0.5."""
    random_lrs: tuple[float, ...] = (0.001, 0.005, 0.01, 0.05, 0.1)
    """Step sizes to try for random images; the best on validation data counts. DD-Ranking tries these five."""
    model: str | None = None
    """The network, as for 'mct-fast evaluate'. Left out, the one that the set was distilled with."""
    dataset: str | None = None
    """Dataset to score on; left out, the one that the set was distilled from."""
    data_path: str | None = None
    """Folder that holds the dataset; left out, the one noted with the experts."""
    plugin: str | None = None
    """Your Python module, in this folder or installed, that registers datasets and networks of your own."""
    config: EvalConfig = EvalConfig()


def run(words: list[str]) -> None:
    """Score a distilled set by DD-Ranking's LRS and ARS."""
    use_plugin(words)
    given = parse("ranking", _Ranking, words)
    from mct_fast.evaluate import default_model
    from mct_fast.ranking import rank

    distilled, run_path = distilled_at(given.path)
    real_hard, source = (given.real_hard, "as given") if given.real_hard is not None else _of_experts(run_path)
    dataset = dataset_of(distilled, run_path, given.dataset, given.data_path, given.config.protocol.device)
    network = default_model(dataset, distilled.provenance)
    if given.model is not None:
        names = models(given.model)
        if len(names) > 1:
            raise InputError(f"model: {given.model} are several; give one network")
        (network,) = buildable(names, distilled.provenance.get("model"), dataset, distilled.task)
    with resumable("nothing is kept"):
        found = rank(
            distilled, dataset, real_hard, given.config,
            model=network, weight=given.weight, random_lrs=given.random_lrs, progress=progress_bars(),
        )  # fmt: skip
    percents = {name: f"{100 * share:.1f} %" for name, share in found.accuracies.items()}
    print_rows(
        [
            ("accuracy, trained on", "with DSA", "without"),
            ("all real data", percents["real_hard"], f"({source})"),
            ("this set", percents["syn_aug"], percents["syn_plain"]),
            ("random real images", percents["random_aug"], percents["random_plain"]),
            ("label-robust score (LRS)", f"{found.lrs:.4f}"),
            ("augmentation-robust score (ARS)", f"{found.ars:.4f}"),
        ]
    )


def _of_experts(run_path: Path | None) -> tuple[float, str]:
    """The mean accuracy of the experts that the run at ``run_path`` was distilled from, and where it comes from."""
    from mct_fast.run.folder import Run
    from mct_fast.trajectory import TrajectoryStore

    store = None if run_path is None else Run.open(run_path).config.get("trajectories")
    if isinstance(store, str):
        with contextlib.suppress(InputError):  # moved since
            entries = list(TrajectoryStore.open(store).manifest["experts"].values())
            known = [entry["info"] for entry in entries if isinstance(entry["info"].get("accuracy"), float)]
            if known:
                count = "1 expert" if len(known) == 1 else f"mean of {len(known)} experts"
                return fmean(info["accuracy"] for info in known), f"{count}, {known[0]['split']}"
    raise InputError(
        "real_hard: no experts are noted whose accuracy it could be; give that of the network trained on all real data, e.g. "
        "--real_hard 0.85"
    )
