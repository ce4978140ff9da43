from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from bench import accuracy, gate, race
from bench.contestants import OURS, Contestant, Iterate, Outcome, contestants, judge
from bench.problem import Problem, Setting, build

TINY = Setting(ipc=1, syn_steps=3, batch_syn=3, depth=2, width=4, image_size=8, num_classes=3)
TERMS = race.Terms(rounds=2, budget=0.1, memory=False)


def _entrants() -> dict[str, Contestant]:
    """Ours and the eager ones: a compiler takes longer than the rest of the suite."""
    return {name: c for name, c in contestants().items() if name != "torch_compile"}


def _spoiled(honest: Contestant, spoil: Callable[[Outcome], Outcome]) -> Contestant:
    def make(problem: Problem) -> Iterate:
        iterate = honest.build(problem)
        return lambda: spoil(iterate())

    return replace(honest, build=make)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda o: replace(o, grad_images=o.grad_images * 1.01),
        lambda o: replace(o, grad_images=o.grad_images * float("nan")),
        lambda o: replace(o, loss=o.loss * 1.01),
        lambda o: replace(o, grad_lr=-o.grad_lr),
    ],
    ids=["pixels-one-percent-off", "pixels-nan", "loss-off", "step-size-sign"],
)
def test_a_wrong_result_is_never_timed(spoil: Callable[[Outcome], Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("timed after a failed gate")

    monkeypatch.setattr(race, "alternate", fail)
    entrants = _entrants()
    entrants[OURS] = _spoiled(entrants[OURS], spoil)
    with pytest.raises(race.GateError, match="mct_fast: losses or gradients differ") as caught:
        race.race(TINY, entrants, TERMS)
    assert caught.value.verdict.failed == (OURS,)


def test_a_contestant_that_does_not_start_gets_a_row_that_says_so() -> None:
    def refuse(problem: Problem) -> Iterate:
        raise RuntimeError("no compiler\nlong trace")

    entrants = _entrants()
    entrants["torch_func"] = replace(entrants["torch_func"], build=refuse)
    rows = {row.name: row for row in race.race(TINY, entrants, TERMS).rows}
    assert rows["torch_func"].absent == "RuntimeError: no compiler"
    assert rows[OURS].ratio == 1.0
    assert rows["unrolled"].ratio is not None


def test_a_long_race_is_judged_closely_over_its_first_steps_and_widely_over_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gate, "FIRST_STEPS", 2)
    monkeypatch.setattr(race, "FIRST_STEPS", 2)
    entrants = _entrants()

    def off(share: float, from_steps: int) -> Callable[[Problem], Iterate]:
        honest = entrants["unrolled"]

        def make(problem: Problem) -> Iterate:
            factor = 1 + share * (problem.setting.syn_steps >= from_steps)
            iterate = honest.build(problem)
            return lambda: (lambda o: replace(o, grad_images=o.grad_images * factor))(iterate())

        return make

    def failed(share: float, from_steps: int) -> int | None:
        """The steps of the verdict that fails with the gradient off by ``share`` in runs of ``from_steps`` and more."""
        spoiled = {**entrants, "unrolled": replace(entrants["unrolled"], build=off(share, from_steps))}
        try:
            verdicts = race.race(TINY, spoiled, TERMS).gate
        except race.GateError as error:
            return error.verdict.steps if error.verdict.failed == ("unrolled",) else None
        assert [v.steps for v in verdicts] == [2, 3]
        return None

    assert failed(0.01, 3) is None  # as much as switched ReLUs do
    assert failed(0.01, 2) == 2
    assert failed(0.1, 3) == 3


def test_our_own_failure_is_not_hidden() -> None:
    def refuse(problem: Problem) -> Iterate:
        raise RuntimeError("broken")

    entrants = _entrants()
    entrants[OURS] = replace(entrants[OURS], build=refuse)
    with pytest.raises(RuntimeError, match="broken"):
        race.race(TINY, entrants, TERMS)


def test_what_does_not_fit_into_memory_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "available_memory", lambda: 1000)
    monkeypatch.setattr(race.memory, "predicted", lambda *_, **__: 10**9)
    rows = {row.name: row for row in race.race(replace(TINY, syn_steps=5), _entrants(), TERMS).rows}
    assert rows["unrolled"].absent == "needs about 1 GB, 0 GB are free"
    assert rows["torch_func"].seconds is not None


def test_truncated_gradients_are_judged_by_the_truncated_one() -> None:
    problem = build(TINY)
    exact, truncated = judge(problem), judge(problem, truncated=True)
    half = replace(truncated, grad_images=truncated.grad_images / 2)  # as the official code loses its factor
    mct = Contestant("mct", "", lambda _: lambda: half, gradient="truncated", scale=0.5)
    unrolled = Contestant("unrolled", "", lambda _: lambda: exact)
    passed = []
    for entrant in (mct, replace(mct, scale=1.0), replace(mct, gradient="exact")):
        entrants = {"mct": entrant, "unrolled": unrolled}
        outcomes = {"mct": half, "unrolled": exact}
        found = gate.verdict(gate.FIRST_STEPS, entrants, outcomes, exact, truncated).agreements[0]
        passed.append(found.passed)
        assert found.cosine < 1
    assert passed == [True, False, False]


@pytest.mark.parametrize(
    ("plain", "limit"),
    [
        ((1e-6, 1e-6, 1e-6), 5e-3),
        ((8e-3, 4e-3, 5e-3), 1.5e-2),
        ((0.5, 4e-3, 5e-3), 1.5e-2),
        ((0.5, 0.5, 0.5), 5e-2),
    ],
    ids=["quiet", "noisy", "one-of-the-yardsticks-wrong", "all-wrong"],
)
def test_the_limit_follows_pytorchs_own_error_within_bounds(plain: tuple[float, ...], limit: float) -> None:
    errors = {name: gate.Errors(0.0, e, 0.0) for name, e in zip(gate.YARDSTICKS, plain, strict=True)}
    errors[OURS] = gate.Errors(0.0, 1.0, 0.0)  # has no say
    assert gate.limits_of(errors).gradients == pytest.approx(limit)


def test_problems_are_rebuilt_bit_for_bit_and_alike_in_both_precisions() -> None:
    one, two, wide = build(TINY), build(TINY), build(replace(TINY, dtype="float64"))
    for name in ("images", "start", "target", "syn_lr"):
        assert torch.equal(getattr(one, name), getattr(two, name))
        assert torch.equal(getattr(one, name).double(), getattr(wide, name))
    assert torch.equal(one.batches(), wide.batches())
    assert not torch.equal(one.start, build(replace(TINY, seed=1)).start)


@pytest.mark.parametrize(
    ("ours", "pytorch", "ratio"),
    [
        ([1e-6, 2e-3, 3e-6], [2e-6, 1e-6, 2e-6], 1.0),  # a switch of ours is luck where others agree
        ([4e-3, 3e-3], [3e-3, 4e-3], 1.0),
        ([2e-3, 2e-3], [1e-6, 1e-6], 2000.0),  # but never to be smooth is an error
    ],
    ids=["one-switched", "all-switched", "wrong"],
)
def test_accuracy_tells_switched_relus_from_errors(ours: list[float], pytorch: list[float], ratio: float) -> None:
    assert accuracy.ratio_of(ours, pytorch)[0] == pytest.approx(ratio)
