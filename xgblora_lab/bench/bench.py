"""The one loop: every method runs its rounds here and leaves the same record.

A round is: choose modules and set up (method), κ optimizer steps, merge, measure, record. Two seeds decide
everything: `data_seed` the order of the examples, `seed` the choice of modules, initialisations and dropout.
A round depends on these, its number and the weights before it, which makes rewinding and resuming exact.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from xgblora_lab.bench.hooks import Checkpoint, Hook
from xgblora_lab.bench.records import History, Round, RunSettings, short_name
from xgblora_lab.bench.rewind import Rewinding, States
from xgblora_lab.bench.step import Trainer, seed_dropout, state_bytes
from xgblora_lab.lowrank import spectra
from xgblora_lab.lowrank.ensemble import Ensemble
from xgblora_lab.lowrank.linear import find_modules, head_parameters, is_linear, weight_shape
from xgblora_lab.lowrank.live_weights import LiveWeights
from xgblora_lab.methods.base import Method
from xgblora_lab.tasks.task import Batch

if TYPE_CHECKING:
    from accelerate import Accelerator

    from xgblora_lab.tasks.task import Task

T = TypeVar("T")


class _Owner:
    """Ties the open bench to its model, so that the next bench can close it even if nobody else holds it.

    A copy of the model has no bench.
    """

    def __init__(self, bench: Bench | None = None) -> None:
        self.bench = bench

    def __deepcopy__(self, memo: object) -> _Owner:
        return _Owner()

    def __reduce__(self) -> tuple[type[_Owner], tuple[()]]:
        return _Owner, ()


class Bench(Rewinding):
    """A model, a task and a method, stepped round by round.

    model: any `nn.Module` with linear maps; it is frozen, and put back to its base by `close()`. A model
        belongs to one bench at a time: a new bench on it closes the old one first.
    task: what is trained on (`load_task`, `planted`, or any object with the members of `tasks.Task`).
    method: a `Method`; a copy is used.
    steps: K, the planned optimizer steps. Schedules decay over them and `run()` ends there.
    batch_size: examples per optimizer step and process. accumulation: micro-batches it is split into.
    targets: the linear maps to adapt (`adapters.find_modules`).
    probe_size: examples of the fixed probe batch, the first of dev (of train where there is no dev); 0
        leaves out all measuring beside the steps.
    hooks: observers (`hooks.py`) for the bench's whole life.
    accelerator: an `accelerate.Accelerator` for device, mixed precision and several processes.
    """

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
        accelerator: Accelerator | None = None,
    ) -> None:
        from accelerate import Accelerator

        for option, value in (("steps", steps), ("batch_size", batch_size), ("accumulation", accumulation)):
            if value < 1:
                raise ValueError(f"{option} must be at least 1, got {value}.")
        if (owner := model.__dict__.get("_bench_owner")) is not None and owner.bench is not None:
            owner.bench.close()
        self.model, self.task, self.method = model, task, copy(method)
        self.steps, self.seed, self.probe_size = steps, seed, probe_size
        self.targets = targets if isinstance(targets, str) else list(targets)
        self.hooks = list(hooks)
        self.accelerator = accelerator or Accelerator()
        self.model.to(self.accelerator.device)
        self.trainer = Trainer(model, task, self.accelerator, batch_size, accumulation, data_seed)

        self.modules = find_modules(model, targets)
        has_head = task.kind in ("classification", "regression")
        self.head = head_parameters(model) if has_head else {}  # trained beside the method, by name
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for parameter in self.head.values():
            parameter.requires_grad_(True)
        self.weights = LiveWeights(self.modules)
        shapes = {name: weight_shape(m) for name, m in self.modules.items()}
        self.ensemble = Ensemble(shapes, self.method.additive)
        self.history = History(self.method.name, self._settings())
        self._head_before = {n: p.detach().to("cpu", copy=True) for n, p in self.head.items()}
        self._head_optimizer = self._new_head_optimizer()
        self._step = 0
        self._extra_passes = self._extra_forwards = 0
        self._first_batch: list[Batch] = []  # of the present round
        self._probe: list[Batch] | None = None
        self._probe_loss: float | None = None  # of the present weights
        self._running = False
        self._interrupted = False  # inside a round that cannot be taken back
        self._open = True
        self.model.__dict__["_bench_owner"] = _Owner(self)
        try:
            self.method.start(self)
        except BaseException:  # nothing was begun, so there is nothing of the method's to close later
            self.weights.restore()
            self.model.__dict__.pop("_bench_owner", None)
            raise
        # What the ensemble does not hold, by rounds done:
        self._states = States()
        if self.method.rewindable:
            self._states[0] = self.state()

    # Running

    @property
    def trained_steps(self) -> int:
        """Optimizer steps done since the run's start."""
        return self._step

    @property
    def planned_rounds(self) -> int:
        """T: rounds until the planned steps are done; the last may be shorter."""
        return math.ceil(self.steps / self.method.steps_per_round)

    def rounds(self, n: int | None = None) -> Iterator[Round]:
        """Train and yield up to n more rounds (default: to the end of the plan), one at a time.

        Stop taking from it at any time; going on later is the same as never having stopped. A hook that
        returns something true from `on_round_end` ends it.
        """
        self.check_open()
        if n is None:
            n = max(0, self.planned_rounds - len(self.history))
        hooks = list(self.hooks)
        started: list[Hook] = []
        try:
            for hook in hooks:
                started.append(hook)
                hook.on_run_start(self)
            for _ in range(n):
                record = self._round(hooks)
                stop = [hook.on_round_end(self, record) for hook in hooks]
                yield record
                if any(stop):
                    break
        finally:
            for hook in started:
                hook.on_run_end(self)

    def step(self) -> Round:
        """Train one round and return its record."""
        (record,) = self.rounds(1)
        return record

    def run(self, n: int | None = None, progress: bool = True) -> History:
        """Train up to n more rounds (default: to the end of the plan) behind a progress bar."""
        from tqdm import tqdm

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

    def _round(self, hooks: Sequence[Hook]) -> Round:
        self.check_open()
        if self._running:
            raise RuntimeError("This bench is inside a round already; wait for it to end.")
        index, first_step = len(self.history), self._step
        device = self.accelerator.device
        self._running = True
        try:
            with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
                record = self._fit(index, hooks)
        except BaseException:
            # Half a round is no round: go back to where it began, so that the bench stays usable.
            self._step = first_step
            if self.method.rewindable:
                self._restore(index)
            else:
                self._interrupted = True
            raise
        finally:
            self._running = False
        return record

    def _fit(self, index: int, hooks: Sequence[Hook]) -> Round:
        began = time.perf_counter()
        self._extra_passes = self._extra_forwards = 0
        self._first_batch = batches = self.trainer.batches(self._step)
        probe_before = self._measure_probe()
        modules = tuple(self.method.begin_round(self, index))
        if self.trainer.picked:
            self._first_batch = self.trainer.batches(self._step)
        for hook in hooks:
            hook.on_round_start(self, index)
        parameters = list(self.method.trainable().values())
        trained = [*parameters, *self.head.values()]
        optimizer = self.method.make_optimizer(parameters)
        left = self.steps - self._step
        count = min(self.method.steps_per_round, left) if left > 0 else self.method.steps_per_round
        losses, norms, rates, tokens = [], [], [], 0
        self.model.train()
        self._seed_dropout(index)
        for i in range(count):
            batches = self._first_batch if i == 0 else self.trainer.batches(self._step)
            loss, norm, rate = self._train_step(i, batches, optimizer, trained)
            losses.append(loss)
            norms.append(norm)
            rates.append(rate)
            tokens += sum(self.task.tokens(batch) for batch in batches)
            for hook in hooks:
                hook.on_step(self, i, loss)
        self.model.eval()
        heads = [self._head_optimizer] if self._head_optimizer is not None else []
        optimizer_bytes = state_bytes([optimizer, *heads])
        new = self.method.new_parameters(index)
        boosters = self.method.end_round(self, index)
        self.ensemble.append(boosters)
        if self.method.additive:
            self.weights.merge(boosters)
        loss_after = self._measure_first_batch(index)
        self._probe_loss = None
        head = sum(p.numel() for p in self.head.values())
        total = self.history[-1].total_parameters if len(self.history) else head
        values = torch.stack([torch.stack(losses), torch.stack(norms).to(losses[0])]).tolist()
        record = Round(
            index=index,
            method=self.method.name,
            step=self._step,
            modules=modules,
            losses=tuple(values[0]),
            learning_rates=tuple(rates),
            gradient_norms=tuple(values[1]),
            loss_before=values[0][0],
            loss_after=loss_after,
            probe_before=probe_before,
            probe_after=self._measure_probe(),
            tokens=int(self.trainer.summed(torch.tensor(tokens, device=self.accelerator.device))),
            seconds=time.perf_counter() - began,
            peak_parameters=sum(p.numel() for p in trained),
            total_parameters=total + new,
            optimizer_bytes=optimizer_bytes,
            gradient_bytes=sum(p.numel() * p.element_size() for p in trained),
            extra_passes=self._extra_passes,
            extra_forwards=self._extra_forwards,
            measurements={k: v for hook in hooks for k, v in (hook.measure(self) or {}).items()},
        )
        self.history.rounds.append(record)
        if self.method.rewindable:
            self._states[len(self.history)] = self.state()
        return record

    def _train_step(
        self,
        i: int,
        batches: Sequence[Batch],
        optimizer: torch.optim.Optimizer,
        trained: Sequence[nn.Parameter],
    ) -> tuple[Tensor, Tensor, float]:
        """Step i of a round: its loss before the update and its gradients' norm, as scalars, and its rate."""
        self.method.before_backward(self)
        loss = self.trainer.backward(batches, trained)
        self.method.after_backward(self)
        lr = self.method.lr * self.method.rate(self._step, i, self.steps)
        optimizers = {optimizer: lr}
        if self._head_optimizer is not None:  # lives across rounds: a round's re-warm-up is not for it
            factor = self.method.rate(self._step, self.steps, self.steps)
            optimizers[self._head_optimizer] = self.method.head_lr * factor
        norm = self.trainer.update(optimizers, trained, self.method.max_grad_norm)
        self.method.after_step(self)
        for parameter in trained:
            parameter.grad = None
        self._step += 1
        return loss, norm, lr

    def probe_gradients(self, passes: int = 1) -> None:
        """Forward-backward passes on the batches of the next steps without a step, for a method or a hook.

        What hooks on modules saw is what counts: gradients of parameters are cleared again. Counted in the
        record's `extra_passes`.
        """
        trained = [p for p in self.model.parameters() if p.requires_grad]
        trained += [p for p in self.method.trainable().values() if p.requires_grad]
        self.model.train()
        self._seed_dropout(len(self.history))
        for i in range(passes):
            batches = self.trainer.batches(self._step + i) if i else self._first_batch
            self.trainer.backward(batches, trained)
            for parameter in trained:
                parameter.grad = None
        self._extra_passes += passes

    def row_losses(self, rows: Sequence[int]) -> list[float]:
        """Loss of every training row alone; counted in `extra_forwards` as batches of the usual size."""
        training = self.model.training
        self.model.eval()
        with torch.no_grad(), self.accelerator.autocast():
            losses = [
                self.task.loss(self.model, self.trainer.on_device(self.task.batch("train", [row])))
                for row in rows
            ]
        self.model.train(training)
        self._extra_forwards += math.ceil(len(rows) / self.trainer.batch_size)
        return torch.stack(losses).tolist()

    def probe_forward(self, batches: Sequence[Batch]) -> float:
        """Mean loss on a method's own batches, without gradient or dropout; counted in `extra_forwards`."""
        training = self.model.training
        self.model.eval()
        loss = self.trainer.loss(batches)
        self.model.train(training)
        self._extra_forwards += len(batches)
        return loss

    # Measuring

    def _measure_first_batch(self, index: int) -> float:
        """Loss after the round on its first batch, with the dropout masks that its first step saw."""
        if not self.probe_size:
            return math.nan
        self.model.train()
        self._seed_dropout(index)
        loss = self.trainer.loss(self._first_batch)
        self.model.eval()
        return loss

    def _measure_probe(self) -> float:
        if self._probe_loss is None:
            self._probe_loss = self.probe_loss()
        return self._probe_loss

    def probe_loss(self) -> float:
        """Loss of the model as it is now on the fixed probe batch; nan where `probe_size` is 0."""
        if not self.probe_size:
            return math.nan
        if self._probe is None:
            split = "dev" if self.task.size("dev") else "train"
            rows = range(min(self.probe_size, self.task.size(split)))
            size = self.trainer.batch_size
            self._probe = [self.task.batch(split, rows[i : i + size]) for i in rows[::size]]
        self.model.eval()
        return self.trainer.loss(self._probe)

    def evaluate(self, split: str = "dev", limit: int | None = None) -> dict[str, float]:
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
        if upto in (None, len(self.history)):
            return self.method.update(self, name)
        if not self.method.rewindable:
            raise ValueError(f"{self.method.name} keeps only its present update; leave `upto` out.")
        with self.at(upto):
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

    # The end

    def close(self) -> None:
        """Put the model back to its base, bit for bit, and take every hook off it."""
        if not self._open:
            return
        self._open = False
        self.method.close(self)
        self.weights.restore()
        for name, parameter in self.head.items():
            parameter.data.copy_(self._head_before[name])
            parameter.grad = None
        self.model.__dict__.pop("_bench_owner", None)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"{len(self.history)} of {self.planned_rounds} rounds" if self._open else "closed"
        return (
            f"Bench({type(self.model).__name__}, {self.task.name}, {self.method.label()}, "
            f"{len(self.modules)} modules, {state}, hooks: {[type(h).__name__ for h in self.hooks]})"
        )

    # Small things

    def _seed_dropout(self, index: int) -> None:
        seed_dropout(self.seed, index, self.accelerator.process_index)

    def _settings(self) -> RunSettings:
        import accelerate
        import transformers

        truth: Mapping[str, tuple[Tensor, Tensor]] = getattr(self.task, "truth", {})
        weights = sum(math.prod(weight_shape(m)) for m in self.model.modules() if is_linear(m))
        return RunSettings(
            label=self.method.label(),
            options=self.method.options(),
            lr=self.method.lr,
            model=short_name(getattr(self.model, "name_or_path", "")) or type(self.model).__name__,
            data=self.task.name,
            kind=self.task.kind,
            metric=self.task.metric,
            greater_is_better=self.task.greater_is_better,
            steps=self.steps,
            batch_size=self.trainer.batch_size,
            accumulation=self.trainer.accumulation,
            targets=self.targets,
            seed=self.seed,
            data_seed=self.trainer.data_seed,
            probe_size=self.probe_size,
            precision=str(self.accelerator.mixed_precision),
            processes=self.accelerator.num_processes,
            device=self.accelerator.device.type,
            flops_per_token=self.method.flops_per_weight * weights,
            truth_spectrum={n: spectra.singular_values(B, A).tolist() for n, (B, A) in truth.items()},
            versions={m.__name__: m.__version__ for m in (torch, transformers, accelerate)},
            merges=self.method.additive,
            rank_bound=self.method.rank_bound(len(self.modules)),
        )

    def check_open(self) -> None:
        """RuntimeError where this bench cannot be used any more."""
        if not self._open:
            raise RuntimeError("This bench is closed (a newer bench uses its model); make a new one.")
        if self._interrupted:
            name = self.method.name
            raise RuntimeError(f"{name} was interrupted inside a round and cannot go back; make a new bench.")


def resume(
    folder: str | Path,
    model: nn.Module,
    task: Task,
    *,
    hooks: Sequence[Hook] = (),
    accelerator: Accelerator | None = None,
) -> Bench:
    """Go on with a run that `Checkpoint(folder)` saved, from its last complete round, to the same curve.

    model: the base that the run began with, freshly loaded. The method and every option come from the folder;
    a `Checkpoint` on it is among the new bench's hooks.
    """
    from xgblora_lab.methods import make_method

    path = Path(folder) / "history.json"
    if not path.is_file():
        raise FileNotFoundError(f"No run to resume in {folder}: history.json is missing.")
    history = History.load(path)
    settings = history.settings
    options = ("steps", "batch_size", "accumulation", "targets", "seed", "data_seed", "probe_size")
    bench = Bench(
        model,
        task,
        make_method(history.method, **settings.options),
        **{name: getattr(settings, name) for name in options},
        hooks=[*hooks, Checkpoint(folder)],
        accelerator=accelerator,
    )
    bench.restore(folder)
    return bench
