"""A bench whose steps a loop of somebody else's makes, which brings batches, losses and gradients."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from xgblora_lab.bench.bench import Bench
from xgblora_lab.bench.records import Round
from xgblora_lab.bench.settings import settings_of
from xgblora_lab.bench.step import Trainer
from xgblora_lab.lowrank.linear import head_parameters
from xgblora_lab.tasks.models import language_model_kind
from xgblora_lab.tasks.task import IGNORED, evaluating

if TYPE_CHECKING:
    from xgblora_lab.bench.fit import Given
    from xgblora_lab.tasks.task import Batch

ROWS = 32  # in a batch of an evaluation


class LoaderTask:
    """A model's own loss, on the rows of PyTorch data loaders; the members are those of `tasks.task.Task`.

    Parameters
    ----------
    model : nn.Module
        Called as `model(**batch)`, which gives a loss.

    Attributes
    ----------
    name : str
        What the training data calls itself, else its class.
    loaders : dict of str to DataLoader
        By split, as far as they are known. A loader over an iterable data set has no rows to ask for.
    """

    metric, greater_is_better = "loss", False

    def __init__(self, model: nn.Module) -> None:
        self.name, self.kind = "", kind_of(model)
        self.loaders: dict[str, Any] = {}

    def bring(self, split: str, loader: Any) -> None:
        """Take the rows of a split from this loader."""
        self.loaders[split] = loader
        data = getattr(loader, "dataset", None)
        if split == "train":
            self.name = str(getattr(data, "builder_name", None) or type(data).__name__)

    def size(self, split: str = "train") -> int:
        """Number of rows; 0 where there is no such loader, or it cannot tell."""
        data = getattr(self.loaders.get(split), "dataset", None)
        return len(data) if isinstance(data, Sized) and hasattr(data, "__getitem__") else 0

    def identity(self) -> str:
        """What tells this data from other data: rows would not, as a collator may draw at random."""
        return f"{self.size()} rows of {self.name}"

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        """Those rows through the loader's collator; one that draws at random draws the same each time."""
        loader = self.loaders[split]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            rows = loader.collate_fn([loader.dataset[int(i)] for i in indices])
        return {k: v for k, v in rows.items() if isinstance(v, Tensor)}

    def weight(self, batch: Batch) -> int:
        """Label positions that count, where labels are a sequence; else rows."""
        labels = batch.get("labels")
        if labels is None or labels.ndim < 2 or labels.is_floating_point():
            return len(next(iter(batch.values())))
        return int((labels[:, 1:] if self.kind == "causal-lm" else labels).ne(IGNORED).sum())

    def tokens(self, batch: Batch) -> int:
        """Input tokens without padding; rows, where the inputs are no tokens."""
        if "attention_mask" in batch:
            return int(batch["attention_mask"].sum())
        return batch["input_ids"].numel() if "input_ids" in batch else len(next(iter(batch.values())))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The model's own."""
        return loss_of(model(**batch))

    def evaluate(self, model: nn.Module, split: str = "dev", limit: int | None = None) -> dict[str, float]:
        """The mean loss over the first `limit` rows."""
        rows, total, terms = range(self.size(split))[:limit], 0.0, 0
        with evaluating(model) as device:
            for start in range(0, len(rows), ROWS):
                batch = self.batch(split, rows[start : start + ROWS])
                weight = self.weight(batch)
                total += float(self.loss(model, {k: v.to(device) for k, v in batch.items()})) * weight
                terms += weight
        if not terms:
            raise ValueError(f"There are no {split} rows to ask for; let Trainer.evaluate bring them first.")
        return {"loss": total / terms}

    def predict(self, model: nn.Module, split: str = "dev", limit: int | None = None) -> np.ndarray:
        """Classes, values, or (language models) every row's mean loss, of the first `limit` rows."""
        found = []
        with evaluating(model) as device:
            for row in range(self.size(split))[:limit]:
                batch = {k: v.to(device) for k, v in self.batch(split, [row]).items()}
                output = model(**batch)
                value = {"classification": lambda o: o.logits.argmax(-1), "regression": lambda o: o.logits}
                found.append(value.get(self.kind, loss_of)(output).reshape(-1)[0].cpu())
        return torch.stack(found).numpy()


class GivenBatches(Trainer):
    """The batches that the other loop brings, and the random state that the first one of a round met."""

    first: list[Batch]
    counts_all = True  # whether items are counted over all processes
    _random: tuple[Tensor, Tensor | None]

    def begin(self, batches: list[Batch]) -> None:
        """A round begins with these micro-batches, to which the list may add; a forward pass comes next."""
        device = self.accelerator.device
        on_gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        self.first, self._random = batches, (torch.get_rng_state(), on_gpu)

    def batches(self, step: int) -> list[Batch]:
        """What the round begins with: nothing else can be asked for."""
        return self.first

    def loss(self, batches: Sequence[Batch]) -> float:
        """The mean loss; of the batches that a round begins with as the other loop counts it."""
        if batches is not self.first:
            return super().loss(batches)
        losses = []
        for batch in batches:
            with torch.no_grad(), self.accelerator.autocast():
                losses.append(self.task.loss(self.model, self.on_device(batch)))
        return float(self.step_loss(losses, batches))

    def step_loss(self, losses: Sequence[Tensor], batches: Sequence[Batch]) -> Tensor:
        """The loss of a step from those of its micro-batches, as Trainer counts it, all processes together.

        Where it tells the model the number of all items in the step, the losses are shares of one mean.
        """
        total, processes = torch.stack(list(losses)).sum(), self.accelerator.num_processes
        if "num_items_in_batch" in batches[0]:
            return self.summed(total) / (1 if self.counts_all else processes)
        return self.summed(total / len(losses)) / processes

    def seed_dropout(self, seed: int, index: int) -> None:
        """Make dropout draw again what it draws in the round's first step."""
        torch.set_rng_state(self._random[0])
        if self._random[1] is not None:
            torch.cuda.set_rng_state(self._random[1], self.accelerator.device)

    def planned_rows(self, step: int) -> list[int]:
        """ValueError: the rows to come are the other loop's affair."""
        raise ValueError(
            "The data loader decides which rows come next: a method that picks rows, as with "
            "examples='hardest', runs in a Bench."
        )


class DrivenBench(Bench):
    """A bench that is sent its steps; everything else is a bench's."""

    trainer_class = GivenBatches
    trainer: GivenBatches
    stopped = False  # whether a hook has asked for the end

    def plan(self, steps: int) -> None:
        """Set the number of optimizer steps, which the other loop knows when it begins."""
        self.steps, self.stopped = steps, False
        self.history.settings = settings_of(self, self.trainer, self.targets, self.probe_size)

    def driven(self) -> Generator[list[nn.Parameter] | Round, Given, None]:
        """`rounds`, step by step: yields what is to be trained next, or a record where a round is over.

        After parameters it is sent the step's batches and their mean loss, when the gradients are there. A
        round that is closed before its end leaves no trace.
        """
        with self.running() as hooks:
            while self.trained_steps < self.steps and not self.stopped:
                self.check_open()
                self._past.check_idle()
                with self._past.changing():
                    record = yield from self._fit.by_steps(len(self.history), hooks)
                    self._past.keep(record)
                ends = [hook.on_round_end(self, record) for hook in hooks]
                self.stopped = any(ends)
                yield record

    def forked(self) -> AbstractContextManager[None]:
        """A block whose random draws do not change what is drawn after it."""
        device = self.accelerator.device
        return torch.random.fork_rng([device.index or 0] if device.type == "cuda" else [])

    @property
    def next_rate(self) -> float:
        """The learning rate of the step that comes next, in a round that has begun."""
        done = self.trained_steps - (self.history[-1].step if len(self.history) else 0)
        return self.method.lr * self.method.rate(self.trained_steps, done, self.steps)

    def average_gradients(self) -> None:
        """Make the boosters' gradients their mean over processes."""
        if (processes := self.accelerator.num_processes) > 1:
            trained = list(self.method.trainable().values())
            self.trainer.sum_gradients(trained)
            for parameter in trained:
                if parameter.grad is not None:
                    parameter.grad.div_(processes)


def kind_of(model: nn.Module) -> str:
    """The kind of task that a model of transformers does, by its head; `"own"` for any other model."""
    config = getattr(model, "config", None)
    if config is None:
        return "own"
    if getattr(model, "get_output_embeddings", lambda: None)() is not None:
        return language_model_kind(config)
    if not head_parameters(model):
        return "own"
    one = getattr(config, "num_labels", None) == 1 or config.problem_type == "regression"
    return "regression" if one else "classification"


def loss_of(output: Any) -> Tensor:
    """The loss in what a model of transformers returns; ValueError where there is none."""
    loss = output.get("loss") if isinstance(output, Mapping) else output[0] if len(output) else None
    if not isinstance(loss, Tensor) or loss.ndim:
        raise ValueError(
            "The model returned no loss for this batch: the rounds record the model's own loss, so give it "
            "labels, and leave out what computes another loss (compute_loss_func, label_smoothing_factor)."
        )
    return loss
