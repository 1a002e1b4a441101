"""One optimizer step: its batch, its gradients over micro-batches and processes, and the update.

The batch of a step depends on the data seed and the step's number alone, never on what ran before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from xgblora_lab import seeds
from xgblora_lab.methods.optimizers import adamw, load_optimizer_tensors, optimizer_tensors
from xgblora_lab.stored import refuse_sharded
from xgblora_lab.tasks.task import row_lengths

if TYPE_CHECKING:
    from accelerate import Accelerator

    from xgblora_lab.tasks.task import Batch, Task

POOL = 32  # batches whose rows are sorted by length among themselves


class Head:
    """A classifier's own parameters: trained beside every method, with one AdamW for the whole run."""

    def __init__(self, parameters: dict[str, nn.Parameter], lr: float, betas: tuple[float, float]) -> None:
        refuse_sharded(parameters, "a head is trained whole; give fully_shard its parameters to ignore.")
        self.parameters, self.lr, self.betas = parameters, lr, betas
        self._before = {n: p.detach().to("cpu", copy=True) for n, p in parameters.items()}
        self.optimizer = self._new_optimizer()
        for parameter in parameters.values():
            parameter.requires_grad_(True)

    def _new_optimizer(self) -> Optimizer | None:
        return adamw(list(self.parameters.values()), self.lr, self.betas) if self.parameters else None

    def state(self) -> dict[str, Tensor]:
        """Parameters and optimizer as named tensors on the CPU."""
        tensors = {f"head/{n}": p.detach().to("cpu", copy=True) for n, p in self.parameters.items()}
        if self.optimizer is not None:
            tensors |= optimizer_tensors(self.optimizer, self.parameters, "head_optimizer/")
        return tensors

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        for name, parameter in self.parameters.items():
            parameter.data.copy_(state[f"head/{name}"])
            parameter.grad = None
        self.optimizer = self._new_optimizer()
        if self.optimizer is not None:
            load_optimizer_tensors(self.optimizer, self.parameters, state, "head_optimizer/")

    def restore(self) -> None:
        """Make the parameters what they were before the run."""
        for name, parameter in self.parameters.items():
            parameter.data.copy_(self._before[name])
            parameter.grad = None


class Trainer:
    """Batches, gradients and updates of a model on a task."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        accelerator: Accelerator,
        batch_size: int,
        accumulation: int,
        data_seed: int,
    ) -> None:
        self.model, self.task, self.accelerator = model, task, accelerator
        self.batch_size, self.accumulation, self.data_seed = batch_size, accumulation, data_seed
        self._lengths = None if (lengths := row_lengths(task)) is None else np.asarray(lengths)
        self._epoch_order: tuple[int, np.ndarray] | None = None
        self.picked: Mapping[int, list[int]] = {}  # step -> rows that a method chose for it

    def batch_indices(self, step: int) -> list[int]:
        """Rows of the training split in this process's batch at a step."""
        return self.picked[step] if step in self.picked else self.planned_rows(step)

    def planned_rows(self, step: int) -> list[int]:
        """The rows that the data seed gives a step; every epoch has an order of its own."""
        start = (step * self.accelerator.num_processes + self.accelerator.process_index) * self.batch_size
        n = self.task.size("train")
        return [int(self._order(i // n, n)[i % n]) for i in range(start, start + self.batch_size)]

    def _order(self, epoch: int, n: int) -> np.ndarray:
        if self._epoch_order is None or self._epoch_order[0] != epoch:
            self._epoch_order = epoch, self._ordered(epoch, n)
        return self._epoch_order[1]

    def _ordered(self, epoch: int, n: int) -> np.ndarray:
        """Every row once, in batches of similar length where rows differ in length: less padding."""
        rng = np.random.default_rng(seeds.seed_of("order", self.data_seed, epoch))
        order = rng.permutation(n)
        if self._lengths is None or self._lengths.min() == self._lengths.max():
            return order
        size = self.batch_size * self.accelerator.num_processes
        begun = -epoch * n % size  # rows that complete the last epoch's last batch
        whole = begun + (n - begun) // size * size if n > begun else begun
        batches: list[np.ndarray] = []
        for start in range(begun, whole, POOL * size):
            pool = order[start : min(start + POOL * size, whole)]
            pool = pool[np.argsort(self._lengths[pool], kind="stable")]
            batches += list(pool.reshape(-1, size))
        shuffled = [batches[i] for i in rng.permutation(len(batches))]
        return np.concatenate([order[:begun], *shuffled, order[whole:]])

    def batches(self, step: int) -> list[Batch]:
        """The micro-batches of a step, on the CPU."""
        rows = self.batch_indices(step)
        size = math.ceil(len(rows) / self.accumulation)
        return [self.task.batch("train", rows[i : i + size]) for i in range(0, len(rows), size)]

    def backward(self, batches: Sequence[Batch], trained: Sequence[nn.Parameter]) -> Tensor:
        """Gradients of the mean loss over all micro-batches and processes; returns that loss.

        Every term of the loss counts the same, however unevenly terms are spread over micro-batches and
        processes: two processes give what one with twice the batch gives.
        """
        shares = [1.0] if len(batches) == self.accelerator.num_processes == 1 else self._shares(batches)
        mean = torch.zeros((), device=self.accelerator.device)
        for batch, share in zip(batches, shares, strict=True):
            with self.accelerator.autocast():
                loss = self.task.loss(self.model, self.on_device(batch)) * share
            self.accelerator.backward(loss)
            mean = mean + loss.detach()
        if self.accelerator.num_processes > 1:
            self.sum_gradients(trained)
        return self.summed(mean)

    def sum_gradients(self, trained: Sequence[nn.Parameter]) -> None:
        """Make every gradient its sum over processes."""
        gradients = [p.grad for p in trained if p.grad is not None]
        flat = self.summed(torch.cat([g.flatten() for g in gradients]))
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def _shares(self, batches: Sequence[Batch]) -> list[float]:
        weights = [float(self.task.weight(batch)) for batch in batches]
        total = torch.tensor(sum(weights), device=self.accelerator.device, dtype=torch.float64)
        return [weight / float(self.summed(total)) for weight in weights]

    def update(
        self, optimizers: Mapping[Optimizer, float], trained: Sequence[nn.Parameter], max_norm: float | None
    ) -> Tensor:
        """Step each optimizer at its learning rate; returns the gradients' norm. The gradients stay."""
        scaler = self.accelerator.scaler  # fp16 only
        for optimizer, lr in optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = lr * group.get("lr_ratio", 1.0)
            if scaler is not None:
                scaler.unscale_(optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        if max_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(trained, max_norm, norm)
        for optimizer in optimizers:
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
        if scaler is not None:
            scaler.update()
        return norm.detach()

    @torch.no_grad()
    def loss(self, batches: Sequence[Batch]) -> float:
        """Mean loss over batches in the model's present mode, all processes together."""
        total = torch.zeros(2, dtype=torch.float64)
        for batch in batches:
            weight = float(self.task.weight(batch))
            with self.accelerator.autocast():
                loss = self.task.loss(self.model, self.on_device(batch))
            total += torch.tensor([float(loss) * weight, weight], dtype=torch.float64)
        total = self.summed(total.to(self.accelerator.device))
        return float(total[0] / total[1])

    def summed(self, tensor: Tensor) -> Tensor:
        """The tensor summed over processes (itself where there is one)."""
        return tensor if self.accelerator.num_processes == 1 else self.accelerator.reduce(tensor, "sum")

    def seed_dropout(self, seed: int, index: int) -> None:
        """Seed the global generators, which dropout draws from, for round `index`."""
        on_cpu = self.accelerator.device.type == "cpu"  # torch.manual_seed spends milliseconds on idle GPUs
        seed_all = torch.default_generator if on_cpu else torch
        seed_all.manual_seed(seeds.seed_of("dropout", seed, index, self.accelerator.process_index))

    def on_device(self, batch: Batch) -> Batch:
        """The batch on the accelerator's device."""
        return {key: value.to(self.accelerator.device) for key, value in batch.items()}


def state_bytes(optimizers: Sequence[Optimizer]) -> int:
    """Bytes of all tensors in the optimizers' states."""
    values = [value for o in optimizers for entry in o.state.values() for value in entry.values()]
    return sum(t.nbytes for t in values if isinstance(t, Tensor))
