"""When too many iterations are skipped: a warning, and then an end."""

from __future__ import annotations

import logging
from collections import Counter

from mct_fast.distill.state import State
from mct_fast.run.errors import InputError
from mct_fast.settings import DistillConfig

log = logging.getLogger("mct_fast")

_LEAST = 10  # iterations: a share of fewer says nothing, and so few in a row do not end a run


class Skips:
    """Warns when the share of skipped iterations passes ``max_skipped``, and ends the run with an error when all of an
    evaluation interval (ten iterations at least) were skipped, or all of the run.  ``heard``: whether warnings are given."""

    def __init__(self, config: DistillConfig, *, heard: bool = True) -> None:
        self._share, self._max_loss = config.optimizer.max_skipped, config.optimizer.max_loss
        interval, iterations = config.evaluation.eval_it, config.optimizer.iterations
        self._too_many = min(max(interval, _LEAST), iterations) if interval else iterations
        self._warned = not heard
        self._heard = heard
        self._reasons: Counter[str] = Counter()

    def look_at(self, state: State) -> None:
        """Looks at the last iteration.

        Raises:
            InputError: there were too many in a row.
        """
        why = state.why_skipped
        if why is None:
            self._reasons.clear()
            return
        self._reasons[why] += 1
        if state.skipped_in_a_row >= self._too_many:
            reasons = ", ".join(f"{reason} in {times}" for reason, times in self._reasons.most_common())
            raise InputError(
                f"max_loss: all of the last {state.skipped_in_a_row} iterations were skipped ({reasons}), so the images no "
                "longer change; lower lr_teacher, lr_img or syn_steps, raise max_loss, or inspect the experts"
            )
        if not self._warned and state.iteration >= _LEAST and self._too_large(state):
            self._warned = True
            self._warn(state)

    def finish(self, state: State) -> None:
        """Warns once more, at the end, if the share is too large."""
        if self._heard and state.iteration and self._too_large(state):
            self._warn(state)

    def _too_large(self, state: State) -> bool:
        return state.skipped > self._share * state.iteration

    def _warn(self, state: State) -> None:
        log.warning(
            "%d of %d iterations were skipped (%.0f %%): their loss was above max_loss=%g, or overflowed; "
            "a smaller lr_teacher, lr_img or syn_steps skips fewer",
            state.skipped, state.iteration, 100 * state.skipped / state.iteration, self._max_loss,
        )  # fmt: skip
