"""The rounds that are past: going back to one, and looking back without going.

What the ensemble does not hold (a head, optimizers, a LoRA's factors) is kept for every round, so the model
of any round can be had again bit for bit.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from xgblora_lab.bench.records import History
from xgblora_lab.bench.step import Head
from xgblora_lab.files import load_tensors, save_tensors
from xgblora_lab.lowrank.ensemble import Ensemble
from xgblora_lab.methods.base import Loop, Method

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

    def truncate(self, rounds: int) -> None:
        """Forget every state of more rounds."""
        for late in [t for t in self._kept if t > rounds]:
            state = self._kept.pop(late)
            if isinstance(state, Path):
                state.unlink(missing_ok=True)


class Past:
    """The rounds already trained: takes a loop, its method and its head back, and cuts off its history."""

    def __init__(self, loop: Loop, method: Method, head: Head, history: History) -> None:
        self.loop, self.method, self.head, self.history = loop, method, head, history
        self.states = States()
        self.keep()

    def keep(self) -> None:
        """Keep the state after the rounds done so far."""
        if self.method.rewindable:
            self.states[len(self.history)] = self.state()

    def state(self, rounds: int | None = None) -> dict[str, Tensor]:
        """What is needed, beside the ensemble, to go on from here, or from an earlier round: CPU tensors."""
        if rounds is not None and self.method.rewindable:
            return self.states[rounds]
        return {f"method/{n}": t for n, t in self.method.state().items()} | self.head.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        prefix = "method/"
        self.method.load_state({n[len(prefix) :]: t for n, t in state.items() if n.startswith(prefix)})
        self.head.load_state(state)

    def check(self, rounds: int, what: str) -> None:
        """ValueError where the method cannot do `what`; IndexError where there are fewer rounds."""
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
        now = self.state()
        with self.loop.weights.kept():
            try:
                self._load(rounds)
                yield self.loop.model
            finally:
                self.load_state(now)

    def staged(self, look: Callable[[], T]) -> Iterator[T]:
        """What `look` sees after every round, from 0 (the base) to now."""
        for t in range(len(self.history) + 1):
            with self.at(t):
                value = look()
            yield value

    def left_out(self, look: Callable[[], T]) -> Iterator[tuple[int, T]]:
        """(round, what `look` sees without that round's boosters) for every round."""
        if not self.method.additive:
            raise ValueError(f"{self.method.name} has no separate boosters to leave out; boosting does.")
        weights, ensemble = self.loop.weights, self.loop.ensemble
        for index in range(len(self.history)):
            with weights.kept():
                weights.replay(b for t, b in enumerate(ensemble.active()) if t != index)
                seen = look()
            yield index, seen

    def rewind(self, rounds: int) -> int:
        """Make the model what it was after `rounds` rounds, bit for bit; returns the steps done by then."""
        self.check(rounds, "be rewound")
        del self.history.rounds[rounds:]
        self.loop.ensemble.truncate(rounds)
        self.states.truncate(rounds)
        for parameter in [*self.method.trainable().values(), *self.head.parameters.values()]:
            parameter.grad = None
        if self.method.additive:
            self.method.close(self.loop)
        self._load(rounds)
        self.loop.model.eval()
        return self.history[-1].step if rounds else 0

    def drop(self, index: int) -> None:
        """Take one round's boosters out of the model."""
        self.loop.ensemble.drop(index)
        self.loop.weights.replay(self.loop.ensemble.active())

    def restore(
        self, history: History, ensemble: Ensemble, states: Iterable[tuple[int, dict[str, Tensor]]]
    ) -> int:
        """Take over rounds that were saved, on a loop that has none; returns the steps done by then."""
        self.history.settings, self.history.scores = history.settings, history.scores
        self.history.rounds[:] = history.rounds
        for index in range(len(ensemble)):
            self.loop.ensemble.append(ensemble[index])
        for done, state in states:
            self.states[done] = state
        if len(history):
            self._load(len(history))
        if not self.method.rewindable:
            self.states = States()
        return self.history[-1].step if len(history) else 0

    @contextmanager
    def merged(self) -> Iterator[nn.Module]:
        """The model with everything merged into its weights and no hook on it, for a `with` block."""
        loop, method = self.loop, self.method
        if method.additive or not method.rewindable:
            yield loop.model
            return
        state = self.state()
        try:
            with loop.weights.kept():
                if method.low_rank:
                    factors = method.end_round(loop, len(self.history))
                else:
                    updates = {name: method.update(loop, name) for name in loop.modules}
                    factors = {n: (U, torch.eye(U.shape[1], dtype=U.dtype)) for n, U in updates.items()}
                method.close(loop)
                loop.weights.merge(factors)
                yield loop.model
        finally:
            method.start(loop)  # on the weights as they were
            self.load_state(state)

    def _load(self, rounds: int) -> None:
        if self.method.additive:
            self.loop.weights.replay(self.loop.ensemble.active(rounds))
        self.load_state(self.states[rounds])
