"""What a network is trained to do: classes, one yes or no, or several; each with its loss, metrics and layout."""

from mct_fast.tasks.heads import BinaryCrossEntropyHead, CrossEntropyHead, Head
from mct_fast.tasks.layout import rows_per_class, shuffled_by_class, spread_order
from mct_fast.tasks.links import Link, Sigmoid, Softmax
from mct_fast.tasks.metrics import confusion, format_metric, metric_digits, metric_label, metric_scale, metric_title
from mct_fast.tasks.task import Binary, Classification, MultiLabel, Task, task_from_state, task_named

__all__ = [
    "Binary",
    "BinaryCrossEntropyHead",
    "Classification",
    "CrossEntropyHead",
    "Head",
    "Link",
    "MultiLabel",
    "Sigmoid",
    "Softmax",
    "Task",
    "confusion",
    "format_metric",
    "metric_digits",
    "metric_label",
    "metric_scale",
    "metric_title",
    "rows_per_class",
    "shuffled_by_class",
    "spread_order",
    "task_from_state",
    "task_named",
]
