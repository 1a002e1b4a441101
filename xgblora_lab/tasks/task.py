"""What the loop trains on: the protocol of a task, its batches and examples."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]

METRICS = {  # by kind; the first is the default
    "classification": ("accuracy", "matthews", "f1", "loss"),
    "regression": ("mse", "pearson", "loss"),
    "causal-lm": ("loss", "perplexity", "bits_per_byte"),
    "prompt-answer": ("loss", "perplexity"),
    "seq2seq-lm": ("loss", "perplexity"),
}

GREATER_IS_BETTER = ("accuracy", "matthews", "f1", "pearson")

IGNORED = -100  # a label position that is not scored


class Task(Protocol):
    """What the loop trains on. Any object with these members works, with any torch model.

    Attributes
    ----------
    name, kind, metric : str
        Of the task; a key of `METRICS` or a word of its own; the score that a race ranks by.

    Notes
    -----
    Two more members are optional, and therefore not declared here. `lengths(split) -> Sequence[int]`: what
    `tokens` counts in every row of the split. With it the loop can put rows of similar length into a batch,
    which saves padding. A task whose rows are all alike leaves it out. Ask through `row_lengths`.
    `identity() -> str`: what tells the data from other data, where rows do not as `batch` draws at random.
    """

    name: str
    kind: str
    metric: str

    @property
    def greater_is_better(self) -> bool:
        """Of the metric."""

    def size(self, split: str = "train") -> int:
        """Number of examples; 0 where the data has no such split."""

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        """Those examples on the CPU, padded; depends on nothing but the arguments."""

    def weight(self, batch: Batch) -> int:
        """How many terms the loss of this batch averages over."""

    def tokens(self, batch: Batch) -> int:
        """Input tokens without padding."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean over `weight(batch)` terms; the batch lies on the model's device."""

    def evaluate(self, model: nn.Module, split: str = "dev", limit: int | None = None) -> dict[str, float]:
        """Scores, "loss" among them, over the first `limit` examples; train / eval mode stays as it was."""

    def predict(self, model: nn.Module, split: str = "dev", limit: int | None = None) -> np.ndarray:
        """One prediction per example."""


def row_lengths(task: Task, split: str = "train") -> Sequence[int] | None:
    """The tokens of every row of a split without padding, or None where the task has no `lengths`.

    Parameters
    ----------
    task : Task
        With or without the optional member `lengths`.
    split : str
        "train", "dev" or "test".

    Returns
    -------
    sequence of int, or None
        One number a row, in the split's order.
    """
    lengths = getattr(task, "lengths", None)
    return lengths(split) if callable(lengths) else None


@dataclass(frozen=True)
class Example:
    """One tokenised row.

    Attributes
    ----------
    ids : list of int
        Input tokens.
    label : int, float or list of int
        Class, value, or label tokens: beside `ids` in decoders, where IGNORED is not scored.
    types : list of int or None
        Token types of a pair of texts, where the tokenizer has them.
    text_bytes : int
        UTF-8 bytes of the scored text, in language modelling only.
    """

    ids: list[int]
    label: int | float | list[int]
    types: list[int] | None = None
    text_bytes: int = 0


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """Evaluation mode without gradients, for the length of a `with` block.

    Parameters
    ----------
    model : nn.Module
        With at least one parameter. Each of its modules gets its own mode back, whatever happens.

    Yields
    ------
    torch.device
        Of the model's first parameter.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        for module, mode in modes:
            module.training = mode
