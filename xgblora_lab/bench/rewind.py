"""The rounds that are past: going back to one, and looking back without going.

What the ensemble does not hold (a head, optimizers, a LoRA's factors) is kept for every round, so the model
of any round can be had again bit for bit.

The history is what counts: a round is done when its record is there, and `recover` makes everything else
follow from the records. A mark is set before anything changes and taken off after it; whoever finds it set
recovers first. So a change that is cut off leaves the model before it or the one after it, never a mixture.
"""

from __future__ import annotations

import gc
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from xgblora_lab.bench.fit import Fit
from xgblora_lab.bench.records import History, Round
from xgblora_lab.files import load_tensors, save_tensors
from xgblora_lab.lowrank.ensemble import Ensemble

T = TypeVar("T")

IN_MEMORY = 32 << 20  # bytes of a state that is kept in memory


class States:
    """What `Past.state` gave, by rounds done; large states lie on disk until they are asked for."""

    def __init__(self) -> None:
        self._kept: dict[int, dict[str, Tensor] | Path] = {}
        self._folder: Path | None = None

    def __setitem__(self, rounds: int, state: dict[str, Tensor]) -> None:
        if sum(t.numel() * t.element_size() for t in state.values()) <= IN_MEMORY:
            self._kept[rounds] = state
            return
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="xgblora-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        path = self._folder / f"state-{rounds:05d}.safetensors"
        save_tensors(path, state)
        self._kept[rounds] = path

    def __getitem__(self, rounds: int) -> dict[str, Tensor]:
        state = self._kept[rounds]
        return load_tensors(state) if isinstance(state, Path) else state

    def __contains__(self, rounds: int) -> bool:
        return rounds in self._kept

    def cut(self, first: int, last: int) -> None:
        """Forget every state but those after `first` to `last` rounds."""
        for other in [t for t in self._kept if not first <= t <= last]:
            state = self._kept.pop(other)
            if isinstance(state, Path):
                state.unlink(missing_ok=True)


class Past:
    """The rounds already trained, which the model, its method and its head follow."""

    def __init__(self, fit: Fit) -> None:
        self.fit, self.loop, self.head = fit, fit.run, fit.head
        self.method, self.history = fit.run.method, fit.run.history
        self.states = States()
        self.stale = False  # whether the model may follow no record
        self._blocks: list[object] = []  # in which that is meant to be so, from the outermost on
        self.shown: int | None = None  # the rounds that are looked back at; None: all
        weights = sum(p.numel() * p.element_size() for p in self.method.trainable().values())
        self._keeps = self.method.rewindable or 3 * weights <= IN_MEMORY  # with the optimizer's two moments
        if self._keeps:
            self.states[0] = self.state()

    def keep(self, record: Round) -> None:
        """Put a round on record, with the state after it; it is done from the line that appends it on."""
        done = len(self.history) + 1
        if self._keeps:
            self.states[done] = self.state()
        self.history.rounds.append(record)
        self.fit.measure.first_batch = []
        if not self.method.rewindable:
            self.states.cut(done, done)

    @contextmanager
    def changing(self, undo: Callable[[], None] = lambda: None) -> Iterator[None]:
        """A block in which the model may follow no record; `undo` brings back what was there before.

        If it is cut off, the model is recovered. Python may leave a block that was cut off only after the one
        around it; then there is nothing left to do.
        """
        self.settle()
        block = object()
        try:  # no line between these three: Python guards none that lies before an inner `try`
            try:
                try:
                    self._blocks.append(block)
                    self.stale = True
                    yield
                finally:
                    if block in self._blocks:
                        undo()
                self.stale = len(self._blocks) > 1
            finally:
                self._leave(block)
        finally:  # once more, for an interrupt may have come at the line before
            self._leave(block)
            if len(self.history) in self.states:
                self.settle()

    def _leave(self, block: object) -> None:
        if block in self._blocks:
            del self._blocks[self._blocks.index(block) :]

    def end(self) -> None:
        """The bench closes: what is under way brings nothing back any more."""
        self._blocks.clear()
        self.stale = False

    def settle(self) -> None:
        """Recover from a change that was cut off; RuntimeError where nothing is kept to recover from."""
        if not self.stale or self._blocks:
            return
        if len(self.history) not in self.states:
            name = self.method.name
            raise RuntimeError(f"{name} was interrupted inside a round and cannot go back; make a new bench.")
        self.recover()

    def recover(self) -> None:
        """Make everything follow from the rounds on record again, whatever there was."""
        done = len(self.history)
        self.loop.ensemble.truncate(done)
        self.states.cut(0, done)
        self.method.close(self.loop)
        self.loop.weights.restore()
        self.method.start(self.loop)  # as a new run does, on the base
        self._load(None, self.states[done])
        self.loop.model.eval()
        self.fit.step = self.history[-1].step if done else 0
        self.fit.measure.weights_changed()
        self.fit.measure.first_batch = []
        self.shown, self.stale = None, False

    def state(self, rounds: int | None = None) -> dict[str, Tensor]:
        """What is needed, beside the ensemble, to go on from here, or from an earlier round: CPU tensors."""
        if rounds is not None and rounds in self.states:
            return self.states[rounds]
        return {f"method/{n}": t for n, t in self.method.state().items()} | self.head.state()

    def check_idle(self) -> None:
        """RuntimeError inside a round or a look back."""
        if self._blocks:
            gc.collect()  # a block that was cut off may be held by a cycle of its own traceback
        if self._blocks:
            raise RuntimeError("This bench is inside a round or a look back; wait for its end.")

    def check(self, rounds: int, what: str) -> None:
        """ValueError where the method cannot do `what`; IndexError where there are fewer rounds."""
        self.settle()
        if not self.method.rewindable:
            raise ValueError(f"{self.method.name} keeps no earlier rounds, so it cannot {what}.")
        if not 0 <= rounds <= len(self.history):
            raise IndexError(
                f"There are {len(self.history)} rounds, 0 is the base; {rounds} is out of range."
            )

    @contextmanager
    def at(self, rounds: int) -> Iterator[nn.Module]:
        """The model as after `rounds` rounds, for the length of a `with` block."""
        self.check(rounds, "look back at its rounds")
        now, outer = self.state(), self.shown

        def back() -> None:
            self.shown = outer
            self._load(outer, now)

        with self.changing(back):
            self.shown = rounds
            self._load(rounds, self.states[rounds])
            yield self.loop.model

    def staged(self, look: Callable[[], T]) -> Iterator[T]:
        """What `look` sees after every round, from 0 (the base) to now."""
        for t in range(len(self.history) + 1):
            with self.at(t):
                value = look()
            yield value

    def left_out(self, look: Callable[[], T]) -> Iterator[tuple[int, T]]:
        """(round, what `look` sees without that round's boosters) for every round."""
        self._check_additive("leave out")
        weights, ensemble = self.loop.weights, self.loop.ensemble
        for index in range(len(self.history)):
            with self.changing(lambda: weights.replay(ensemble.active(self.shown))):
                weights.replay(b for t, b in enumerate(ensemble.active()) if t != index)
                seen = look()
            yield index, seen

    def rewind(self, rounds: int) -> None:
        """Make the model what it was after `rounds` rounds, bit for bit, and forget what came later."""
        self.check_idle()
        self.check(rounds, "be rewound")
        self.stale = True
        del self.history.rounds[rounds:]
        self.recover()

    def drop(self, index: int) -> None:
        """Take one round's boosters out of the model."""
        self.check_idle()
        self._check_additive("drop")
        self.stale = True
        self.loop.ensemble.drop(index)
        self.recover()

    def restore(self, history: History, ensemble: Ensemble, states: Iterable[tuple[int, Any]]) -> None:
        """Take over rounds that were saved, on a loop that has none."""
        self.stale = True
        self.history.settings, self.history.scores = history.settings, history.scores
        for index in range(len(ensemble)):
            self.loop.ensemble.append(ensemble[index])
        for done, state in states:
            self.states[done] = state
        self.history.rounds[:] = history.rounds
        self.recover()
        if not self._keeps:
            self.states = States()

    @contextmanager
    def merged(self) -> Iterator[nn.Module]:
        """The model with everything merged into its weights and no hook on it, for a `with` block."""
        loop, method = self.loop, self.method
        if method.additive or not method.rewindable:
            yield loop.model
            return
        self.settle()
        state = self.state()
        factors = {name: loop.factors(name, self.shown) for name in loop.modules}

        def back() -> None:
            method.close(loop)  # which the block may not have come to
            loop.weights.restore()
            method.start(loop)
            self._load(None, state)

        with self.changing(back):
            method.close(loop)
            loop.weights.replay([factors])
            yield loop.model

    def _check_additive(self, what: str) -> None:
        if not self.method.additive:
            raise ValueError(f"{self.method.name} has no separate boosters to {what}; boosting does.")

    def _load(self, rounds: int | None, state: Mapping[str, Tensor]) -> None:
        if self.method.additive:
            self.loop.weights.replay(self.loop.ensemble.active(rounds))
        prefix = "method/"
        self.method.load_state({n[len(prefix) :]: t for n, t in state.items() if n.startswith(prefix)})
        self.head.load_state(state)
