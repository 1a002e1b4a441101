"""Going back to an earlier round, looking back without going, and taking the result away.

What the ensemble does not hold (a head, optimizers, a LoRA's factors) is kept for every round, so the model
of any round can be had again bit for bit.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from torch import Tensor, nn, optim

from xgblora_lab.bench.records import History
from xgblora_lab.files import load_tensors, replaced_folder, save_tensors
from xgblora_lab.lowrank.ensemble import Ensemble
from xgblora_lab.lowrank.live_weights import LiveWeights
from xgblora_lab.methods.base import Method, adamw, load_optimizer_tensors, optimizer_tensors

if TYPE_CHECKING:
    from xgblora_lab.bench.bench import Bench

T = TypeVar("T")


IN_MEMORY = 32 << 20  # bytes of a state that is kept in memory


class States:
    """What `Rewinding.state` gave, by rounds done; large states lie on disk until they are asked for."""

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


class Rewinding:
    """The part of `Bench` that deals with rounds already trained."""

    model: nn.Module
    method: Method
    history: History
    ensemble: Ensemble
    weights: LiveWeights
    head: dict[str, nn.Parameter]
    _head_optimizer: optim.Optimizer | None
    _states: States
    _probe_loss: float | None
    _step: int

    def evaluate(self, split: str = "dev", limit: int | None = None) -> dict[str, float]:
        raise NotImplementedError

    def predict(self, split: str = "dev", limit: int | None = None) -> np.ndarray:
        raise NotImplementedError

    def check_open(self) -> None:
        raise NotImplementedError

    @property
    def _bench(self) -> Bench:
        return cast("Bench", self)

    # Looking back

    @contextmanager
    def at(self, rounds: int) -> Iterator[nn.Module]:
        """The model as after `rounds` rounds, for the length of a `with` block."""
        self._check_rounds(rounds, "look back at its rounds")
        now = self.state()
        with self.weights.kept():
            try:
                self._load(rounds)
                yield self.model
            finally:
                self.load_state(now)

    def staged_evaluate(self, split: str = "dev", limit: int | None = None) -> Iterator[dict[str, float]]:
        """Scores after every round, from round 0 (the base) to now, as a generator.

        Between two values the model is as it was before the call.
        """
        return self._staged(lambda: self.evaluate(split, limit))

    def staged_predict(self, split: str = "dev", limit: int | None = None) -> Iterator[np.ndarray]:
        """Predictions after every round, as `staged_evaluate`; each array is a copy of its own."""
        return self._staged(lambda: self.predict(split, limit).copy())

    def _staged(self, look: Callable[[], T]) -> Iterator[T]:
        for t in range(len(self.history) + 1):
            with self.at(t):
                value = look()
            yield value

    def left_out(
        self, split: str = "dev", limit: int | None = None
    ) -> Iterator[tuple[int, dict[str, float]]]:
        """(round, scores without that round's boosters) for every round; the others stay as they are."""
        self.check_open()
        if not self.method.additive:
            raise ValueError(f"{self.method.name} has no separate boosters to leave out; boosting does.")
        for index in range(len(self.history)):
            with self.weights.kept():
                self.weights.replay(b for t, b in enumerate(self.ensemble.active()) if t != index)
                scores = self.evaluate(split, limit)
            yield index, scores

    # Going back

    def rewind(self, rounds: int) -> None:
        """Go back to the model as after `rounds` rounds, bit for bit, and forget what came later."""
        self._check_rounds(rounds, "be rewound")
        self._restore(rounds)

    def drop(self, index: int) -> None:
        """Take one round's boosters out of the model; later rounds stay, though they were fitted with it."""
        self.check_open()
        self.ensemble.drop(index)
        self.weights.replay(self.ensemble.active())
        self._probe_loss = None

    def _restore(self, rounds: int) -> None:
        del self.history.rounds[rounds:]
        self._step = self.history[-1].step if rounds else 0
        self.ensemble.truncate(rounds)
        self._states.truncate(rounds)
        for parameter in [*self.method.trainable().values(), *self.head.values()]:
            parameter.grad = None
        if self.method.additive:
            self.method.close(self._bench)
        self._load(rounds)
        self._probe_loss = None
        self.model.eval()

    def _load(self, rounds: int) -> None:
        if self.method.additive:
            self.weights.replay(self.ensemble.active(rounds))
        self.load_state(self._states[rounds])

    def state(self) -> dict[str, Tensor]:
        """What is needed, beside the ensemble, to go on from here: head, its optimizer, the method's own.

        Tensors on the CPU, by name; `load_state` takes them back.
        """
        tensors = {f"method/{n}": t for n, t in self.method.state().items()}
        tensors |= {f"head/{n}": p.detach().to("cpu", copy=True) for n, p in self.head.items()}
        if self._head_optimizer is not None:
            tensors |= optimizer_tensors(self._head_optimizer, self.head, "head_optimizer/")
        return tensors

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        prefix = "method/"
        self.method.load_state({n[len(prefix) :]: t for n, t in state.items() if n.startswith(prefix)})
        for name, parameter in self.head.items():
            parameter.data.copy_(state[f"head/{name}"])
        self._head_optimizer = self._new_head_optimizer()
        if self._head_optimizer is not None:
            load_optimizer_tensors(self._head_optimizer, self.head, state, "head_optimizer/")

    def restore(self, folder: str | Path) -> None:
        """Take over the rounds that `hooks.Checkpoint` wrote; `resume` calls it on a new bench."""
        folder = Path(folder)
        history, ensemble = History.load(folder / "history.json"), Ensemble.load(folder)
        if ensemble.shapes != self.ensemble.shapes:
            raise ValueError(f"The run in {folder} adapted other modules than this bench; use its own model.")
        ensemble.truncate(len(history))  # a kill may have come between the boosters and the record
        self.history, self.ensemble = history, ensemble
        self._step = history[-1].step if len(history) else 0
        for done in range(len(history) + 1):
            path = folder / f"state-{done:05d}.safetensors"
            if path.is_file():
                self._states[done] = load_tensors(path)
        if len(history):
            self._load(len(history))
        if not self.method.rewindable:
            self._states = States()
        self._probe_loss = None

    # Taking the result away

    def export_peft(self, folder: str | Path, rank: int | None = None, base: str = "") -> dict[str, Any]:
        """The accumulated update as a PEFT adapter on disk; see `Ensemble.export_peft`."""
        self.check_open()
        if not self.method.low_rank:
            raise ValueError(f"{self.method.name} is no sum of low-rank factors; use export_merged for it.")
        return self.ensemble.export_peft(folder, self.model, rank, base)

    def export_merged(self, folder: str | Path, tokenizer: Any = None) -> None:
        """The tuned model as a `transformers` checkpoint (safetensors) that `from_pretrained` loads."""
        self.check_open()
        if not hasattr(self.model, "save_pretrained"):
            raise ValueError(
                f"{type(self.model).__name__} is no transformers model; save its state_dict instead."
            )
        with self.merged(), replaced_folder(folder, "config.json") as partial:
            self.model.save_pretrained(partial)  # type: ignore[operator]
            if tokenizer is not None:
                tokenizer.save_pretrained(partial)

    @contextmanager
    def merged(self) -> Iterator[nn.Module]:
        """The model with everything merged into its weights and no hook on it, for a `with` block."""
        if self.method.additive or not self.method.rewindable:
            yield self.model
            return
        state = self.state()
        try:
            with self.weights.kept():
                if self.method.low_rank:
                    factors = self.method.end_round(self._bench, len(self.history))
                else:
                    factors = {name: self._bench.factors(name) for name in self._bench.modules}
                self.method.close(self._bench)
                self.weights.merge(factors)
                yield self.model
        finally:
            self.method.start(self._bench)  # on the weights as they were
            self.load_state(state)

    # Small things

    def _new_head_optimizer(self) -> optim.Optimizer | None:
        return adamw(list(self.head.values()), self.method.head_lr, self.method.betas) if self.head else None

    def _check_rounds(self, rounds: int, what: str) -> None:
        self.check_open()
        if not self.method.rewindable:
            raise ValueError(f"{self.method.name} keeps no earlier rounds, so it cannot {what}.")
        if not 0 <= rounds <= len(self.history):
            raise IndexError(
                f"There are {len(self.history)} rounds, 0 is the base; {rounds} is out of range."
            )
