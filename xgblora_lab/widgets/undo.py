"""`Undo`: what drop, rewind and reset took away can be had again."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from xgblora_lab.bench.checkpoint import HISTORY
from xgblora_lab.files import save_tensors

if TYPE_CHECKING:
    from xgblora_lab.bench.bench import Bench

KEPT = 10  # times that can be undone one after the other


class Undo:
    """Keeps runs as they were, in temporary folders, and takes a bench back to the last of them.

    Parameters
    ----------
    bench : Bench
        One that can be rewound.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self._kept: list[tuple[str, TemporaryDirectory[str]]] = []

    @property
    def what(self) -> str:
        """What would be undone, e.g. "reset"; empty where there is nothing."""
        return self._kept[-1][0] if self._kept else ""

    def keep(self, what: str) -> None:
        """Keep the run as it is now, before `what` is done to it."""
        scratch = TemporaryDirectory(prefix="xgblora-")
        folder = Path(scratch.name) / "run"
        self.bench.ensemble.save(folder)
        self.bench.history.save(folder / HISTORY)
        for done in range(len(self.bench.history) + 1):
            with self.bench.at(done):
                save_tensors(folder / f"state-{done:05d}.safetensors", self.bench.state())
        self._kept.append((what, scratch))
        for _, old in self._kept[:-KEPT]:
            old.cleanup()
        del self._kept[:-KEPT]

    def take_back(self) -> str:
        """Make the run what it was before the last `keep`; returns what was undone.

        Raises
        ------
        ValueError
            Where there is nothing to undo.
        """
        if not self._kept:
            raise ValueError("There is nothing to undo: no round was dropped, rewound or reset.")
        what, scratch = self._kept.pop()
        with scratch as root:
            self.bench.rewind(0)
            self.bench.restore(Path(root) / "run")
        return what
