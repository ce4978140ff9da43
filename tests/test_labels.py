"""Labels and classes: matched by name, soft ones distributions, and none that means two things."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mct_fast.compress import compress, recognise_convnet
from mct_fast.data import Dataset, Identity, TableSpec, load_dataset, register_dataset, table_dataset
from mct_fast.distilled import DistilledDataset
from mct_fast.evaluate import EvalConfig, evaluate
from mct_fast.interchange.buffers import write_experts
from mct_fast.matching import match
from mct_fast.models import ConvNet
from mct_fast.run.errors import InputError
from mct_fast.tasks import Classification

NAMES = ("red", "green", "blue")
CONFIG = EvalConfig(num_eval=1, epoch_eval_train=30, lr_net=0.1, dsa=False)
MODEL = {"name": "MLP", "depth": 1, "width": 8, "channels": 3, "image_size": 4, "num_classes": 3, "norm": "none"}


def colours(order: tuple[str, ...], name: str = "colours") -> Dataset:
    """Images of one colour, with noise, and the classes in ``order``."""
    labels = torch.arange(len(NAMES) * 12) % len(NAMES)
    images = torch.rand(len(labels), 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.3
    images[torch.arange(len(labels)), labels] += 0.6
    numbers = torch.tensor([order.index(known) for known in NAMES])[labels]
    register_dataset(name, (images, numbers), (images, numbers), class_names=order)
    return load_dataset(name, val_fraction=0)


def distilled_from(dataset: Dataset, soft: bool = False) -> DistilledDataset:
    rows = torch.tensor([int((dataset.train.labels == label).nonzero()[0]) for label in range(3)])
    labels = dataset.train.labels[rows]
    labels = torch.eye(3)[labels] if soft else labels
    return DistilledDataset(dataset.train.images[rows], labels, 0.1, dataset.transform, dataset.class_names)


# --- classes in another order --------------------------------------------------


@given(ours=st.permutations(NAMES), theirs=st.permutations(NAMES), soft=st.booleans())
def test_any_order_of_classes_evaluates_alike(ours: Any, theirs: Any, soft: bool, tally: Callable[[str, str], None]):
    distilled = distilled_from(colours(tuple(ours)), soft)
    result = evaluate(distilled, colours(tuple(theirs)), CONFIG, model=MODEL)
    assert result.mean == 1.0
    tally("class orders", "right")


def test_other_classes_are_refused_and_counted_ones_agree_with_any():
    distilled, dataset = distilled_from(colours(NAMES)), colours(NAMES)
    with pytest.raises(InputError, match="dataset: colours has no class 'green', which the distilled set has"):
        evaluate(distilled, replace(dataset, class_names=("red", "lime", "blue")), CONFIG, model=MODEL)
    counted = replace(dataset, class_names=("0", "1", "2"))
    assert evaluate(distilled, counted, CONFIG, model=MODEL).mean == 1.0
    assert evaluate(replace(distilled, class_names=("0", "1", "2")), dataset, CONFIG, model=MODEL).mean == 1.0


def test_the_order_of_yes_and_no_is_not_mapped():
    frame = pd.DataFrame({"x": [float(i % 7) for i in range(60)], "y": ["no", "yes"] * 30})
    one, other = (table_dataset(frame, TableSpec(target=("y",), positive=value)) for value in ("yes", "no"))
    noted = {"task": {"name": "binary", "pos_weight": 1.0}}
    distilled = DistilledDataset(one.train.images[:2], one.train.labels[:2], 0.1, one.transform, one.class_names, noted)
    with pytest.raises(InputError, match=r"another order \(yes, no\) than the distilled set \(no, yes\)"):
        evaluate(distilled, other, CONFIG, model="MLP")


# --- duplicate names -------------------------------------------------------------


@given(names=st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=3, max_size=3))
def test_duplicate_class_names_are_refused_everywhere(names: list[str], tally: Callable[[str, str], None]):
    images, labels = torch.rand(6, 1, 4, 4), torch.arange(6) % 3

    def register() -> None:
        register_dataset("named", (images, labels), (images, labels), class_names=names)

    def distil() -> None:
        DistilledDataset(images, labels, 0.1, Identity(), tuple(names))

    for make in (register, distil):
        if len(set(names)) == 3:
            make()
            tally("class names", "right")
        else:
            with pytest.raises(InputError, match="class_names: '.' names two classes"):
                make()
            tally("class names", "refused")


# --- soft labels -----------------------------------------------------------------------


def all_doors(labels: Tensor) -> dict[str, Callable[[], object]]:
    """Every way in for soft labels (4, 3)."""
    images = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    dataset = colours(NAMES)
    good = DistilledDataset(images, torch.full((4, 3), 1 / 3), 0.1, dataset.transform, NAMES)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    start = torch.zeros(147)

    def stored() -> None:
        object.__setattr__(good, "labels", labels)
        evaluate(good, dataset, replace(CONFIG, epoch_eval_train=1), model=MODEL)

    batches = torch.tensor([[0, 1, 2, 3]])
    return {
        "DistilledDataset": lambda: replace(good, labels=labels),
        "match": lambda: match(net, images, labels, 0.1, start, start + 1, batches),
        "evaluate": stored,
    }


@given(
    rows=st.lists(st.lists(st.floats(-8, 8, width=32), min_size=3, max_size=3), min_size=4, max_size=4),
    kind=st.sampled_from(["as they are", "softmax", "half", "one row"]),
)
def test_soft_labels_are_distributions_or_refused(rows: Any, kind: str, tally: Callable[[str, str], None]):
    logits = torch.tensor(rows)
    labels = logits if kind == "as they are" else logits.softmax(-1)
    labels = labels.half().float() if kind == "half" else labels
    if kind == "one row":
        labels[2] = logits[2]
    right = bool((labels >= -5e-3).all()) and bool(((labels.sum(-1) - 1).abs() <= 5e-3).all())
    for door, enter in all_doors(labels).items():
        if right:
            enter()
            tally("soft labels", "right")
        else:
            with pytest.raises(InputError, match=r"labels: soft labels are no distributions.*softmax\(-1\)"):
                enter()
            tally("soft labels", "refused")
        assert door


def test_distributions_of_many_classes_in_half_precision_pass():
    labels = torch.randn(50, 1000, generator=torch.Generator().manual_seed(0)).softmax(-1).half().float()
    Classification().check(labels, 1000)


# --- label columns of tables ---------------------------------------------------------------


@given(
    rows=st.integers(20, 90),
    kinds=st.integers(3, 90),
    step=st.sampled_from([1.0, 0.37]),
    seed=st.integers(0, 99),
)
def test_a_column_of_numbers_is_classes_or_called_continuous(
    rows: int, kinds: int, step: float, seed: int, tally: Callable[[str, str], None]
):
    drawn = torch.randint(kinds, (rows,), generator=torch.Generator().manual_seed(seed))
    frame = pd.DataFrame({"x": [float(i % 5) for i in range(rows)], "y": [float(d) * step for d in drawn]})
    distinct = frame["y"].nunique()
    try:
        made = table_dataset(frame, TableSpec(target=("y",)), val_fraction=0)
    except InputError as error:
        message = str(error)
        tally("label columns", "refused")
    else:
        assert made.num_classes == distinct
        tally("label columns", "right")
        return
    scarce = rows < 5 * distinct
    assert "split is empty" not in message
    assert ("looks continuous" in message) == (scarce and distinct > 2 and (step != 1 or rows < 2 * distinct))


def test_continuous_targets_are_called_so():
    frame = pd.DataFrame({"x": range(40), "y": [i / 7 for i in range(40)]})
    with pytest.raises(InputError, match=r"target 'y' looks continuous: 40 different numbers in 40 rows"):
        table_dataset(frame, TableSpec(target=("y",)))
    grades = pd.DataFrame({"x": range(60), "y": [1.5, 2.0, 2.5] * 20})
    assert table_dataset(grades, TableSpec(target=("y",))).num_classes == 3


# --- norms that shapes do not tell ------------------------------------------------------------


@pytest.mark.parametrize("norm", ["instance", "group", "layer", "none"])
def test_norm_decides_what_shapes_do_not_tell(norm: str, tmp_path, caplog: pytest.LogCaptureFixture):
    network = ConvNet(depth=2, width=4, channels=1, image_size=8, norm=norm)
    shapes = [p.shape for p in network.parameters()]
    assert recognise_convnet(shapes, norm=norm)["norm"] == norm
    torch.manual_seed(0)
    write_experts(tmp_path / "replay_buffer_0.pt", [[[torch.randn(s) for s in shapes] for _ in range(2)]])
    with caplog.at_level("WARNING", logger="mct_fast"):
        store = compress(tmp_path, tmp_path / "given", dataset="digits", norm=norm)
        assert store.manifest["model"]["norm"] == norm and not caplog.records
        if norm in ("instance", "group"):
            assert compress(tmp_path, tmp_path / "left-out", dataset="digits").manifest["model"]["norm"] == "instance"
            assert "--norm" in caplog.text


def test_batch_norm_and_two_answers_are_refused(tmp_path):
    with pytest.raises(InputError, match="norm: networks with batch norm"):
        compress(tmp_path, tmp_path / "s", dataset="digits", norm="batch")
    with pytest.raises(InputError, match="norm: unknown 'lots'"):
        compress(tmp_path, tmp_path / "s", dataset="digits", norm="lots")
    with pytest.raises(InputError, match="norm: the model says"):
        compress(tmp_path, tmp_path / "s", dataset="digits", norm="group", model={"name": "ConvNet"})
