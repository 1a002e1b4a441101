"""The one loop: every method runs its rounds here and leaves the same record.

A round is: choose modules and set up (method), optimizer steps, merge, measure, record. Two seeds decide
everything: `data_seed` the order of the examples, `seed` the choice of modules, initialisations and dropout.
A round depends on these, its number and the weights before it, which makes rewinding and resuming exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from xgblora_lab import export
from xgblora_lab.bench.alone import accelerator_of
from xgblora_lab.bench.fit import Fit
from xgblora_lab.bench.hooks import Hook
from xgblora_lab.bench.measure import Measure
from xgblora_lab.bench.records import History, Round
from xgblora_lab.bench.rewind import Past
from xgblora_lab.bench.settings import settings_of
from xgblora_lab.bench.step import Head, Trainer
from xgblora_lab.lowrank.ensemble import Ensemble
from xgblora_lab.lowrank.linear import find_modules, head_parameters, weight_shape
from xgblora_lab.lowrank.live_weights import LiveWeights
from xgblora_lab.methods.base import Method
from xgblora_lab.stored import keep_stored, refuse_packed

if TYPE_CHECKING:
    from accelerate import Accelerator

    from xgblora_lab.tasks.task import Task

Scores = dict[str, float]


class _Owner:
    """Ties the open bench to its model, so that the next bench can close it even if nobody else holds it."""

    def __init__(self, bench: Bench | None = None) -> None:
        self.bench = bench

    def __reduce__(self) -> tuple[type[_Owner], tuple[()]]:
        return _Owner, ()  # a copy of the model has no bench


class Bench(AbstractContextManager["Bench"]):
    """A model, a task and a method, stepped round by round.

    Parameters
    ----------
    model : nn.Module
        Anything with linear maps. It is frozen, and put back to its base by `close()`. A model belongs to one
        bench at a time: a new bench on it closes the old one first.
    task : Task
        From `load_task`, `planted`, or any object with the members of `tasks.task.Task`.
    method : Method
        A copy of it is used.
    steps : int
        K, the planned optimizer steps. Schedules decay over them and `run()` ends there.
    batch_size, accumulation : int
        Examples per optimizer step and process; micro-batches that they are split into.
    targets : str or sequence of str
        The linear maps to adapt, see `lowrank.linear.find_modules`.
    seed, data_seed : int
        Of everything drawn for the model, and of the order of the data.
    probe_size : int
        Examples of the fixed probe batch, the first of dev (of train where there is no dev); 0 leaves out all
        measuring beside the steps.
    hooks : sequence of Hook
        Observers for the bench's whole life.
    accelerator : accelerate.Accelerator or str, optional
        Default: accelerate's own. Or its mixed precision, "no", "bf16", "fp16" or "auto", the faster one here
        (see `precision.fastest`). Without accelerate this process alone, in full precision.

    Raises
    ------
    ValueError
        For a number below 1, targets that match nothing, or what the method cannot adapt.
    """

    trainer_class: ClassVar = Trainer  # a loop of somebody else's brings batches of its own

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        method: Method,
        *,
        steps: int = 400,
        batch_size: int = 16,
        accumulation: int = 1,
        targets: str | Sequence[str] = "all-linear",
        seed: int = 0,
        data_seed: int = 0,
        probe_size: int = 32,
        hooks: Sequence[Hook] = (),
        accelerator: Accelerator | str | None = None,
    ) -> None:
        for option, value in (("steps", steps), ("batch_size", batch_size), ("accumulation", accumulation)):
            if value < 1:
                raise ValueError(f"{option} must be at least 1, got {value}.")
        if (owner := model.__dict__.get("_bench_owner")) is not None and owner.bench is not None:
            owner.bench.close()
        self.model, self.task, self.method = model, task, replace(method)
        self.steps, self.seed, self.probe_size = steps, seed, probe_size
        self.targets = targets if isinstance(targets, str) else list(targets)
        self.hooks, self.accelerator = list(hooks), accelerator_of(accelerator, model)
        keep_stored(self.model.to(self.accelerator.device))
        self.trainer = self.trainer_class(model, task, self.accelerator, batch_size, accumulation, data_seed)
        self.modules = find_modules(model, targets)
        model.requires_grad_(False)
        own = head_parameters(model) if task.kind in ("classification", "regression") else {}
        self._head = Head(own, self.method.head_lr, self.method.betas)
        self.weights = LiveWeights(self.modules)
        self.ensemble = Ensemble({n: weight_shape(m) for n, m in self.modules.items()}, self.method.additive)
        self.history = History(self.method.name)
        self.history.settings = settings_of(self, self.trainer, self.targets, probe_size)
        self._measure = Measure(self.trainer, seed, probe_size)
        # Members of `Loop` and `Run` that are a part's.
        self.head, self.batch_size = self._head.parameters, batch_size
        self.planned_rows, self.summed = self.trainer.planned_rows, self.trainer.summed
        self.row_losses, self.probe_forward = self._measure.row_losses, self._measure.forward
        self.probe_loss = self._measure.probe_loss
        self._fit = Fit(self, self.trainer, self._head, self._measure)
        self._open = True
        self.model.__dict__["_bench_owner"] = _Owner(self)
        try:
            self.method.start(self)
            self._past = Past(self._fit)
        except BaseException:
            self.close()
            raise
        self.state = self._past.state

    # What a method and a hook may ask

    @property
    def trained_steps(self) -> int:
        """Optimizer steps done since the run's start."""
        return self._fit.step

    @property
    def planned_rounds(self) -> int:
        """T: rounds until the planned steps are done, at most; the last may be shorter."""
        return math.ceil(self.steps / self.method.steps_per_round)

    def probe_gradients(self, passes: int = 1) -> None:
        """Forward-backward passes on the next steps' batches without a step; RuntimeError outside a round."""
        if not self._measure.first_batch:
            raise RuntimeError(
                "Gradients can be probed inside a round only: call this from a method's begin_round or a "
                "hook's on_round_start."
            )
        trained = [p for p in self.model.parameters() if p.requires_grad]
        trained += [p for p in self.method.trainable().values() if p.requires_grad]
        self._measure.gradients(self._fit.step, len(self.history), trained, passes)

    # Running

    def rounds(self, n: int | None = None) -> Iterator[Round]:
        """Train and yield up to n more rounds (default: all that are planned); going on later is the same."""
        done = 0
        with self.running() as hooks:
            while self._fit.step < self.steps if n is None else done < n:
                record = self._round(hooks)
                done += 1
                stop = [hook.on_round_end(self, record) for hook in hooks]
                yield record
                if any(stop):
                    break

    def step(self) -> Round:
        """Train one round and return its record."""
        (record,) = self.rounds(1)
        return record

    def run(self, n: int | None = None, progress: bool = True) -> History:
        """Train up to n more rounds (default: to the end of the plan) behind a progress bar."""
        total = max(0, self.planned_rounds - len(self.history)) if n is None else n
        quiet = not progress or not self.accelerator.is_main_process
        with tqdm(total=total, desc=self.method.name, unit="round", disable=quiet) as bar:
            for record in self.rounds(n):
                bar.set_postfix(loss=f"{record.losses[-1]:.4f}", probe=f"{record.probe_after:.4f}")
                bar.update()
        return self.history

    @contextmanager
    def hooked(self, *hooks: Hook) -> Iterator[Bench]:
        """Further hooks for the length of a `with` block; gone after it, whatever happened."""
        self.hooks.extend(hooks)
        try:
            yield self
        finally:
            for hook in hooks:
                self.hooks.remove(hook)

    @contextmanager
    def running(self) -> Iterator[list[Hook]]:
        """A run, for the length of a `with` block: the hooks learn that it begins, and that it is over."""
        self.check_open()
        hooks = list(self.hooks)
        with ExitStack() as ends:
            for hook in hooks:
                ends.callback(hook.on_run_end, self)
                hook.on_run_start(self)
            yield hooks

    def _round(self, hooks: Sequence[Hook]) -> Round:
        self.check_open()
        self._past.check_idle()
        device = self.accelerator.device
        devices = [device.index or 0] if device.type == "cuda" else []
        with self._past.changing(), torch.random.fork_rng(devices):
            record = self._fit.round(len(self.history), hooks)
            self._past.keep(record)
        return record

    # Looking

    def evaluate(self, split: str = "dev", limit: int | None = None) -> Scores:
        """The task's scores of the model as it is now."""
        self.check_open()
        with self.accelerator.autocast():
            return self.task.evaluate(self.model, split, limit=limit)

    def predict(self, split: str = "dev", limit: int | None = None) -> np.ndarray:
        """The task's predictions of the model as it is now."""
        self.check_open()
        with self.accelerator.autocast():
            return self.task.predict(self.model, split, limit=limit)

    def update(self, name: str, upto: int | None = None) -> Tensor:
        """The accumulated update ΔW (d, k) of a module after `upto` rounds (default: now), on the CPU."""
        if self.method.low_rank:
            return self.ensemble.update(name, upto)
        self.check_open()
        with nullcontext() if upto in (None, len(self.history)) else self.at(upto):
            return self.method.update(self, name)

    def factors(self, name: str, upto: int | None = None) -> tuple[Tensor, Tensor]:
        """(B (d, R), A (R, k)) with the accumulated update B @ A; (ΔW, I) where the method has no factors."""
        if self.method.low_rank:
            return self.ensemble.factors(name, upto)
        update = self.update(name, upto)
        return update, torch.eye(update.shape[1], dtype=update.dtype)

    def spectrum(self, name: str, upto: int | None = None) -> Tensor:
        """Singular values of the accumulated update, descending; from factors where the method has them."""
        if self.method.low_rank:
            return self.ensemble.spectrum(name, upto)
        return torch.linalg.svdvals(self.update(name, upto))

    def at(self, rounds: int) -> AbstractContextManager[nn.Module]:
        """The model as after `rounds` rounds, for the length of a `with` block."""
        self.check_open()
        return self._past.at(rounds)

    def staged_evaluate(self, split: str = "dev", limit: int | None = None) -> Iterator[Scores]:
        """Scores after every round from 0, the base; between two of them the model is as it is now."""
        return self._past.staged(lambda: self.evaluate(split, limit))

    def staged_predict(self, split: str = "dev", limit: int | None = None) -> Iterator[np.ndarray]:
        """Predictions after every round from 0; each array is a copy of its own."""
        return self._past.staged(lambda: self.predict(split, limit).copy())

    def left_out(self, split: str = "dev", limit: int | None = None) -> Iterator[tuple[int, Scores]]:
        """(round, scores without that round's boosters) for every round; the others stay as they are."""
        self.check_open()
        return self._past.left_out(lambda: self.evaluate(split, limit))

    # Going back, and taking the result away

    def rewind(self, rounds: int) -> None:
        """Go back to the model as after `rounds` rounds, bit for bit, and forget what came later."""
        self.check_open()
        self._past.rewind(rounds)
        for hook in self.hooks:
            hook.on_rewind(self)

    def drop(self, index: int) -> None:
        """Take one round's boosters out of the model; later rounds stay, though they were fitted with it."""
        self.check_open()
        self._past.drop(index)
        for hook in self.hooks:
            hook.on_rewind(self)

    def restore(self, *saved: Any) -> None:
        """Take over the rounds that `Checkpoint` wrote; `resume` calls it on a new bench."""
        self._past.restore(*saved)

    def merged(self) -> AbstractContextManager[nn.Module]:
        """The model with everything merged into its weights and no hook on it, for a `with` block."""
        self.check_open()
        return self._past.merged()

    def export_peft(self, folder: str | Path, rank: int | None = None, base: str = "") -> dict[str, Any]:
        """The accumulated update as a PEFT adapter on disk; see `export.export_peft`."""
        self.check_open()
        if not self.method.low_rank:
            raise ValueError(f"{self.method.name} is no sum of low-rank factors; use export_merged for it.")
        facts, scores = self.history.facts(), self.history.measured()
        return export.export_peft(self.ensemble, folder, self.model, rank, base, facts=facts, scores=scores)

    def export_merged(self, folder: str | Path, tokenizer: Any = None) -> None:
        """The tuned model as a `transformers` checkpoint; see `export.export_merged`."""
        refuse_packed(self.weights.beside, "its boosters stand beside it; use export_peft.")
        with self.merged() as model:
            export.export_merged(model, folder, tokenizer)

    def close(self) -> None:
        """Put the model back to its base, bit for bit, and take every hook off it."""
        owner = self.model.__dict__.get("_bench_owner")
        if owner is None or owner.bench is not self:
            return  # closed already, to the end
        self._open = False
        if hasattr(self, "_past"):  # the method did start
            self._past.end()
        self.method.close(self)
        self.weights.restore()
        self._head.restore()
        self.model.__dict__.pop("_bench_owner", None)

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"{len(self.history)} of {self.planned_rounds} rounds" if self._open else "closed"
        return (
            f"Bench({type(self.model).__name__}, {self.task.name}, {self.method.label()}, "
            f"precision {self.accelerator.mixed_precision}, "
            f"{len(self.modules)} modules, {state}, hooks: {[type(h).__name__ for h in self.hooks]})"
        )

    def check_open(self) -> None:
        """RuntimeError where this bench cannot be used any more; a change that was cut off is taken back."""
        if not self._open:
            raise RuntimeError("This bench is closed (a newer bench uses its model); make a new one.")
        self._past.settle()
