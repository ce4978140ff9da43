"""Which network fits a dataset and a task."""

from __future__ import annotations

from mct_fast.data import Dataset
from mct_fast.models import spec_for
from mct_fast.tasks import Task


def named_spec(model: str | dict, dataset: Dataset, task: Task) -> dict:
    """A full spec of ``model`` (a name, or a spec) for the data of ``dataset``, with the outputs that ``task`` has for it."""
    inputs = {**dataset.model_inputs, "num_classes": task.num_outputs(dataset.num_classes)}
    return spec_for(model, inputs, dataset.kind)
