"""What is measured beside the steps: the residual loss before and after a round, and methods' probes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from xgblora_lab.bench.step import Trainer

if TYPE_CHECKING:
    from xgblora_lab.tasks.task import Batch


class Measure:
    """Passes of a model that are no training steps, and their count."""

    def __init__(self, trainer: Trainer, seed: int, probe_size: int) -> None:
        self.trainer, self.seed, self.probe_size = trainer, seed, probe_size
        self.passes = self.forwards = 0  # of this round, beyond its steps
        self.first_batch: list[Batch] = []  # of this round
        self._probe: list[Batch] | None = None
        self._probed: tuple[object, float] | None = None  # the weights' versions, and their probe loss

    def begin_round(self, step: int) -> None:
        """A round begins at this step."""
        self.passes = self.forwards = 0
        self.first_batch = self.trainer.batches(step)

    def weights_changed(self) -> None:
        """The model is another one: nothing measured holds for it."""
        self._probed = None

    def gradients(self, step: int, index: int, trained: Sequence[nn.Parameter], passes: int) -> None:
        """Forward-backward passes on the batches from `step` on; parameters' gradients are cleared again."""
        self.trainer.model.train()
        self.trainer.seed_dropout(self.seed, index)
        for i in range(passes):
            batches = self.trainer.batches(step + i) if i else self.first_batch
            self.trainer.backward(batches, trained)
            for parameter in trained:
                parameter.grad = None
        self.passes += passes

    def row_losses(self, rows: Sequence[int]) -> list[float]:
        """Loss of every training row alone, without dropout; counted as batches of the usual size."""
        trainer = self.trainer
        with self._evaluating(), torch.no_grad(), trainer.accelerator.autocast():
            batches = (trainer.on_device(trainer.task.batch("train", [row])) for row in rows)
            losses = [trainer.task.loss(trainer.model, batch) for batch in batches]
        self.forwards += math.ceil(len(rows) / trainer.batch_size)
        return torch.stack(losses).tolist()

    def forward(self, batches: Sequence[Batch]) -> float:
        """Mean loss on these batches, without gradient or dropout; counted."""
        self.forwards += len(batches)
        with self._evaluating():
            return self.trainer.loss(batches)

    def after_round(self, index: int) -> float:
        """Loss on the round's first batch, with the dropout masks that its first step saw."""
        if not self.probe_size:
            return math.nan
        self.trainer.model.train()
        self.trainer.seed_dropout(self.seed, index)
        loss = self.trainer.loss(self.first_batch)
        self.trainer.model.eval()
        return loss

    def probe(self) -> float:
        """Loss on the probe batch, measured once for the same weights.

        A hook may have written to the model since: its tensors count what is written to them in place.
        """
        model, device = self.trainer.model, self.trainer.accelerator.device
        now = [(id(t), t._version) for t in (*model.parameters(), *model.buffers())]
        changed = torch.tensor(float(self._probed is None or self._probed[0] != now), device=device)
        if self._probed is None or self.trainer.summed(changed):  # all processes measure, or none
            self._probed = now, self.probe_loss()
        return self._probed[1]

    def probe_loss(self) -> float:
        """Loss of the model as it is now on the probe batch; nan where there is none."""
        task, size = self.trainer.task, max(self.trainer.batch_size, 32)  # no graph, little memory
        if self._probe is None:
            split = "dev" if task.size("dev") else "train"
            rows = range(min(self.probe_size, task.size(split)))
            self._probe = [task.batch(split, rows[i : i + size]) for i in rows[::size]]
        if not self._probe:
            return math.nan
        self.trainer.model.eval()
        return self.trainer.loss(self._probe)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        training = self.trainer.model.training
        self.trainer.model.eval()
        yield
        self.trainer.model.train(training)
