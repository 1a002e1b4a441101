"""A small language-modelling task on random tokens, and a classification task: enough to run the loop on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn


class ToyTask:
    """Random token rows of unequal length; padding is -100 in the labels.

    kind: "causal-lm" or "seq2seq-lm" (labels are the inputs), or "classification" (label = first token odd).
    """

    metric, greater_is_better = "loss", False

    def __init__(
        self, kind: str = "causal-lm", rows: int = 48, length: int = 10, vocabulary: int = 60
    ) -> None:
        self.name, self.kind = "toy", kind
        generator = torch.Generator().manual_seed(7)
        self.tokens_ = torch.randint(5, vocabulary, (rows, length), generator=generator)
        self.lengths = torch.randint(4, length + 1, (rows,), generator=generator)
        self.dev = 16

    def size(self, split: str = "train") -> int:
        return {"train": len(self.tokens_) - self.dev, "dev": self.dev}.get(split, 0)

    def batch(self, split: str, indices: Sequence[int]) -> dict[str, Tensor]:
        rows = torch.tensor(list(indices)) + (self.size("train") if split == "dev" else 0)
        tokens, lengths = self.tokens_[rows], self.lengths[rows]
        mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).long()
        labels = tokens[:, 0] % 2 if self.kind == "classification" else tokens.masked_fill(mask == 0, -100)
        return {"input_ids": tokens * mask, "attention_mask": mask, "labels": labels}

    def weight(self, batch: dict[str, Tensor]) -> int:
        labels = batch["labels"]
        if self.kind == "classification":
            return len(labels)
        return int((labels[:, 1:] != -100).sum() if self.kind == "causal-lm" else (labels != -100).sum())

    def tokens(self, batch: dict[str, Tensor]) -> int:
        return int(batch["attention_mask"].sum())

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        if self.kind != "causal-lm":
            return model(**batch).loss
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        logits = model(**inputs).logits[:, :-1]  # in the model's own precision: transformers' loss is float32
        return nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str = "dev", limit: int | None = None) -> dict[str, float]:
        return {"loss": float(self.loss(model, self.batch(split, range(limit or self.size(split)))))}

    @torch.no_grad()
    def predict(self, model: nn.Module, split: str = "dev", limit: int | None = None) -> np.ndarray:
        logits = model(**self.batch(split, range(limit or self.size(split)))).logits
        return logits.float().numpy()


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Whether two snapshots are bit-identical."""
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)
