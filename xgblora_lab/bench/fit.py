"""One round from its beginning to its record: set up, optimizer steps, merge, measure."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from xgblora_lab.bench.hooks import Hook, Run
from xgblora_lab.bench.measure import Measure
from xgblora_lab.bench.records import Round
from xgblora_lab.bench.step import Head, Trainer, state_bytes
from xgblora_lab.lowrank.linear import blocks

if TYPE_CHECKING:
    from xgblora_lab.tasks.task import Batch

    Given = tuple[list[Batch], Tensor]  # the micro-batches of a step, and their mean loss


class Fit:
    """Runs the rounds of one bench, which methods and hooks see as a `Run`."""

    def __init__(self, run: Run, trainer: Trainer, head: Head, measure: Measure) -> None:
        self.run, self.trainer, self.head, self.measure = run, trainer, head, measure
        self.step = 0  # optimizer steps done since the run's start
        self._block = {name: i for i, names in enumerate(blocks(run.modules)) for name in names}

    def round(self, index: int, hooks: Sequence[Hook]) -> Round:
        """Train round `index` on the task's batches and return its record."""
        steps = self.by_steps(index, hooks)
        trained, batches = next(steps), self.measure.first_batch
        while True:
            loss = self.trainer.backward(batches, trained)
            try:
                steps.send((batches, loss))
            except StopIteration as end:
                return end.value
            batches = self.trainer.batches(self.step)

    def by_steps(self, index: int, hooks: Sequence[Hook]) -> Generator[list[nn.Parameter], Given, Round]:
        """Round `index` for whoever makes its gradients, here or in a loop of somebody else's.

        Before each step it yields the trained parameters. Once their gradients are there, it is sent the
        step's batches and loss. It returns the record.
        """
        began = time.perf_counter()
        run, method, measure = self.run, self.run.method, self.measure
        self.trainer.picked = {}
        measure.begin_round(self.step)
        probe_before = measure.probe()
        modules = tuple(method.begin_round(run, index))
        self.trainer.picked = method.pick_rows(run)
        if self.trainer.picked:
            measure.first_batch = self.trainer.batches(self.step)
        for hook in hooks:
            hook.on_round_start(run, index)
        parameters = list(method.trainable().values())
        trained = [*parameters, *self.head.parameters.values()]
        optimizer = method.make_optimizer(parameters)
        fitted = yield from self._steps(index, optimizer, trained, hooks)
        optimizers = [o for o in (optimizer, self.head.optimizer) if o is not None]
        own = sum(p.numel() for p in self.head.parameters.values())
        total_before = run.history[-1].total_parameters if index else own
        costs: dict[str, Any] = {
            "optimizer_bytes": state_bytes(optimizers),
            "peak_parameters": sum(p.numel() for p in trained),
            "total_parameters": total_before + method.new_parameters(index),
            "gradient_bytes": sum(p.numel() * p.element_size() for p in trained),
        }
        boosters = method.end_round(run, index)
        self.trainer.picked = {}
        run.ensemble.append(boosters)
        if method.additive:
            run.weights.merge(boosters)
        measure.weights_changed()
        return Round(
            index=index,
            method=method.name,
            step=self.step,
            modules=modules,
            lowest_block=min((self._block[name] for name in modules), default=0),
            loss_before=fitted["losses"][0],
            loss_after=measure.after_round(index),
            probe_before=probe_before,
            probe_after=measure.probe(),
            seconds=time.perf_counter() - began,
            extra_passes=measure.passes,
            extra_forwards=measure.forwards,
            measurements={k: v for hook in hooks for k, v in (hook.measure(run) or {}).items()},
            **fitted,
            **costs,
        )

    def _steps(
        self, index: int, optimizer: Optimizer, trained: list[nn.Parameter], hooks: Sequence[Hook]
    ) -> Generator[list[nn.Parameter], Given, dict[str, Any]]:
        """The optimizer steps of a round: the fields of its record that they give."""
        run, tokens = self.run, 0
        losses: list[Tensor] = []
        norms: list[Tensor] = []
        rates: list[float] = []
        run.model.train()
        self.trainer.seed_dropout(run.seed, index)
        while True:
            run.method.before_backward(run)
            batches, loss = yield trained
            if not losses:
                self.measure.first_batch = batches
            norm, rate = self.one_step(len(losses), optimizer, trained)
            losses.append(loss)
            norms.append(norm)
            rates.append(rate)
            tokens += sum(run.task.tokens(batch) for batch in batches)
            for hook in hooks:
                hook.on_step(run, len(losses) - 1, loss)
            if self.step == run.steps or run.method.is_fitted(run, losses):
                break
        run.model.eval()
        measured = torch.stack([torch.stack(losses), torch.stack(norms).to(losses[0])]).tolist()
        return {
            "losses": tuple(measured[0]),
            "gradient_norms": tuple(measured[1]),
            "learning_rates": tuple(rates),
            "tokens": int(self.trainer.summed(torch.tensor(tokens, device=run.accelerator.device))),
        }

    def one_step(self, i: int, optimizer: Optimizer, trained: Sequence[nn.Parameter]) -> tuple[Tensor, float]:
        """Step i of a round, whose gradients are there: their norm, as a scalar, and the step's rate."""
        run, method = self.run, self.run.method
        method.after_backward(run)
        lr = method.lr * method.rate(self.step, i, run.steps)
        optimizers = {optimizer: lr}
        if self.head.optimizer is not None:  # lives across rounds: a round's re-warm-up is not for it
            optimizers[self.head.optimizer] = self.head.lr * method.rate(self.step, run.steps, run.steps)
        norm = self.trainer.update(optimizers, trained, method.max_grad_norm)
        method.after_step(run)
        for parameter in trained:
            parameter.grad = None
        self.step += 1
        return norm, lr
