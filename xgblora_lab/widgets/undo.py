"""`Undo`: what drop, rewind and reset took away can be had again."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

from xgblora_lab.lowrank.ensemble import Ensemble

if TYPE_CHECKING:
    from xgblora_lab.bench.bench import Bench

KEPT = 10  # times that can be undone one after the other


class Undo:
    """Keeps runs as they were and takes a bench back to the last of them.

    Parameters
    ----------
    bench : Bench
        One that can be rewound.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self._kept: list[tuple[str, tuple[Any, ...]]] = []

    @property
    def what(self) -> str:
        """What would be undone, e.g. "reset"; empty where there is nothing."""
        return self._kept[-1][0] if self._kept else ""

    def keep(self, what: str) -> None:
        """Keep the run as it is now, before `what` is done to it."""
        bench, history = self.bench, copy(self.bench.history)
        history.rounds = list(history.rounds)
        ensemble = Ensemble(bench.ensemble.shapes, bench.ensemble.additive)
        for index in range(len(history)):
            ensemble.append(bench.ensemble[index])
        states = [(done, bench.state(done)) for done in range(len(history) + 1)]
        self._kept = [*self._kept, (what, (history, ensemble, states))][-KEPT:]

    def take_back(self) -> str:
        """Make the run what it was before the last `keep`; returns what was undone.

        Raises
        ------
        ValueError
            Where there is nothing to undo.
        """
        if not self._kept:
            raise ValueError("There is nothing to undo: no round was dropped, rewound or reset.")
        what, run = self._kept.pop()
        self.bench.rewind(0)
        self.bench.restore(*run)
        return what
