"""The gradient's chain of oracles, in float64: finite differences, then unrolled, then exact and truncated."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from mct_fast import ops
from mct_fast.data import DSA, AugmentPlan
from mct_fast.distill import DistillConfig, adjoint_of
from mct_fast.distill.sampling import draw_batches
from mct_fast.matching import MatchResult, match
from mct_fast.matching.adjoint import ADJOINTS, Exact, Truncated
from mct_fast.models import GRU, MLP, TCN, ConvNet, FunctionalModel, build_model, model_spec
from mct_fast.run.errors import InputError
from mct_fast.students import FusedStudent, GenericStudent, student_for
from mct_fast.tasks import Binary, MultiLabel, Task


@dataclass
class Problem:
    model: nn.Module
    images: Tensor
    labels: Tensor
    start: Tensor
    target: Tensor
    batches: Tensor
    augment: AugmentPlan | None
    syn_lr: float = 0.05
    task: Task | None = None

    def match(self, adjoint: str = "exact", **changed: object) -> MatchResult:
        values = {**self.__dict__, **changed}
        model = values.pop("model")
        augment = values.pop("augment")
        return match(model, **values, augment=augment, adjoint=adjoint)


def problem(
    model: nn.Module, shape: tuple[int, int, int], *, students: int = 1, steps: int = 3, images: int = 7, batch: int = 3,
    dsa: bool = True, soft: bool = False, classes: int = 4, seed: int = 0,
) -> Problem:  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    functional = FunctionalModel(model)
    x = torch.randn(images, *shape, generator=g, dtype=torch.float64)
    y = torch.randint(classes, (images,), generator=g)
    if soft:
        y = torch.randn(images, classes, generator=g, dtype=torch.float64).softmax(1)
    start = torch.stack([functional.init(seed + s) for s in range(students)]).double()
    target = start + 0.05 * torch.randn(start.shape, generator=g, dtype=torch.float64)
    rows = torch.stack([draw_batches(images, batch, steps, g) for _ in range(students)])
    plan = None
    if dsa:
        sizes = (rows[0] >= 0).sum(1).tolist()
        plan = DSA().plan(students, steps, sizes, shape, g)
    return Problem(model, x, y, start, target, rows, plan)


def conv(depth: int, width: int, channels: int, size: int, **other: object) -> ConvNet:
    return ConvNet(depth=depth, width=width, channels=channels, image_size=size, num_classes=4, **other)


def yes_or_no(
    model: nn.Module, shape: tuple[int, ...], task: Task, *, soft: bool = True, students: int = 2, images: int = 7
) -> Problem:
    """Binary or multi-label rows or series."""
    case = problem(model, shape, students=students, steps=4, images=images, batch=3, dsa=False)
    g = torch.Generator().manual_seed(5)
    outputs = 1 if isinstance(task, Binary) else model.num_classes
    labels = torch.rand(images, outputs, generator=g, dtype=torch.float64)
    if isinstance(task, Binary):
        labels = labels[:, 0] if soft else (labels[:, 0] > 0.5).long()
    # steps long enough that the labels and the rows matter
    return replace(case, labels=labels, task=task, syn_lr=1.0)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


CASES = {
    "d1-w5-c1-s6": (conv(1, 5, 1, 6), (1, 6, 6), {}),
    "d2-w7-c3-s9-S3": (conv(2, 7, 3, 9), (3, 9, 9), {"students": 3}),
    "d3-w6-c3-s13-remainder": (conv(3, 6, 3, 13), (3, 13, 13), {"images": 8, "batch": 3, "steps": 5}),
    "d4-w3-c3-s17-S2": (conv(4, 3, 3, 17), (3, 17, 17), {"students": 2, "steps": 2}),
    "d1-w4-c1-s28-padded": (conv(1, 4, 1, 28), (1, 28, 28), {"steps": 2}),
    "d2-w5-nonorm-nopool": (conv(2, 5, 3, 7, norm="none", pooling="none"), (3, 7, 7), {}),
    "d2-w6-soft-S2": (conv(2, 6, 3, 8), (3, 8, 8), {"soft": True, "students": 2}),
    "d2-w5-no-dsa": (conv(2, 5, 3, 8), (3, 8, 8), {"dsa": False}),
    "mlp-soft": (MLP(depth=2, width=9, channels=3, image_size=5, num_classes=4), (3, 5, 5), {"soft": True}),
    "batchnorm-module": (conv(1, 4, 3, 6, norm="batch", activation="leakyrelu"), (3, 6, 6), {"batch": 4, "images": 8}),
}


_ROWS = {"channels": 11, "image_size": 1}
_SERIES = {"channels": 3, "image_size": (6, 1)}
YES_OR_NO = {
    "mlp-binary-hard": (MLP(2, 9, num_classes=1, **_ROWS), (11,), Binary(), {"soft": False}),
    "mlp-binary-soft-weighted": (MLP(2, 9, num_classes=1, **_ROWS), (11,), Binary(7.5), {}),
    "mlp-labels": (
        MLP(1, 8, num_classes=4, **_ROWS),
        (11,),
        MultiLabel((1.0, 2.0, 0.5, 9.0), (1.0, 3.0, 1.0, 0.5)),
        {},
    ),
    "mlp-layernorm-binary": (MLP(3, 10, num_classes=1, norm="layer", **_ROWS), (11,), Binary(), {}),
    "mlp-layernorm-labels": (MLP(2, 7, num_classes=3, norm="layer", **_ROWS), (11,), MultiLabel(), {}),
    "mlp-sigmoid-generic": (MLP(2, 9, num_classes=1, activation="sigmoid", **_ROWS), (11,), Binary(2.0), {}),
    "mlp-of-series": (MLP(1, 9, num_classes=2, **_SERIES), (6, 3), MultiLabel(), {}),
    "convnet-binary": (ConvNet(1, 5, 3, 6, num_classes=1), (3, 6, 6), Binary(), {}),
    "tcn-binary": (TCN(2, 5, num_classes=1, **_SERIES), (6, 3), Binary(3.0), {}),
    "tcn-labels": (TCN(2, 5, num_classes=3, **_SERIES), (6, 3), MultiLabel(), {}),
    "gru-binary": (GRU(1, 6, num_classes=1, **_SERIES), (6, 3), Binary(), {"soft": False}),
    "gru-labels": (GRU(2, 5, num_classes=3, **_SERIES), (6, 3), MultiLabel((2.0,)), {}),
}


def build(name: str) -> Problem:
    if name in YES_OR_NO:
        model, shape, task, options = YES_OR_NO[name]
        return yes_or_no(model, shape, task, **options)
    model, shape, options = CASES[name]
    return problem(model, shape, **options)


@pytest.fixture(params=[*CASES, *YES_OR_NO])
def case(request: pytest.FixtureRequest) -> Problem:
    return build(request.param)


def test_exact_equals_unrolled(case: Problem) -> None:
    exact, unrolled = case.match("exact"), case.match("unrolled")
    assert relative(exact.loss, unrolled.loss) < 1e-12
    assert relative(exact.final_params, unrolled.final_params) < 1e-12
    assert relative(exact.grad_images, unrolled.grad_images) < 1e-9
    assert relative(exact.grad_lr, unrolled.grad_lr) < 1e-9
    assert (exact.grad_labels is None) == (not case.labels.is_floating_point())
    if exact.grad_labels is not None and unrolled.grad_labels is not None:
        assert relative(exact.grad_labels, unrolled.grad_labels) < 1e-9


def smooth(name: str) -> Problem:
    """A case with a smooth activation: a difference quotient across ReLU's kink measures the kink."""
    model, shape, *rest = CASES.get(name) or YES_OR_NO[name]
    if isinstance(model, GRU):
        return build(name)
    model = build_model({**model_spec(model), "activation": "sigmoid"})
    return problem(model, shape, **rest[0]) if name in CASES else yes_or_no(model, shape, rest[0], **rest[1])


@pytest.mark.parametrize(
    "name",
    [
        *("d2-w7-c3-s9-S3", "d2-w6-soft-S2", "d3-w6-c3-s13-remainder"),
        *("mlp-binary-soft-weighted", "mlp-labels", "mlp-layernorm-labels", "tcn-binary", "tcn-labels", "gru-labels"),
    ],
)
def test_unrolled_equals_finite_differences(name: str) -> None:
    case = smooth(name)
    found = case.match("unrolled")
    eps = 1e-6

    def loss(**changed: object) -> float:
        return float(case.match("unrolled", **changed).loss.mean())

    g = torch.Generator().manual_seed(9)
    direction = torch.randn(case.images.shape, generator=g, dtype=torch.float64)
    slope = (loss(images=case.images + eps * direction) - loss(images=case.images - eps * direction)) / (2 * eps)
    assert slope == pytest.approx(float((found.grad_images * direction).sum()), rel=1e-6)
    slope = (loss(syn_lr=case.syn_lr + eps) - loss(syn_lr=case.syn_lr - eps)) / (2 * eps)
    assert slope == pytest.approx(float(found.grad_lr), rel=1e-6)
    if found.grad_labels is not None:
        direction = torch.randn(case.labels.shape, generator=g, dtype=torch.float64)
        slope = (loss(labels=case.labels + eps * direction) - loss(labels=case.labels - eps * direction)) / (2 * eps)
        assert slope == pytest.approx(float((found.grad_labels * direction).sum()), rel=1e-6)


@pytest.mark.parametrize("name", YES_OR_NO)
def test_float32_error_is_comparable_to_pytorchs(name: str) -> None:
    case = build(name)
    truth = case.match("unrolled")
    fields = ("images", "start", "target") + (("labels",) if case.labels.is_floating_point() else ())
    single = replace(case, **{field: getattr(case, field).float() for field in fields})
    exact, plain = single.match("exact"), single.match("unrolled")
    for field in ("grad_images", "grad_lr", "grad_labels"):
        if (value := getattr(truth, field)) is not None:
            # a rounding may flip a ReLU in either; 2e-6 is a few roundings of each of the four steps
            bound = max(3 * relative(getattr(plain, field).double(), value), 2e-6)
            assert relative(getattr(exact, field).double(), value) <= bound, field


@pytest.mark.parametrize("name", [name for name in YES_OR_NO if name.startswith("mlp")])
def test_fused_student_agrees_with_autograd(name: str) -> None:
    case = build(name)
    functional = FunctionalModel(case.model)
    generic, chosen = GenericStudent(functional, case.task), student_for(functional, case.task)
    if "sigmoid" not in name and ops.extension_loaded():
        assert isinstance(chosen, FusedStudent)
    rows = case.batches[:, 0]
    x, y = case.images[rows], case.labels[rows]
    tangent = case.target - case.start
    truth, found = (s.gradient_tangent(case.start, tangent, x, y) for s in (generic, chosen))
    _, _, tape = chosen.gradient_keeping(case.start, x, y)
    with_tape = chosen.gradient_tangent(case.start, tangent, x, y, tape)
    for field in ("loss_dot", "hvp", "grad_x_dot", "grad_y_dot"):
        if (value := getattr(truth, field)) is not None:
            assert getattr(found, field).shape == value.shape
            assert relative(getattr(found, field), value) < 1e-11, field
            assert relative(getattr(with_tape, field), value) < 1e-11, field
    for ours, theirs in zip(chosen.gradient(case.start, x, y), generic.gradient(case.start, x, y), strict=True):
        assert relative(ours, theirs) < 1e-12
    assert relative(chosen.logits(case.start, case.images), generic.logits(case.start, case.images)) < 1e-12


def test_labels_of_a_binary_task_may_be_a_column() -> None:
    case = build("mlp-binary-soft-weighted")
    column, row = case.match(labels=case.labels[:, None]), case.match()
    assert column.grad_labels is not None
    assert column.grad_labels.shape == (7, 1)
    assert torch.equal(column.grad_labels[:, 0], row.grad_labels)
    assert torch.equal(column.grad_images, row.grad_images)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_all_adjoints_agree_on_one_step(soft: bool) -> None:
    case = problem(conv(2, 6, 3, 8), (3, 8, 8), steps=1, students=2, soft=soft)
    unrolled = case.match("unrolled")
    for adjoint in ("exact", "truncated"):
        found = case.match(adjoint)
        assert relative(found.grad_images, unrolled.grad_images) < 1e-12
        assert relative(found.grad_lr, unrolled.grad_lr) < 1e-12
        if soft:
            assert relative(found.grad_labels, unrolled.grad_labels) < 1e-12


def test_truncated_equals_its_own_definition_and_not_the_exact_gradient() -> None:
    case = problem(conv(2, 6, 3, 8), (3, 8, 8), steps=4, dsa=False)
    functional = FunctionalModel(case.model)
    images = case.images.clone().requires_grad_()
    theta, total = case.start[0], torch.zeros(())
    costate = 2 * (case.match().final_params[0] - case.target[0]) / (case.start[0] - case.target[0]).square().sum()
    for rows in case.batches[0]:
        rows = rows[rows >= 0]
        leaf = theta.clone().requires_grad_()
        loss = nn.functional.cross_entropy(functional(leaf, images[rows]), case.labels[rows])
        (g,) = torch.autograd.grad(loss, leaf, create_graph=True)
        total = total - case.syn_lr * torch.dot(g, costate)
        theta = theta - case.syn_lr * g.detach()
    (expected,) = torch.autograd.grad(total, images)
    assert relative(case.match("truncated").grad_images, expected) < 1e-12
    assert relative(case.match("exact").grad_images, expected) > 1e-4


def test_several_students_average_single_ones() -> None:
    case = problem(conv(2, 5, 3, 8), (3, 8, 8), students=3)
    together = case.match()
    single = []
    for s in range(3):
        plan = AugmentPlan((case.augment.draws[s],))
        rows = slice(s, s + 1)
        single.append(
            case.match(start=case.start[rows], target=case.target[rows], batches=case.batches[rows], augment=plan)
        )
    assert relative(together.grad_images, torch.stack([r.grad_images for r in single]).mean(0)) < 1e-12
    assert relative(together.loss, torch.cat([r.loss for r in single])) < 1e-12


@pytest.mark.parametrize("adjoint", ["exact", "unrolled", "truncated"])
def test_the_same_call_gives_the_same_bits_in_float32(adjoint: str) -> None:
    case = problem(conv(2, 16, 3, 8), (3, 8, 8), students=2)
    single = {"images": case.images.float(), "start": case.start.float(), "target": case.target.float()}
    first, second = (case.match(adjoint, **single) for _ in range(2))
    assert first.grad_images.dtype == torch.float32
    assert torch.equal(first.grad_images, second.grad_images) and torch.equal(first.grad_lr, second.grad_lr)


def test_one_flat_vector_and_shared_batches_are_accepted() -> None:
    case = problem(conv(1, 4, 3, 6), (3, 6, 6), dsa=False)
    flat = case.match(start=case.start[0], target=case.target[0], batches=case.batches[0])
    assert torch.equal(flat.grad_images, case.match().grad_images)
    assert flat.loss.shape == (1,) and flat.final_params.shape == case.start.shape


MEMORY = """
import resource, sys, torch
from mct_fast.matching import Exact, Unrolled, match
from mct_fast.models import ConvNet, FunctionalModel
torch.set_num_threads(1)
adjoint, steps = {"exact": Exact(), "unrolled": Unrolled()}[sys.argv[1]], int(sys.argv[2])
model = ConvNet(depth=2, width=32, channels=3, image_size=32, num_classes=4)
f = FunctionalModel(model)
start = f.init(0)
g = torch.Generator().manual_seed(0)
images = torch.randn(32, 3, 32, 32, generator=g)
labels = torch.randint(4, (32,), generator=g)
rows = torch.arange(32).expand(steps, 32).contiguous()
def run(n):
    match(model, images, labels, 0.01, start, start + 0.01, rows[:n], adjoint=adjoint)
run(2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(steps)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, 4 * f.num_params * steps)
"""


@pytest.mark.parametrize("adjoint", ["exact", "truncated"])
def test_strategies_by_name_keep_activations(adjoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the outer loop does: the bare function is no slower."""
    case = build("mlp-binary-soft-weighted")
    kept = []
    for student in (GenericStudent, FusedStudent):
        real = student.gradient_keeping
        monkeypatch.setattr(student, "gradient_keeping", lambda *a, real=real: kept.append(a) or real(*a))
    case.match(adjoint=adjoint)
    assert kept
    assert ADJOINTS[adjoint] == adjoint_of(DistillConfig(adjoint=adjoint, cuda_graphs=False))


def test_memory_of_exact_does_not_grow_with_the_steps() -> None:
    """Peak resident memory of 40 steps over 2 steps: the kept parameters, where the unrolled graph adds a lot."""

    def growth(adjoint: str) -> tuple[int, int]:
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, adjoint, "40"], capture_output=True, text=True, check=True, timeout=300
        )
        grown, kept = map(int, done.stdout.split())
        return grown, kept

    slack = 8 << 20  # the allocator's own; one step's activations are about 40 MB here
    exact, kept = growth("exact")
    unrolled, _ = growth("unrolled")
    assert exact <= kept + slack
    assert unrolled > 10 * (kept + slack)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"syn_lr": 0.0}, "syn_lr"),
        ({"syn_lr": float("nan")}, "syn_lr"),
        ({"images": torch.full((7, 3, 6, 6), float("nan"), dtype=torch.float64)}, "images"),
        ({"images": torch.zeros(7, 3, 6, 6, dtype=torch.int64)}, "images"),
        ({"images": torch.zeros(7, 3, 20, 20, dtype=torch.float64)}, "images"),
        ({"labels": torch.full((7,), 4)}, "labels"),
        ({"labels": torch.full((7,), -1)}, "labels"),
        ({"labels": torch.zeros(6, dtype=torch.int64)}, "labels"),
        ({"labels": torch.zeros(7, 3, dtype=torch.float64)}, "labels"),
        ({"start": torch.zeros(1, 5, dtype=torch.float64)}, "start"),
        ({"batches": torch.full((1, 2, 3), 7)}, "batches"),
        ({"batches": torch.full((1, 2, 3), -1)}, "batches"),
        ({"batches": torch.tensor([[[0, 0, 1]]])}, "batches"),
        ({"batches": torch.tensor([[[-1, 0, 1]]])}, "batches"),
        ({"batches": torch.zeros(1, 2, 3)}, "batches"),
        ({"adjoint": "newton"}, "adjoint"),
        ({"task": Binary()}, "model"),
        ({"task": MultiLabel()}, "labels"),
    ],
    ids=[
        "lr-zero", "lr-nan", "pixels-nan", "pixels-int", "wrong-size", "label-high", "label-low", "label-count",
        "soft-columns", "short-params", "row-high", "all-padding", "row-twice", "padding-first", "float-rows", "adjoint",
        "binary-of-four", "labels-of-classes",
    ],
)  # fmt: skip
def test_bad_input_names_the_argument_in_one_line(changed: dict, named: str) -> None:
    case = problem(conv(1, 4, 3, 6), (3, 6, 6), dsa=False)
    with pytest.raises(InputError, match=f"^{named}: ") as caught:
        case.match(**changed)
    assert "\n" not in str(caught.value)


def test_target_equal_to_start_is_refused() -> None:
    case = problem(conv(1, 4, 3, 6), (3, 6, 6), dsa=False)
    with pytest.raises(InputError, match="^target: "):
        case.match(target=case.start)


@pytest.mark.parametrize("adjoint", [Exact, Truncated])
def test_bits_do_not_depend_on_what_is_kept(adjoint: type[Exact] | type[Truncated]) -> None:
    model = ConvNet(depth=2, width=6, channels=3, image_size=8, num_classes=3)
    g = torch.Generator().manual_seed(0)
    images, labels = torch.randn(6, 3, 8, 8, generator=g), torch.arange(3).repeat(2)
    start = FunctionalModel(model).init(0)[None]
    target = start + 0.1 * torch.randn(start.shape, generator=g)
    batches = torch.stack([torch.randperm(6, generator=g) for _ in range(5)])

    def run(keep: int) -> MatchResult:
        return match(model, images, labels, 0.1, start, target, batches, adjoint=adjoint(keep))

    _, _, tape = FusedStudent(model).gradient_keeping(start, images[None], labels[None])
    nothing = run(0)
    for keep in (tape.nbytes - 1, tape.nbytes, 3 * tape.nbytes + 1, 5 * tape.nbytes):
        found = run(keep)
        assert torch.equal(found.grad_images, nothing.grad_images) and torch.equal(found.grad_lr, nothing.grad_lr)
