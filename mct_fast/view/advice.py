"""How far a run is, and what looks wrong in its numbers: a sentence each, with what to do about it.

Each rule reads the records and says no more than they hold.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from mct_fast.run.progress import duration
from mct_fast.tasks import format_metric, metric_label
from mct_fast.view.facts import Facts

_ENOUGH = 100  # iterations: of fewer no trend is told
_LEAST_STEP = 1 / 1000  # of where it began: StepSize's bound


def status(facts: Facts) -> str | None:
    """How far a run is that is not finished, and whether a process is at work; None: it is finished."""
    if facts.final is not None:
        return None
    iterations, wanted = facts.of_kind("iter"), facts.run.config.get("iterations")
    done = iterations[-1]["iteration"] if iterations else 0
    left = ""
    if isinstance(wanted, int) and iterations:
        seconds = (wanted - done) * median(r["seconds"] for r in iterations[-_ENOUGH:])
        left = f", about {duration(seconds)} left for them" if wanted > done else ", the last evaluation is missing"
    if facts.run.is_held():
        return f"Not finished: {done} of {wanted or '?'} iterations{left}. A process is at work; this page is of now."
    command = f"mct-fast distill --resume {facts.run.path}"
    return f"Not finished: {done} of {wanted or '?'} iterations{left}. No process is at work; go on with: {command}"


def advice(facts: Facts) -> list[str]:
    """What looks wrong, and what to do about it."""
    return [sentence for rule in _RULES if (sentence := rule(facts)) is not None]


def _follows_experts(facts: Facts) -> bool:
    return facts.run.config.get("objective", "matching") == "matching"


def _skipped(facts: Facts) -> str | None:
    iterations = facts.of_kind("iter")
    if not iterations or iterations[-1].get("skipped", 0) <= 0.1 * iterations[-1]["iteration"]:
        return None
    done, skipped = iterations[-1]["iteration"], iterations[-1]["skipped"]
    return f"{skipped} of {done} iterations were skipped: lower lr_teacher, lr_img or syn_steps, or raise max_loss."


def _not_finite(facts: Facts) -> str | None:
    iterations = facts.of_kind("iter")
    odd = [r["iteration"] for r in iterations if "loss" in r and (r["loss"] is None or r.get("grad_norm", 0.0) is None)]
    if not odd:
        return None
    return (
        f"Loss or gradient was no finite number in {len(odd)} of {len(iterations)} iterations, the last time in iteration "
        f"{odd[-1]}: students explode, so lower lr_teacher or syn_steps; if it is in all, inspect the experts."
    )


def _standing_still(facts: Facts) -> str | None:
    norms = [r["grad_norm"] for r in facts.of_kind("iter") if r.get("grad_norm") is not None]
    if not norms or any(norms[-20:]):
        return None
    return (
        f"The gradient was 0 in the last {min(20, len(norms))} iterations: no image changes; raise lr_teacher, and look at the "
        "experts with mct-fast inspect."
    )


def _far(facts: Facts) -> str | None:
    losses = _losses(facts)
    recent = losses[-max(20, len(losses) // 10) :]
    if not _follows_experts(facts) or len(losses) < _ENOUGH or median(recent) <= 1:
        return None
    return (
        "The matching loss is above 1: students end farther from the target than they began; lower lr_teacher or "
        "syn_steps, or raise expert_epochs."
    )


def _not_falling(facts: Facts) -> str | None:
    losses = _losses(facts)
    tenth = len(losses) // 10
    if len(losses) < _ENOUGH or median(losses[-tenth:]) < median(losses[:tenth]):
        return None
    first, last = median(losses[:tenth]), median(losses[-tenth:])
    return (
        f"The loss does not fall: its median was {first:.4g} in the first tenth of the iterations and is {last:.4g} in the last; "
        "try another lr_img."
    )


def _losses(facts: Facts) -> list[float]:
    return [r["loss"] for r in facts.of_kind("iter") if r.get("loss") is not None]


def _step_size(facts: Facts) -> str | None:
    iterations, began = facts.of_kind("iter"), facts.run.config.get("lr_teacher")
    rate = iterations[-1].get("syn_lr") if iterations else None
    if not rate or not isinstance(began, float) or 0.1 < rate / began < 10:
        return None
    if rate <= 1.001 * _LEAST_STEP * began:
        return (
            f"The step size is at its lower bound, {rate:.3g}, a thousandth of where it began: students stand still; "
            "lower lr_lr or lr_img."
        )
    return (
        f"The step size went from {began:.3g} to {rate:.3g}: lower lr_lr, or begin nearer with lr_teacher={rate:.2g}."
    )


def _scores(facts: Facts) -> list[tuple[int, float, float]]:
    """Iteration, mean and standard deviation of each evaluation."""
    return [
        (r["iteration"], r["mean"], r.get("std") or 0.0) for r in facts.of_kind("eval") if r.get("mean") is not None
    ]


def _rising(facts: Facts) -> str | None:
    scored = _scores(facts)
    if facts.final is None and facts.run.is_held():
        return None  # it goes on as it is
    best = max((mean for _, mean, _ in scored), default=0.0)
    if len(scored) < 3 or scored[-1][1] < best or scored[-1][1] - scored[-2][1] <= scored[-1][2] / 2:
        return None
    return "The score still rises at the end: go on with more iterations."


def _worse_than_at_first(facts: Facts) -> str | None:
    scored = _scores(facts)
    if facts.final is not None or len(scored) < 3 or scored[0][0] != 0:
        return None
    first, best = scored[0], max(scored[1:], key=lambda row: row[1])
    if best[1] > first[1]:
        return None
    noun, label = facts.noun, metric_label(facts.metric)
    return (
        f"No later {noun} were better so far: those that the run began with reach {label} "
        f"{format_metric(facts.metric, *first[1:])}, the best later ones {format_metric(facts.metric, *best[1:])} (iteration "
        f"{best[0]}); try another lr_img or lr_teacher, and look at the curve of the loss."
    )


def _against_random(facts: Facts) -> str | None:
    final = facts.final
    if final is None:
        return None
    if final["iteration"] == 0:
        return (
            f"No later {facts.noun} were better than those that the run began with: try another lr_img or lr_teacher, "
            "and look at the curve of the loss."
        )
    random, score = final.get("random_real_mean") or 0, final["test_mean"] or 0
    spread = max(final.get("random_real_std") or 0, final.get("test_std") or 0)
    if random > score:
        hint = (
            "train more experts, try a smaller max_start_epoch, or"
            if _follows_experts(facts)
            else "try a larger syn_steps, or"
        )
        return f"As many random real {facts.noun} do better: {hint} another lr_img."
    if random and score - random < spread:
        return (
            f"The {facts.noun} are better than as many random real ones by less than the standard deviation over networks: more "
            "networks (num_eval) tell whether they are; mct-fast evaluate trains them."
        )
    return None


def _experts(facts: Facts) -> str | None:
    known, final = facts.experts_score, facts.final
    if known is None or final is None or final["test_mean"] is None or known[0] > final["test_mean"]:
        return None
    return (
        f"The experts, which saw all data, reach {format_metric(facts.metric, *known[:2])}, no more than networks trained on the "
        f"{facts.noun}: train them longer, or with another lr_teacher."
    )


_RULES: tuple[Callable[[Facts], str | None], ...] = (
    _skipped, _not_finite, _standing_still, _far, _not_falling, _step_size, _rising, _worse_than_at_first, _against_random,
    _experts,
)  # fmt: skip
