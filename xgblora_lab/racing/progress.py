"""What a race tells while it runs, and the bar that shows it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from xgblora_lab.bench.records import History
from xgblora_lab.racing.tuning import Trial


class Planned(Protocol):
    """What is known of a run before it begins; `str` gives its name."""

    @property
    def trial(self) -> Trial:
        """The method with its knobs."""

    @property
    def seed(self) -> int:
        """Of data order, head and boosters."""

    @property
    def share(self) -> float:
        """How much of the plan is run."""

    @property
    def stop(self) -> int:
        """Steps after which it ends."""


class Progress(Protocol):
    """Hears of a race's runs. It may show them, and decides nothing."""

    def expects(self, plans: float) -> None:
        """About so many runs of the whole plan lie ahead; a run of half the plan is half a one."""

    def planned(self, runs: Sequence[Planned]) -> None:
        """These runs come next, and begin in this order."""

    def ended(self, run: Planned, result: History | Exception, kept: bool = False) -> None:
        """A run has ended with its history, or with what it died of; `kept`: it lay in the race's folder."""


class Bar:
    """A bar over the runs, and a line for every one that ends.

    Parameters
    ----------
    shown : bool
        False: nothing is shown.
    """

    def __init__(self, shown: bool) -> None:
        from tqdm import tqdm

        self._bar: Any = tqdm(total=0, unit="run", disable=not shown)

    def expects(self, plans: float) -> None:
        """Without effect: the bar goes over the runs that are planned."""

    def planned(self, runs: Sequence[Planned]) -> None:
        """Make the bar longer."""
        self._bar.total += len(runs)

    def ended(self, run: Planned, result: History | Exception, kept: bool = False) -> None:
        """Move the bar on."""
        if not (kept or self._bar.disable):
            self._bar.write(told(run, result))
        self._bar.update()

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


def told(run: Planned, result: History | Exception) -> str:
    """Say in a line how a run ended."""
    if isinstance(result, Exception):
        return f"{run}: failed ({type(result).__name__}: {result})"
    if run.share < 1:
        return f"{run}: loss {result.scores.get('early_loss', math.nan):.4g}"
    score = result.scores.get("dev")
    reached = f"dev {result.settings.metric} {score:.4g} " if score is not None else ""
    return f"{run}: {reached}({sum(r.seconds for r in result):.0f} s)"
