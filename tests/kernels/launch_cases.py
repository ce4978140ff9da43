"""The calls whose kernels go through Triton's launcher: at least one for every kernel of `mct_fast.kernels`.

A case takes no arguments and makes its tensors on the meta device. Add one by an entry in `CASES`.
"""

from __future__ import annotations

from collections.abc import Callable

from mct_fast.kernels import launcher
from tests.kernels.calls import IPC_BATCHES, PRECISIONS, Call, allowing, binary_calls, reference_steps


def _replay(calls: list[Call], precision: str = "tf32") -> Callable[[], None]:
    def run() -> None:
        with allowing(precision):
            for call in calls:
                launcher(call.op)(*call.args)

    return run


CASES: dict[str, Callable[[], object]] = {
    **{
        f"step-ipc{ipc}-{precision}": _replay(calls, precision)
        for ipc, calls in zip(IPC_BATCHES, reference_steps(), strict=True)
        for precision in PRECISIONS
    },
    "binary": _replay(binary_calls(1, 100)),
}
"""By name: a call of launchers on meta tensors, as large as on a card."""
