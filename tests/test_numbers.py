"""Numbers: settings hold what they may, what overflows is no success, and what diverged is not kept."""

import contextlib
import dataclasses
import io
import itertools
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import mct_fast.distill.matches
from mct_fast import ops
from mct_fast.cli import main
from mct_fast.cli.output import run_rows
from mct_fast.data import TableSpec, TimeGrid, load_dataset
from mct_fast.distill import DistillConfig, distill
from mct_fast.distilled import DistilledDataset
from mct_fast.evaluate import EvalConfig, evaluate, evaluate_random_real
from mct_fast.experts import ExpertConfig, train_experts
from mct_fast.experts.bezier import BezierConfig
from mct_fast.matching import Matcher, match
from mct_fast.models import FunctionalModel
from mct_fast.run.errors import InputError
from mct_fast.run.folder import chosen_images
from mct_fast.run.settings import Bounds, Checked, _hints
from mct_fast.settings import SegmentSampler
from mct_fast.settings.distill import GoalConfig
from mct_fast.trajectory import TrajectoryStore
from tests.conftest import TINY_DISTILL, TINY_EXPERTS

# --- settings ------------------------------------------------------------------


def groups(kind: type) -> list[type]:
    return [type(field.default) for field in dataclasses.fields(kind)]


CONFIGS: list[type] = [
    *dict.fromkeys([*groups(ExpertConfig), *groups(DistillConfig), *groups(EvalConfig)]), BezierConfig, TableSpec, TimeGrid
]  # fmt: skip
FIELDS = [(kind, field.name) for kind in CONFIGS for field in dataclasses.fields(kind)]
HOSTILE = [
    math.nan, math.inf, -math.inf, -1, -0.5, 0, 1, 1.0, 1.5, 5, 1e300, 10**30, 2**63, -(2**63) - 1, True, None, "5", "nan", "",
    b"1", [1], (1, 2), (0, -1), ("a",), {}, np.float32(0.5), np.int64(3), np.float64("nan"), torch.tensor(1.0), object(), 1j,
]  # fmt: skip


def arms(hint: Any) -> list[Any]:
    return [arm for part in get_args(hint) for arm in arms(part)] if get_origin(hint) in (Union, UnionType) else [hint]


def allowed(hint: Any, value: Any) -> bool:
    """What the field's annotation says of ``value``, worked out apart from the code under test."""
    for arm in arms(hint):
        base, bounds = (get_args(arm)[0], get_args(arm)[1:]) if get_origin(arm) is Annotated else (arm, ())
        if base is type(None) and value is None:
            return True
        if get_origin(base) is Literal:
            return isinstance(value, str) and value in get_args(base)
        if get_origin(base) is tuple:
            if isinstance(value, (tuple, list)) and all(allowed(get_args(base)[0], item) for item in value):
                return True
            continue
        if base in (int, float):
            kinds = (int, np.integer) if base is int else (int, float, np.integer, np.floating)
            if not isinstance(value, kinds) or isinstance(value, bool) or not math.isfinite(value):
                continue
            if all((b.low < value if b.above else b.low <= value) and (value < b.high if b.below else value <= b.high)
                   for b in bounds if isinstance(b, Bounds)):  # fmt: skip
                return True
        elif isinstance(base, type) and isinstance(value, base):
            return True
    return False


@given(which=st.sampled_from(FIELDS), value=st.one_of(st.sampled_from(HOSTILE), st.floats(), st.integers()))
def test_any_value_of_any_field_fits_or_is_refused(which: Any, value: Any, tally: Callable[[str, str], None]):
    kind, name = which
    right = allowed(_hints(kind)[name], value)
    try:
        made = kind(**{name: value})
    except InputError as error:
        message = str(error)
        if right:  # a rule of several fields, as that a window of starts has its ends in order
            assert kind in (SegmentSampler, GoalConfig), message
        assert (
            message.startswith((f"{name}: ", "sampling: ", "min_start_epoch: "))
            and "; " in message
            and message.isprintable()
        )
        tally("settings in Python", "refused")
        return
    assert right, f"{kind.__name__}({name}={value!r})"
    kept = getattr(made, name)
    assert kept == (tuple(value) if isinstance(value, list) else value) and not isinstance(kept, np.generic)
    tally("settings in Python", "right")


def test_every_number_among_the_settings_is_bounded():
    for kind, name in FIELDS:
        for arm in arms(_hints(kind)[name]):
            assert arm not in (int, float), f"{kind.__name__}.{name}: say its Bounds"


def test_a_setting_says_what_to_give():
    @dataclasses.dataclass(frozen=True)
    class Settings(Checked):
        share: Annotated[float, Bounds(0, 1, above=True)] = 0.5
        sizes: tuple[int, ...] = ()
        names: str | None = None

    with pytest.raises(InputError, match=r"^share: got nan; give a finite number above 0, at most 1$"):
        replace(Settings(), share=math.nan)
    with pytest.raises(InputError, match=r"^sizes: got 3; give some of: a whole number$"):
        Settings(sizes=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=r"^names: got 3; give text, or None$"):
        Settings(names=3)  # pyright: ignore[reportArgumentType]


OPTIONS = {
    "experts": (groups(ExpertConfig), ["--out=NEW"]),
    "distill": (groups(DistillConfig), ["--trajectories={STORE}", "--out=NEW"]),
    "evaluate": (groups(EvalConfig), ["{RUN}"]),
    "bezier": ([BezierConfig], ["{STORE}"]),
}
NUMERIC = [
    (command, field.name)
    for command, (kinds, _) in OPTIONS.items()
    for kind in kinds
    for field in dataclasses.fields(kind)
    if any(word in str(_hints(kind)[field.name]) for word in ("int", "float"))
    and "tuple" not in str(_hints(kind)[field.name])
]


@pytest.fixture(scope="module")
def place(tiny_store: Path, tiny_run: Path) -> dict[str, str]:
    return {"STORE": str(tiny_store), "RUN": str(tiny_run)}


@given(
    which=st.sampled_from(NUMERIC),
    value=st.sampled_from(
        ["nan", "inf", "-inf", "1e999", "-1", "-0.5", "1e400", "x", "", "0x10", "1e-400j", "9" * 40, "None ", "½", "--"]
    ),
)
def test_any_wrong_number_on_the_command_line_is_one_line(
    which: Any, value: str, place: dict[str, str], tmp_path_factory: Any, tally: Callable[[str, str], None]
):
    command, name = which
    hint = next(_hints(kind)[name] for kind in OPTIONS[command][0] if name in _hints(kind))
    try:
        number: Any = int(value) if "float" not in str(hint) else float(value)
    except ValueError:
        number = value
    if allowed(hint, number):
        return
    new = tmp_path_factory.mktemp("new") / "new"
    words = [place.get(w.partition("=")[2] or w, str(new)) for w in OPTIONS[command][1]]
    words = [
        f"{w.partition('=')[0]}={given}" if "=" in w else given
        for w, given in zip(OPTIONS[command][1], words, strict=True)
    ]
    error = io.StringIO()
    with contextlib.redirect_stderr(error):
        assert main([command, *words, f"--{name}={value}"]) == 2
    lines = error.getvalue().splitlines()
    assert len(lines) == 1 and lines[0].startswith("mct-fast: error: ") and name in lines[0].replace("-", "_"), lines
    assert not new.exists()
    tally("numbers on the command line", "refused")


# --- overflow ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("denom", [math.inf, -math.inf, math.nan])
def test_a_denominator_that_is_not_finite_gives_no_loss(dtype: torch.dtype, denom: float):
    theta = torch.randn(2, 100, dtype=dtype, generator=torch.Generator().manual_seed(0))
    given = torch.tensor([denom, 2.0], dtype=dtype)
    offsets = torch.tensor([0, 100])
    loss, grad = ops.matching_loss(theta, theta + 1, theta + 1, torch.zeros(2, 1, dtype=dtype), offsets, given)
    assert not math.isfinite(loss[0]) and not grad[0].isfinite().any()
    torch.testing.assert_close(loss[1], torch.tensor(50.0, dtype=dtype))


@given(
    exponent=st.floats(-10, 38),
    adjoint=st.sampled_from(["exact", "unrolled", "truncated"]),
    far=st.sampled_from(["start", "target", "both"]),
)
def test_no_overflow_is_a_perfect_match(exponent: float, adjoint: str, far: str, tally: Callable[[str, str], None]):
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    g = torch.Generator().manual_seed(0)
    start, target = torch.randn(10, generator=g), torch.randn(10, generator=g)
    start = start * 10.0**exponent if far != "target" else start
    target = target * 10.0**exponent if far != "start" else target
    images, labels = torch.rand(4, 1, 2, 2, generator=g), torch.tensor([0, 0, 1, 1])
    found = match(net, images, labels, 0.1, start, target, torch.tensor([[0, 1, 2, 3]]), adjoint=adjoint)
    loss = float(found.loss.mean())
    exact = (start.double() - target.double()).square().sum()
    if float(exact) < 3e38:
        assert loss > 0.5 or exponent < 0
        tally("matches that may overflow", "right")
    else:
        assert not math.isfinite(loss)
        tally("matches that may overflow", "not finite")


def spoiled(monkeypatch: pytest.MonkeyPatch, bad: Callable[[int], bool]) -> None:
    """From the matches whose number ``bad`` names, the loss is infinite."""
    numbers = itertools.count()

    class Spoiler(Matcher):
        def _solve(self, problem: Any) -> Any:
            spoil = bad(next(numbers))
            return [replace(one, loss=one.loss * math.inf) if spoil else one for one in super()._solve(problem)]

    monkeypatch.setattr(mct_fast.distill.matches, "Matcher", Spoiler)


LONG = replace(TINY_DISTILL, iterations=30, eval_it=15, num_eval=1, epoch_eval_train=1, random_real=False)


def test_a_run_that_skips_much_warns_while_it_runs_and_at_its_end(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    spoiled(monkeypatch, lambda number: number % 3 == 0)
    distill(LONG, tiny_store, out=tmp_path / "run")
    assert [r.message.partition(" were")[0] for r in caplog.records] == [
        "4 of 10 iterations", "10 of 30 iterations",
    ]  # fmt: skip
    assert ("skipped", "10 iterations (33 %), which changed nothing") in run_rows(tmp_path / "run")
    caplog.clear()
    distill(replace(LONG, max_skipped=0.5), tiny_store)
    assert not caplog.records


def test_a_run_that_skips_a_whole_interval_stops_and_says_why(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        spoiled(patch, lambda number: number >= 5)
        with pytest.raises(
            InputError, match=r"all of the last 15 iterations were skipped \(the loss overflowed in 15\)"
        ):
            distill(LONG, tiny_store, out=tmp_path / "run")
    with pytest.raises(InputError, match=r"the loss was above max_loss=1e-09 in 5"):
        distill(replace(TINY_DISTILL, max_loss=1e-9), tiny_store)
    with monkeypatch.context() as patch:  # a run that was interrupted goes on counting
        spoiled(patch, lambda number: True)
        config = replace(LONG, checkpoint_every=1)
        distill(config, tiny_store, out=tmp_path / "killed", until=9)
        with pytest.raises(InputError, match="all of the last 15"):
            distill(config, tiny_store, out=tmp_path / "killed", resume=True)


def test_images_of_iteration_0_are_called_what_they_are():
    def text(iteration: int, **config: str) -> str:
        return chosen_images({"iteration": iteration, "select_on": "val"}, config)

    assert text(0, pix_init="real") == "the real images it began with"
    assert text(0, pix_init="noise") == "the noise it began with"
    assert text(7, pix_init="real") == "images of iteration 7"


# --- experts that diverged -----------------------------------------------------------


@pytest.mark.parametrize("lr", [1e3, 1e6, 1e20])
def test_experts_that_diverged_are_refused_by_name(lr: float, tmp_path: Path):
    with pytest.raises(InputError, match=r"lr_teacher: expert 0 diverged \(training loss"):
        train_experts(replace(TINY_EXPERTS, lr_teacher=lr), tmp_path / "store")
    assert len(TrajectoryStore.open(tmp_path / "store")) == 0


def test_experts_that_learn_nothing_are_kept(tmp_path: Path):
    assert len(train_experts(replace(TINY_EXPERTS, lr_teacher=1e-6), tmp_path / "store")) == 2


# --- networks that diverged in an evaluation, and what they are trained with ---------


@pytest.mark.parametrize("model", [None, "ResNet18"], ids=["operators", "autograd"])
def test_networks_that_diverged_are_told_of(model: str | None, tiny_run: Path, caplog: pytest.LogCaptureFixture):
    digits, distilled = load_dataset("digits"), DistilledDataset.load(tiny_run / "distilled")
    config = EvalConfig(num_eval=2, epoch_eval_train=2)
    assert evaluate(distilled, digits, replace(config, num_eval=1), model=model).diverged == 0 and not caplog.records
    result = evaluate(distilled, digits, replace(config, lr_net=1e6), model=model)
    assert result.diverged == 2 == result.json()["diverged"]
    (said,) = (record.getMessage() for record in caplog.records)
    assert re.fullmatch(
        r"2 of 2 networks \((ConvNet|ResNet18)\) diverged on the distilled set, .*; lower lr_net=1e\+06", said
    )
    caplog.clear()
    evaluate_random_real(1, digits, config, lrs=(0.01, 1e6))  # the step size that diverged is not chosen
    assert not caplog.records
    assert evaluate_random_real(1, digits, config, lrs=(1e6,)).diverged == 2
    assert "diverged on the random real images" in caplog.text


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1, 0.0, None, "0.1", True, 10**400, 1j], ids=repr)
def test_a_distilled_set_has_a_step_size(value: Any, tiny_run: Path):
    distilled = DistilledDataset.load(tiny_run / "distilled")
    with pytest.raises(InputError, match=r"^syn_lr: .* is not a positive finite number; "):
        replace(distilled, syn_lr=value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.complex64])
def test_a_distilled_set_is_float32(dtype: torch.dtype, tiny_run: Path):
    distilled = DistilledDataset.load(tiny_run / "distilled")
    with pytest.raises(InputError, match="^images: got torch"):
        replace(distilled, images=distilled.images.to(dtype))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({}, "names no network"),
        (3, "names no network"),
        ({"name": ["ConvNet"]}, "names no network"),
        ({"name": "ConvNet", "num_classes": 3}, "model: its num_classes is 3, that of the data 10; leave it out"),
        ({"name": "ConvNet", "channels": 3}, "model: its channels is 3, that of the data 1"),
        ({"name": "ConvNet", "depth": "x"}, "depth must be a positive whole number"),
        ({"name": "ConvNet", "depth": [[1]]}, "depth must be a positive whole number"),
        ({"name": "ConvNet", "width": math.inf}, "width must be a positive whole number"),
        ({"name": "ConvNet", "width": 10**400}, "width: .* would take over 10.30 bytes"),
        ({"name": "MLP", "width": 10**3000}, "width: .* would take over 10.30 bytes"),
    ],
    ids=str,
)
def test_a_network_is_a_name_or_a_spec_that_fits(model: Any, said: str, tiny_run: Path):
    with pytest.raises(InputError, match=said):
        evaluate(DistilledDataset.load(tiny_run / "distilled"), load_dataset("digits"), model=model)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("val_fraction", "0.1"), ("val_fraction", None), ("val_fraction", True), ("val_fraction", 1j),
        ("split_seed", 1.5), ("split_seed", "1"), ("split_seed", None), ("split_seed", 2**63), ("split_seed", True),
        ("dataset", 3), ("dataset", None), ("dataset", b"digits"), ("data_path", 3), ("data_path", "a\0b"),
    ],
    ids=str,
)  # fmt: skip
def test_arguments_of_load_dataset_are_held_to_their_types(argument: str, value: Any):
    given = {"dataset": "digits", argument: value}
    with pytest.raises(InputError, match=rf"^{argument}[:=]"):
        load_dataset(given.pop("dataset"), **given)


# --- without a validation split ---------------------------------------------------------


@pytest.mark.parametrize("zca", [False, True])
def test_every_stage_works_without_a_validation_split(zca: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    store = train_experts(replace(TINY_EXPERTS, zca=zca, val_fraction=0.0), tmp_path / "store")
    assert {info["split"] for info in (store.info(i) for i in range(len(store)))} == {"test"}
    distilled = distill(TINY_DISTILL, store, out=tmp_path / "run")
    assert "selected on the test split" in caplog.text
    final = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()][-1]
    assert final["select_on"] == "test"
    assert any(row[0] == "test" and row[1].endswith(", selected on test)") for row in run_rows(tmp_path / "run"))
    assert distill(TINY_DISTILL, store, out=tmp_path / "run", resume=True).syn_lr == distilled.syn_lr
    dataset = load_dataset("digits", zca=zca, val_fraction=0)
    config = EvalConfig(num_eval=1, epoch_eval_train=1)
    assert evaluate(distilled, dataset, config, model=store.manifest["model"]).split == "test"
    caplog.clear()
    evaluate_random_real(1, dataset, config, model=store.manifest["model"], lrs=(0.01, 0.1))
    assert "baseline's step size is selected on the test split" in caplog.text
    for command in (
        ["evaluate", str(tmp_path / "run"), "--num_eval=1", "--epoch_eval_train=1"],
        ["inspect", str(store.path)],
    ):
        assert main(command) == 0


# --- networks that draw random numbers -----------------------------------------------------


class Drawing(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.linear = kind, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        if self.kind == "dropout":
            x = F.dropout(x, 0.5, self.training)
        elif self.kind == "rrelu":
            x = F.rrelu(x - 0.5, training=self.training)
        elif self.kind == "noise":
            x = x + torch.randn_like(x)
        elif self.kind == "gumbel":
            x = F.gumbel_softmax(x)
        return self.linear(x)


def matched(net: nn.Module) -> float:
    model = FunctionalModel(net)
    images, labels = torch.rand(4, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 1, 1])
    start = model.init(0)
    return float(match(net, images, labels, 0.1, start, start + 1, torch.tensor([[0, 1, 2, 3]])).loss.mean())


@pytest.mark.parametrize("kind", ["dropout", "rrelu", "noise", "gumbel"])
def test_a_forward_pass_that_draws_is_refused(kind: str):
    with pytest.raises(InputError, match="model: its forward pass draws random numbers"):
        matched(Drawing(kind))
    assert math.isfinite(matched(Drawing("none"))) and matched(Drawing("none")) == matched(Drawing("none"))


@pytest.mark.parametrize(
    ("layer", "found"),
    [
        (nn.RReLU(), "a random activation"),
        (nn.FractionalMaxPool2d(2, output_size=1), "random pooling"),
        (nn.AlphaDropout(), "dropout"),
    ],
    ids=["rrelu", "pool", "dropout"],
)
def test_random_layers_are_refused_in_a_match_and_evaluated(layer: nn.Module, found: str):
    tail = nn.LazyLinear(10)
    net = nn.Sequential(layer, nn.Flatten(), tail)
    net.eval()(torch.rand(1, 1, 8, 8))
    with pytest.raises(InputError, match=rf"{found}.* in 0 makes a step random"):
        matched(net)
    matched(nn.Sequential(nn.RReLU(0.2, 0.2), nn.Flatten(), nn.Linear(4, 2)))
    digits = load_dataset("digits")
    config = EvalConfig(num_eval=1, epoch_eval_train=2)
    first, again = (evaluate_random_real(1, digits, config, model=net) for _ in range(2))
    assert first.scores == again.scores
