"""The study is the sum of its pieces: killed anywhere and begun again it ends the same, and a finished one is left alone."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.machine import ROOT
from bench.study import __main__ as command
from bench.study import plans
from bench.study import runner as runner_module
from bench.study.plans import STEP_SIZES, Checkpoints, Convex, Study, ablations, levers, mct, mtt, studies, study_named
from bench.study.report import PAGE, RESULTS, _race, block, chosen, mean_curve, place, reached, write
from bench.study.runner import Runner
from mct_fast.distill import DistillConfig, check_config
from mct_fast.distilled import DistilledDataset
from mct_fast.experts import ExpertConfig, load_for
from mct_fast.presets import Preset, preset
from mct_fast.run.errors import InputError
from mct_fast.run.files import read_json, write_json
from mct_fast.run.folder import Run
from mct_fast.run.progress import quiet
from mct_fast.trajectory import ConvexTrajectory, TrajectoryStore

TOY = Study(
    "toy",
    ExpertConfig(
        num_experts=2, train_epochs=4, depth=1, width=4, batch_train=500, parallel=1, keep_checkpoints=True,
        encoding="float32",
    ),
    DistillConfig(
        syn_steps=2, lr_img=20.0, lr_teacher=0.05, iterations=5, eval_it=2, eval_test=True, random_real=False, num_eval=2,
        lr_net=0.04, epoch_eval_train=2, checkpoint_every=1, max_loss=1e6,
    ),
    (mct(1.5, 2), mtt(1, 2)),
    (0, 1),
    piece=2,
    published={"someone": 12.5},
)  # fmt: skip


def run(out: Path, study: Study = TOY) -> dict[str, Any]:
    return Runner(study, out, None, quiet(), lambda _: None).run()


def timeless(value: Any) -> Any:
    """Without what the clock decides."""
    if isinstance(value, dict):
        clock = ("seconds", "seconds_an_iteration", "seconds_an_expert", "distill_seconds", "made")
        return {key: timeless(entry) for key, entry in value.items() if key not in clock}
    return [timeless(entry) for entry in value] if isinstance(value, list) else value


def digests(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study") / "toy"
    run(out)
    return out


def test_what_a_study_finds(finished: Path) -> None:
    results = read_json(finished / "results.json")
    assert results["complete"] and results["published"] == {"someone": 12.5}
    assert [(r["arm"], r["seed"]) for r in results["runs"]] == [("mct", 0), ("mct", 1), ("mtt", 0), ("mtt", 1)]
    for found in results["runs"]:
        assert [point["iteration"] for point in found["curve"]] == [0, 2, 4, 5]
        assert all(len(point["val"]) == len(point["test"]) == 2 for point in found["curve"])
        assert found["iterations"] == 5 and found["final"]["num_eval"] == 2
        lines = Run.open(finished / "runs" / f"{found['arm']}-{found['seed']}").metrics()
        learned = {line["iteration"]: line["syn_lr"] for line in lines if line["kind"] == "iter"} | {0: 0.05}
        assert [point["syn_lr"] for point in found["curve"]] == [learned[i] for i in (0, 2, 4, 5)]
        assert {point["lr_net"] for point in found["curve"]} == {0.04}
        times = [point["seconds"] for point in found["curve"]]
        assert times[0] == 0 and times == sorted(times) and times[-1] == pytest.approx(
            sum(r["seconds"] for r in Run.open(finished / "runs" / f"{found['arm']}-{found['seed']}").metrics()
                if r["kind"] == "iter")
        )  # fmt: skip
    # The same seed begins from the same images, so both methods share the first point; another seed does not.
    first = {(r["arm"], r["seed"]): r["curve"][0]["test"] for r in results["runs"]}
    assert first["mct", 0] == first["mtt", 0] != first["mct", 1]
    assert results["storage"]["bytes_an_expert"]["checkpoints"] == 5 * 4 * results["storage"]["parameters"]
    sizes = results["storage"]["bytes_an_expert"]
    assert sizes["convex_float32"] == 8 * (results["storage"]["parameters"] + 5 * len(TrajectoryStore.open(
        finished / "experts").shapes))  # fmt: skip
    assert sizes["convex_seed_int4"] < sizes["convex_seed_int8"] < sizes["convex_seed_fp16"] < sizes["convex_float32"]
    assert len(results["random"]["scores"]) == 2 and results["random"]["split"] == "test"
    sizes = results["step_sizes"]
    assert sizes["factors"] == list(STEP_SIZES) and list(sizes["arms"]) == ["mct", "mtt"]
    for arm, row in sizes["arms"].items():
        learned = DistilledDataset.load(finished / "runs" / f"{arm}-0" / "distilled").syn_lr
        assert [one["lr"] for one in row] == [factor * learned for factor in STEP_SIZES]
        assert all(len(one["scores"]) == 2 and one["split"] == "test" for one in row)
    assert results["made"][0]["seconds"] > 0


def test_paths_are_scored_where_they_meet(finished: Path) -> None:
    """Both paths begin and end in the same networks, whose accuracies the experts' own records know (on validation)."""
    paths = read_json(finished / "results.json")["paths"]
    sgd, convex = paths["sgd"], paths["convex"]
    assert sgd["epochs"] == [0, 1, 2, 3, 4] and convex["epochs"][0] == 0 and convex["epochs"][-1] == 4
    for end in (0, -1):
        assert sgd["mean"][end] == convex["mean"][end] and sgd["std"][end] == convex["std"][end]
    store = TrajectoryStore.open(finished / "experts")
    from mct_fast.models import build_model

    network = build_model(store.manifest["model"])
    test = load_for(TOY.experts).test
    for i, epoch in enumerate((1, 4)):
        hits = []
        for expert in range(2):
            torch.nn.utils.vector_to_parameters(store.trajectory(expert, "discrete").at(epoch), network.parameters())
            hits.append(float((network(test.images).argmax(1) == test.labels).double().mean()))
        assert sgd["mean"][(1, 4)[i]] == pytest.approx(sum(hits) / 2)


def test_a_finished_study_is_left_as_it_is(finished: Path) -> None:
    before = digests(finished)
    run(finished)
    assert digests(finished) == before


def test_a_piece_that_is_being_written_is_no_piece(finished: Path, tmp_path: Path) -> None:
    """What a kill, or another process, may leave beside the pieces."""
    shutil.copytree(finished, tmp_path / "toy")
    (tmp_path / "toy" / "pieces" / ".random-0123456789abcdef.json").write_text("")
    assert run(tmp_path / "toy") == read_json(finished / "results.json")


class _Killed(BaseException):
    """As hard as a kill can be within one process: nothing catches it."""


@pytest.mark.parametrize("lives", [1, 8])
def test_a_killed_study_ends_as_an_unkilled_one(
    lives: int, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after every ``lives`` files that it writes, again and again."""
    import mct_fast.run.files as files

    real, left = files.os.replace, [lives]

    def replace_or_die(*args: Any) -> None:
        if left[0] == 0:
            raise _Killed
        left[0] -= 1
        real(*args)

    deaths = 0
    monkeypatch.setattr(files.os, "replace", replace_or_die)
    while True:
        left[0] = lives + deaths  # else a piece of more files than lives would never end
        try:
            results = run(tmp_path / "toy")
            break
        except _Killed:
            deaths += 1
    assert deaths > 1
    assert timeless(results) == timeless(read_json(finished / "results.json"))
    for folder in sorted((finished / "runs").iterdir()):
        other = Run.open(tmp_path / "toy" / "runs" / folder.name)
        mine, theirs = Run.open(folder).load_checkpoint(), other.load_checkpoint()
        assert mine is not None and theirs is not None
        assert all(torch.equal(mine[0][name], theirs[0][name]) for name in {*mine[0], *theirs[0]})


def test_arms_take_turns_and_the_second_seed_comes_last(finished: Path) -> None:
    names = [piece.name for piece in Runner(TOY, finished, None, quiet(), lambda _: None).pieces()]
    turns = [f"{arm}-{{}}-{stop:05d}" for stop in (2, 4, 5) for arm in ("mct", "mtt")]
    assert names == [
        "experts", "storage", *(t.format(0) for t in turns), "random", "paths", "step-sizes", *(t.format(1) for t in turns),
    ]  # fmt: skip


def test_seeds_may_be_done_apart(finished: Path, tmp_path: Path) -> None:
    def part(*seeds: int) -> dict[str, Any]:
        return Runner(TOY, tmp_path / "toy", None, quiet(), lambda _: None, seeds).run()

    second = part(1)
    assert not second["complete"] and {r["seed"] for r in second["runs"]} == {1}
    both = part(0)
    assert both["complete"] and timeless(both) == timeless(read_json(finished / "results.json"))
    with pytest.raises(InputError, match="^seeds: toy has no seed 2; choose of 0, 1"):
        part(0, 2)


def test_another_plan_in_the_same_folder_is_refused(finished: Path) -> None:
    before = digests(finished)
    with pytest.raises(InputError, match="^out: .*other seeds"):
        run(finished, replace(TOY, seeds=(0, 2)))
    assert digests(finished) == before


def test_convex_arms_are_fitted_to_the_kept_checkpoints(finished: Path) -> None:
    store = TrajectoryStore.open(finished / "experts")
    for fitted, stored in zip(Convex().paths(store), store, strict=True):
        assert isinstance(fitted, ConvexTrajectory) and isinstance(stored, ConvexTrajectory)
        assert torch.equal(fitted.waypoints, stored.waypoints) and torch.equal(fitted.progress, stored.progress)
    four = Convex(waypoints=4).paths(store)[0]
    assert isinstance(four, ConvexTrajectory) and len(four.waypoints) == 4
    assert torch.equal(Checkpoints().paths(store)[1].at(2), store.trajectory(1, "discrete").at(2))


def test_ablations_change_one_thing_each(finished: Path) -> None:
    base = mct(2, 2)
    common = TOY.distill
    store, digits = TrajectoryStore.open(finished / "experts"), load_for(TOY.experts)
    for arm in ablations(base):
        config, plain = arm.config(common, 0, None), base.config(common, 0, None)
        changed = {name for name, value in plain.flat().items() if config.flat()[name] != value}
        path_changed = arm.path != base.path
        expected = {"mct-integer": {"sampling", "max_start_epoch"}, "mct-truncated": {"adjoint"}}
        assert changed == expected.get(arm.name, set()) and path_changed == (arm.name not in expected)
        check_config(config, digits, arm.path.paths(store)[0])


def test_an_arm_may_have_experts_of_its_own(tmp_path: Path) -> None:
    flat = next(arm for arm in levers(mct(1.5, 2), 0.9) if arm.name == "flat")
    results = run(tmp_path / "toy", replace(TOY, arms=(mct(1.5, 2), flat), seeds=(0,)))
    plain, own = (TrajectoryStore.open(tmp_path / "toy" / name) for name in ("experts", "experts-flat"))
    assert own.manifest["recipe"]["rho"] == 0.05 and plain.manifest["recipe"]["rho"] == 0.0
    assert torch.equal(own[0].at(0), plain[0].at(0)) and not torch.equal(own[0].at(4), plain[0].at(4))
    assert results["complete"] and {r["arm"] for r in results["runs"]} == {"mct", "flat"}


def test_levers_change_something_each(finished: Path) -> None:
    base, store, digits = mct(1.5, 2), TrajectoryStore.open(finished / "experts"), load_for(TOY.experts)
    for arm in levers(base, 0.9):
        config = arm.config(TOY.distill, 0, None)
        assert (config != base.config(TOY.distill, 0, None)) != bool(arm.experts)
        check_config(config, digits, arm.path.paths(store)[0])


def test_every_study_is_well_formed() -> None:
    for name, study in studies().items():
        assert study.name == name and study.experts.keep_checkpoints and study.distill.eval_test
        assert not study.distill.random_real
        assert study.piece % study.distill.eval_it == 0 and study.distill.iterations % study.piece == 0
        assert len({arm.name for arm in study.arms}) == len(study.arms)
        for arm in study.arms:
            start, ahead = arm.changes["max_start_epoch"], arm.changes["expert_epochs"]
            assert start + ahead <= study.experts.train_epochs
    with pytest.raises(InputError, match="^study: unknown 'nope'"):
        study_named("nope")


def test_what_a_preset_takes_from_a_search_leaves_the_search_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    before = studies()["fashion-search"]

    def taken(name: str) -> Preset:
        known = preset(name)
        return replace(known, distill=replace(known.distill, lr_img=7.0, expert_epochs=3.0, lr_teacher=0.5))

    monkeypatch.setattr(plans, "preset", taken)
    assert studies()["fashion-search"] == before and studies()["fashion-ipc1"].distill.lr_img == 7.0


def test_a_study_on_another_device_is_another_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = TOY.on("cuda")
    assert study.experts.device == study.distill.device == "cuda"
    assert study.arms[0].config(study.distill, 0, None).device == "cuda"
    assert study.on("cpu") == TOY.on("cpu") != study
    assert command.main(["digits", "--out", str(tmp_path / "toy"), "--device", "abacus"]) == 2
    assert "device: PyTorch sees no 'abacus'" in capsys.readouterr().err and not (tmp_path / "toy").exists()


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command, "study_named", lambda _: replace(TOY, seeds=(0,), arms=(mtt(1, 2),)))
    assert command.main(["toy", "--out", str(tmp_path / "toy")]) == 0
    assert "mtt, seed 0" in capsys.readouterr().out
    monkeypatch.setattr(command, "study_named", lambda _: replace(TOY, seeds=(3,)))
    assert command.main(["toy", "--out", str(tmp_path / "toy")]) == 2
    assert "other" in capsys.readouterr().err
    assert runner_module.Runner is Runner


def test_the_report_is_made_of_the_json(finished: Path, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "results.md").write_text("# Results\n\nBefore.\n\n<!-- study toy -->\nold\n<!-- end -->\n\nAfter.\n")
    assert command.main(["report", str(finished), "--docs", str(docs)]) == 0
    text = (docs / "results.md").read_text()
    assert text.startswith("# Results\n\nBefore.") and text.endswith("After.\n") and "old" not in text
    results = read_json(docs / "results" / "study-toy.json")
    assert results == read_json(finished / "results.json")
    mct = [r for r in results["runs"] if r["arm"] == "mct"]
    # By hand: of each run the point with the best validation mean, then the mean of all its test accuracies.
    best = [max(r["curve"], key=lambda p: sum(p["val"])) for r in mct]
    test, val = (100 * sum(sum(p[split]) for p in best) / 4 for split in ("test", "val"))
    row = next(line for line in text.splitlines() if line.startswith("| `mct`"))
    assert row.split(" | ")[1:5] == ["2", "5", "4", f"{val:.1f}"] and row.split(" | ")[5].startswith(f"{test:.1f} ±")
    assert "Soft labels" not in text, "there are none"
    assert f"| `mct` | {100 * sum(results['step_sizes']['arms']['mct'][0]['scores']) / 2:.1f} ±" in text
    assert "*published*: someone" in text and "12.5" in text and "MTT has" in text
    for name in ("curves", "paths", "mct", "mtt"):
        assert (docs / "results" / f"study-toy-{name}.png").stat().st_size > 0
    before = digests(docs)
    assert command.main(["report", "--docs", str(docs)]) == 0
    assert digests(docs) == before, "writing the page again changes nothing"
    assert command.main(["report", str(tmp_path / "none"), "--docs", str(docs)]) == 2


def test_a_search_is_a_table_alone(finished: Path, tmp_path: Path) -> None:
    found = read_json(finished / "results.json")
    plan = {**found["plan"], "arms": {f"point-{name}": arm for name, arm in found["plan"]["arms"].items()}}
    runs = [{**run, "arm": f"point-{run['arm']}"} for run in found["runs"]]
    says = {f"point-{name}": text for name, text in found["says"].items()}
    write_json(tmp_path / "results" / "study-toy.json", {**found, "plan": plan, "runs": runs, "says": says})
    text = write(tmp_path).read_text()
    assert "| `point-mct`" in text and "![" not in text and not list((tmp_path / "results").glob("*.png"))


def test_only_seeds_of_both_methods_race() -> None:
    def run(arm: str, seed: int, *points: tuple[int, float]) -> dict[str, Any]:
        return {"arm": arm, "seed": seed, "curve": [{"iteration": i, "test": [v]} for i, v in points]}

    runs = [run("mct", 0, (0, 0.1), (5, 0.4), (9, 0.5)), run("mtt", 0, (0, 0.1), (5, 0.2), (9, 0.4))]
    plan = {"arms": {"mct": {}, "mtt": {}}}
    said = _race({"plan": plan, "runs": runs})
    assert said == "At iteration 9 MTT has 40.0 % test accuracy; MCT first has at least that at iteration 5."
    for begun in (run("mct", 1, (0, 0.1)), run("mct", 1), run("mtt", 1, (0, 0.3), (5, 0.9))):
        assert _race({"plan": plan, "runs": [*runs, begun]}) == said
    behind = [run("mct", 0, (0, 0.1), (5, 0.3)), runs[1]]
    assert "MCT, evaluated up to iteration 5, has not reached it" in (_race({"plan": plan, "runs": behind}) or "")


def test_when_a_curve_reaches_a_goal() -> None:
    def run(arm: str, *points: tuple[int, float]) -> dict[str, Any]:
        return {"arm": arm, "curve": [{"iteration": i, "test": [v, v], "val": [v]} for i, v in points]}

    results = {"runs": [run("a", (0, 0.1), (5, 0.4), (9, 0.3)), run("a", (0, 0.3), (5, 0.2))]}
    assert mean_curve(results, "a") == [(0, pytest.approx(0.2)), (5, pytest.approx(0.3))]
    assert reached(results, "a", 0.25) == 5 and reached(results, "a", 0.5) is None
    assert mean_curve(results, "b") == []
    point = chosen(results["runs"][0])
    assert point is not None and point["iteration"] == 5


def test_the_committed_page_is_what_the_committed_json_gives() -> None:
    page = ROOT / "docs" / PAGE
    text = page.read_text()
    for file in sorted((ROOT / "docs" / RESULTS).glob("study-*.json")):
        results = read_json(file)
        text = place(text, results["plan"]["name"], block(results, ROOT / "docs"))
    assert text == page.read_text(), "run: python -m bench.study report"
