import pytest

from bench.timing import Samples, Spread, alternate, interleave, turns


def test_contestants_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gc.collect", lambda: 0)  # slow beside the objects of a whole test suite
    order: list[str] = []
    runs = {name: (lambda name=name: order.append(name)) for name in "abc"}
    found = alternate(runs, {"a": 0.0, "b": 0.0, "c": 60.0}, rounds=4, budget=100.0)
    assert order == list("ab" + "abc" + "ab" + "abc")
    assert {name: len(samples.seconds) for name, samples in found.items()} == {"a": 4, "b": 4, "c": 2}


@pytest.mark.parametrize(
    ("rounds", "seconds", "budget", "count"),
    [(7, 1.0, 90.0, 7), (7, 36.0, 90.0, 2), (7, 1000.0, 90.0, 2), (7, 30.0, 90.0, 3), (2, 0.0, 1.0, 2)],
)
def test_a_slow_contestant_runs_at_least_twice(rounds: int, seconds: float, budget: float, count: int) -> None:
    chosen = turns(rounds, seconds, budget)
    assert len(chosen) == count
    assert chosen <= set(range(rounds))


def test_ratios_are_taken_within_rounds() -> None:
    slow, fast = Samples({1: 6.0, 3: 8.0}), Samples({0: 100.0, 1: 2.0, 3: 4.0})
    assert slow.ratio_to(fast) == Spread(median=2.5, least=2.0, greatest=3.0, count=2)


def test_short_things_are_read_in_bursts() -> None:
    calls = {"a": 0, "b": 0}

    def count(name: str) -> None:
        calls[name] += 1

    found = interleave({name: (lambda name=name: count(name)) for name in calls}, seconds=0.0, least=3)
    assert {name: spread.count for name, spread in found.items()} == {"a": 3, "b": 3}
    assert calls["a"] > 100  # many calls a reading
