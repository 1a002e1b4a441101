"""Observers of the loop. A hook looks; what it returns from `measure` becomes part of the round's record."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from xgblora_lab.bench.records import Round
from xgblora_lab.lowrank import spectra
from xgblora_lab.lowrank.booster import LowRank, attached, watched
from xgblora_lab.methods.base import Loop

if TYPE_CHECKING:
    from xgblora_lab.bench.records import History
    from xgblora_lab.methods.base import Method


class Run(Loop, Protocol):
    """What a hook may ask of the bench: all that a method may, what is on record, and measurements."""

    @property
    def method(self) -> Method:
        """The method that is run."""

    @property
    def history(self) -> History:
        """The rounds so far."""

    def factors(self, name: str, upto: int | None = None) -> tuple[Tensor, Tensor]:
        """The accumulated update of a module as factors."""

    def spectrum(self, name: str, upto: int | None = None) -> Tensor:
        """Singular values of the accumulated update of a module, descending."""

    def probe_loss(self) -> float:
        """Loss of the model as it is now on the probe batch."""

    def evaluate(self, split: str = "dev", limit: int | None = None) -> dict[str, float]:
        """The task's scores of the model as it is now."""

    def state(self, rounds: int | None = None) -> dict[str, Tensor]:
        """What is needed, beside the ensemble, to go on from here, or from an earlier round."""

    def rewind(self, rounds: int) -> None:
        """Go back to the model as after `rounds` rounds."""


class Hook:
    """The protocol; every method may be left out.

    Order in a run: `on_run_start`, then for every round `on_round_start`, `on_step` after each optimizer
    step, `measure` once the round is merged, `on_round_end` with the finished record; and `on_run_end`, also
    after an exception. A run is one call of `Bench.rounds` (or `step`, `run`).
    """

    def on_run_start(self, bench: Run) -> None:
        """A run begins."""

    def on_round_start(self, bench: Run, index: int) -> None:
        """Round `index` has set up what it trains; its first step comes next."""

    def on_step(self, bench: Run, step: int, loss: Tensor) -> None:
        """step: number within the round; loss: of this step's batch before its update, detached."""

    def measure(self, bench: Run) -> Mapping[str, Any] | None:
        """JSON-ready values to add to the record under their names."""

    def on_round_end(self, bench: Run, record: Round) -> Any:
        """Something true ends the run after this round."""

    def on_run_end(self, bench: Run) -> None:
        """The run is over, also where an exception ended it."""

    def on_rewind(self, bench: Run) -> None:
        """Rounds were taken back or dropped, within a run or between two."""


class Spectrum(Hook):
    """Singular values of the accumulated update after every round: `{"spectrum": {module: [σ1, σ2, …]}}`.

    modules: names to watch (default: all). limit: how many singular values to keep. Where the task knows the
    truth (`task.truth`), also `"alignment"` (mean squared cosine between the leading subspaces) and
    `"distance"` (‖ΔW − truth‖/‖truth‖). From factors: no dense SVD for methods that have them.
    """

    def __init__(self, modules: Sequence[str] | None = None, limit: int = 64) -> None:
        self.modules, self.limit = modules, limit
        self._growing: dict[str, tuple[spectra.GrowingSpectrum, int]] = {}  # and the rounds that it holds
        self._version: object = None  # of the ensemble that these are rounds of

    def measure(self, bench: Run) -> Mapping[str, Any] | None:
        names = list(self.modules) if self.modules is not None else list(bench.modules)
        if not all(bool(p.isfinite().all()) for p in self._latest(bench)):
            return None  # diverged: there is no spectrum to speak of
        if self._version is not bench.ensemble.version:  # another run, or rounds were taken back or dropped
            self._growing, self._version = {}, bench.ensemble.version
        measured: dict[str, Any] = {
            "spectrum": {n: self._values(bench, n)[: self.limit].tolist() for n in names}
        }
        truth = {n: f for n, f in getattr(bench.task, "truth", {}).items() if n in names}
        if truth:
            factors = {n: bench.factors(n) for n in truth}
            measured["alignment"] = {n: float(spectra.alignment(factors[n], f)) for n, f in truth.items()}
            measured["distance"] = {n: float(spectra.distance(factors[n], f)) for n, f in truth.items()}
        return measured

    def _values(self, bench: Run, name: str) -> Tensor:
        if not bench.method.additive:
            return bench.spectrum(name)
        growing, first = self._growing.get(name) or (spectra.GrowingSpectrum(*bench.ensemble.shapes[name]), 0)
        for index in range(first, len(bench.ensemble)):
            if name in bench.ensemble[index]:
                growing.append(*bench.ensemble[index][name])
        self._growing[name] = growing, len(bench.ensemble)
        return growing.singular_values()

    @staticmethod
    def _latest(bench: Run) -> list[Tensor]:
        if bench.method.low_rank:
            return [factor for pair in bench.ensemble[len(bench.ensemble) - 1].values() for factor in pair]
        return list(bench.method.trainable().values())


class Probe(Hook):
    """The task's scores after every `every`-th round, e.g. `{"dev_loss": …, "dev_accuracy": …}`."""

    def __init__(self, split: str = "dev", every: int = 1, limit: int | None = None) -> None:
        self.split, self.every, self.limit = split, every, limit

    def measure(self, bench: Run) -> Mapping[str, Any] | None:
        if len(bench.ensemble) % self.every:
            return None
        return {f"{self.split}_{k}": v for k, v in bench.evaluate(self.split, self.limit).items()}


class Stop(Hook):
    """Early stopping over rounds, in boosting's own words: end the run, and go back to its best round.

    A loss that is no number ends the run in any case. The best round is restored when the run ends here or at
    the end of its plan, where the method can be rewound (full fine-tuning cannot).

    Parameters
    ----------
    n_iter_no_change : float
        Rounds to wait for the watched loss to fall; `math.inf` waits for ever and restores nothing.
    tol : float
        A fall counts where it is more than this part of the best loss.
    split : str or None
        What is watched: the task's loss on this split after every round, or with None the probe loss.
    limit : int or None
        Examples of the split that are scored.

    Attributes
    ----------
    losses : list of float
        The watched loss after every round of the run, those that were taken back included.
    best_round : int
        Rounds done when it was lowest.
    """

    def __init__(
        self,
        n_iter_no_change: float = 5,
        tol: float = 1e-3,
        split: str | None = None,
        limit: int | None = None,
    ) -> None:
        self.n_iter_no_change, self.tol, self.split, self.limit = n_iter_no_change, tol, split, limit
        self.losses: list[float] = []
        self.best_round = 0
        self._best, self._ended = math.inf, False

    def on_run_start(self, bench: Run) -> None:
        self.losses, self.best_round = [], len(bench.history)
        self._best, self._ended = math.inf, False

    def on_round_end(self, bench: Run, record: Round) -> bool:
        loss = record.probe_after
        if self.split is not None:
            loss = bench.evaluate(self.split, self.limit)["loss"]
        self.losses.append(loss)
        if loss < self._best - self.tol * abs(self._best) or self._best == math.inf > loss:
            self._best, self.best_round = loss, record.index + 1
        waited = record.index + 1 - self.best_round
        diverged = not math.isfinite(record.losses[-1])
        self._ended = diverged or waited >= self.n_iter_no_change or bench.trained_steps >= bench.steps
        return diverged or waited >= self.n_iter_no_change

    def on_run_end(self, bench: Run) -> None:
        waits = math.isfinite(self.n_iter_no_change)
        if self._ended and waits and bench.method.rewindable and self.best_round < len(bench.history):
            bench.rewind(self.best_round)
        self._ended = False


class Gradient(Hook):
    """How well each booster aligns with the full gradient: `{"gradient_alignment": {module: cosine²}}`.

    At the round's start the dense gradient G (d, k) of every chosen module is taken on the round's first
    batch (one extra forward-backward pass); at its end, the squared cosines between the booster's leading
    singular directions and those of −G are multiplied (1: the same rank-1 direction, 0: orthogonal).
    """

    def __init__(self) -> None:
        self._directions: dict[str, tuple[Tensor, Tensor]] = {}

    def on_round_start(self, bench: Run, index: int) -> None:
        gradients: dict[str, Tensor] = {}

        def collect(name: str, X: Tensor, D: Tensor) -> None:
            gradients[name] = gradients.get(name, 0) + D.float().T @ X.float()

        with watched(bench.modules, collect):
            bench.probe_gradients()
        self._directions = {}
        for name, G in gradients.items():
            U, _, V = torch.svd_lowrank(bench.summed(G), q=min(6, *G.shape), niter=4)
            self._directions[name] = (U[:, 0].cpu(), V[:, 0].cpu())

    def measure(self, bench: Run) -> Mapping[str, Any]:
        aligned = {}
        for name, (B, A) in bench.ensemble[len(bench.ensemble) - 1].items():
            if name in self._directions and B.norm() > 0:
                U, _, Vh = spectra.svd(B, A)
                u, v = self._directions[name]
                aligned[name] = float((U[:, 0] @ u.to(U)).square() * (Vh[0] @ v.to(Vh)).square())
        return {"gradient_alignment": aligned}

    def on_run_end(self, bench: Run) -> None:
        self._directions = {}


class Gain(Hook):
    """What each module's new booster is worth, as boosted trees report: `{"gain": {module: loss}}`.

    The rise of the probe loss when that one booster is taken out of the merged model: one forward pass over
    the probe batch for each module chosen. Methods that do not merge have no boosters to credit.
    """

    def measure(self, bench: Run) -> Mapping[str, Any] | None:
        if not bench.method.additive:
            return None
        with_all, credit = bench.probe_loss(), {}
        for name, (B, A) in bench.ensemble[len(bench.ensemble) - 1].items():
            taken_out = LowRank(A, -B).to(bench.accelerator.device)
            with attached(bench.model, {name: taken_out}):
                credit[name] = bench.probe_loss() - with_all
        return {"gain": credit}
