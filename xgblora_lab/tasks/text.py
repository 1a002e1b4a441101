"""What a model is tuned on: the protocol of a task, and text tasks of every kind by `load_task`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xgblora_lab.tasks import rows
from xgblora_lab.tasks.task import GREATER_IS_BETTER, IGNORED, METRICS, Batch, Example, evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


EVALUATION_BATCH = 64  # rows


@dataclass
class TextTask:
    """A task on tokenised text. Made by `load_task`.

    The loss is a mean in nats (squared error for regression) over examples, or over label tokens in the
    language-model kinds. `labels` holds the class names; `truncated` the share of rows cut, per split.
    """

    name: str
    kind: str
    metric: str
    splits: dict[str, list[Example]]
    pad_token_id: int
    labels: list[str] = field(default_factory=list)
    truncated: dict[str, float] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)  # split -> why it is not here

    @property
    def greater_is_better(self) -> bool:
        return self.metric in GREATER_IS_BETTER

    def size(self, split: str = "train") -> int:
        return len(self.splits.get(split, ()))

    def lengths(self, split: str = "train") -> list[int]:
        """Tokens of every row without padding, in the split's order: what `tokens` counts in each.

        Raises
        ------
        ValueError
            Where the data has no such split.
        """
        both = self.kind == "seq2seq-lm"  # the answer is read by the decoder
        return [len(e.ids) + (len(e.label) if both else 0) for e in self._rows(split)]  # type: ignore[arg-type]

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        """input_ids and attention_mask (N, S), padded on the right; labels (N,) or (N, S)."""
        examples = self._rows(split)
        chosen = [examples[i] for i in indices]
        batch = {
            "input_ids": _padded([e.ids for e in chosen], self.pad_token_id),
            "attention_mask": _padded([[1] * len(e.ids) for e in chosen], 0),
        }
        if chosen[0].types is not None:
            batch["token_type_ids"] = _padded([e.types or [] for e in chosen], 0)
        labels = [e.label for e in chosen]
        batch["labels"] = _padded(labels, IGNORED) if self._is_lm else torch.tensor(labels)
        return batch

    def weight(self, batch: Batch) -> int:
        return int((self._targets(batch) != IGNORED).sum()) if self._is_lm else len(batch["labels"])

    def tokens(self, batch: Batch) -> int:
        count = int(batch["attention_mask"].sum())
        return count + (self.weight(batch) if self.kind == "seq2seq-lm" else 0)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = self._logits(model, batch)
        return self._terms(logits, batch).sum() / self.weight(batch)

    def evaluate(self, model: nn.Module, split: str = "dev", limit: int | None = None) -> dict[str, float]:
        """Exact means over the split: classification {loss, accuracy, matthews, f1}, regression {loss, mse,
        pearson}, language models {loss, perplexity} and, for kind "causal-lm", bits_per_byte."""
        losses, weights, predictions = self._score(model, split, limit)
        loss = float(losses.sum() / weights.sum())
        examples = self._rows(split)[:limit]
        if self.kind == "classification":
            truth = np.array([e.label for e in examples])
            return {"loss": loss, **classification_scores(truth, predictions, len(self.labels))}
        if self.kind == "regression":
            truth = np.array([e.label for e in examples], np.float64)
            return {"loss": loss, "mse": loss, "pearson": _correlation(truth, predictions)}
        scores = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        if self.kind == "causal-lm":
            scores["bits_per_byte"] = float(losses.sum()) / math.log(2) / sum(e.text_bytes for e in examples)
        return scores

    def predict(self, model: nn.Module, split: str = "dev", limit: int | None = None) -> np.ndarray:
        """(n,): class indices, regression values, or each row's mean loss in nats (language models)."""
        losses, weights, predictions = self._score(model, split, limit)
        return losses / weights if self._is_lm else predictions

    @property
    def _is_lm(self) -> bool:
        return self.kind not in ("classification", "regression")

    def _rows(self, split: str) -> list[Example]:
        if split not in self.splits:
            reason = self.absent.get(split, "the data has no such part")
            raise ValueError(f"{self.name} has no {split} split ({reason}); it has {', '.join(self.splits)}.")
        return self.splits[split]

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        inputs = (
            dict(batch) if self.kind == "seq2seq-lm" else {k: v for k, v in batch.items() if k != "labels"}
        )
        options = {"use_cache": False} if self._is_lm else {}
        logits = model(**inputs, **options).logits
        return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits

    def _targets(self, batch: Batch) -> Tensor:
        """The labels that are scored: without the first position in decoders, which nothing predicts."""
        return batch["labels"][:, 1:] if self.kind in ("causal-lm", "prompt-answer") else batch["labels"]

    def _terms(self, logits: Tensor, batch: Batch) -> Tensor:
        """The terms of the loss: (N,), or (N, S) with zeros where nothing is scored."""
        targets = self._targets(batch)
        if self.kind == "regression":
            return (logits.squeeze(-1) - targets.to(logits.dtype)).square()
        if self.kind in ("causal-lm", "prompt-answer"):
            logits = logits[:, :-1]
        if self._is_lm:
            return F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
        return F.cross_entropy(logits, targets, reduction="none")

    def _score(
        self, model: nn.Module, split: str, limit: int | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Summed loss, number of terms and prediction of every row, in the split's order."""
        examples = self._rows(split)[:limit]
        lengths = self.lengths(split)
        order = sorted(range(len(examples)), key=lengths.__getitem__)
        losses, weights, predictions = (np.zeros(len(examples)) for _ in range(3))
        with evaluating(model) as device:
            for start in range(0, len(order), EVALUATION_BATCH):
                indices = order[start : start + EVALUATION_BATCH]
                batch = {k: v.to(device) for k, v in self.batch(split, indices).items()}
                logits = self._logits(model, batch)
                terms = self._terms(logits, batch).double()
                losses[indices] = terms.flatten(1).sum(1).cpu() if self._is_lm else terms.cpu()
                if self._is_lm:
                    weights[indices] = (self._targets(batch) != IGNORED).sum(1).cpu()
                else:
                    weights[indices] = 1
                    best = logits.argmax(-1) if self.kind == "classification" else logits.squeeze(-1)
                    predictions[indices] = best.double().cpu()
        return losses, weights, predictions.astype(int) if self.kind == "classification" else predictions


def load_task(
    data: str | Path | Mapping[str, rows.Table] = "pydocs",
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    kind: str | None = None,
    text: str | None = None,
    text_b: str | None = None,
    label: str | None = None,
    prompt: str | None = None,
    answer: str | None = None,
    max_length: int = 128,
    limit: int | None = None,
    metric: str | None = None,
    encoder_decoder: bool = False,
    seed: int = 0,
) -> TextTask:
    """Read and tokenise a data set.

    data: "pydocs"; a folder with train / dev / test files; one file (split 80 / 10 / 10 % by row); a hub id
      ("name" or "name:config"); or {"train": {column: values}, "dev": …}. See `rows.read`.
    tokenizer: default: the lab model's.
    kind: "classification", "regression", "causal-lm" (any text, cut into windows), "prompt-answer" (scored on
      the answer only) or "seq2seq-lm" (the same for encoder-decoders); default: guessed from the columns.
    text, text_b, label, prompt, answer: column names, where they are not the usual ones.
    max_length: tokens per row; longer rows are cut (`truncated` says how many), longer texts of a causal-lm
      task go on in the next row.
    limit: train rows used, drawn by `seed`. metric: what a race ranks by, see `METRICS`.
    encoder_decoder: the model is one: prompts go to the encoder, answers to the decoder.
    seed: of the hold-out split and of `limit`.

    Raises ValueError or FileNotFoundError with one sentence for what cannot be used.
    """
    if kind is not None and kind not in METRICS:
        raise ValueError(f"Unknown kind of task {kind!r}; accepted are {', '.join(METRICS)}.")
    if tokenizer is None:
        from xgblora_lab.tasks.models import load_tokenizer

        tokenizer = load_tokenizer()
    name = "data" if isinstance(data, Mapping) else Path(data).name
    if isinstance(data, Mapping):
        source = rows.Source({split: dict(table) for split, table in data.items()})
    elif data == "pydocs":
        from xgblora_lab.tasks import pydocs

        source = pydocs.read(kind or "classification")
    else:
        source = rows.read(data, seed)

    train = source.splits["train"]
    columns = rows.guess_columns(
        list(train), train, kind=kind, text=text, text_b=text_b, label=label, prompt=prompt, answer=answer
    )
    kind = columns.kind
    if kind == "prompt-answer" and encoder_decoder:
        kind = "seq2seq-lm"
    if kind == "causal-lm" and encoder_decoder:
        raise ValueError("An encoder-decoder needs prompt and answer columns; plain text is for decoders.")
    metric = metric or METRICS[kind][0]
    if metric not in METRICS[kind]:
        raise ValueError(f"Unknown metric {metric!r} for {kind}; accepted are {', '.join(METRICS[kind])}.")
    if limit is not None:
        source.splits["train"] = rows.sample(train, limit, seed)

    from xgblora_lab.tasks.encoding import Encoder

    encoder = Encoder(tokenizer, kind, columns, max_length, encoder_decoder, source.label_names)
    splits = {
        split: encoder.encode(split, source.splits[split]) for split in rows.SPLITS if split in source.splits
    }
    return TextTask(
        name=name,
        kind=kind,
        metric=metric,
        splits=splits,
        pad_token_id=int(tokenizer.pad_token_id),
        labels=encoder.labels,
        truncated=encoder.truncated,
        absent=source.absent,
    )


def classification_scores(truth: np.ndarray, predicted: np.ndarray, classes: int) -> dict[str, float]:
    """Accuracy, Matthews correlation (Gorodkin 2004 for several classes; 0 where undefined) and F1 (of
    class 1 where there are two, else the mean over classes)."""
    table = np.zeros((classes, classes))
    np.add.at(table, (truth, predicted), 1.0)  # rows: truth
    n, right, rows_, columns = table.sum(), np.trace(table), table.sum(1), table.sum(0)
    spread = (n**2 - rows_ @ rows_) * (n**2 - columns @ columns)
    f1 = 2 * np.diag(table) / np.maximum(rows_ + columns, 1.0)
    return {
        "accuracy": float(right / n),
        "matthews": float((right * n - rows_ @ columns) / math.sqrt(spread)) if spread else 0.0,
        "f1": float(f1[1] if classes == 2 else f1.mean()),
    }


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's; 0 where one of them is constant."""
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm else 0.0


def _padded(lists: Sequence[Any], value: int) -> Tensor:
    """(N, S), filled on the right."""
    width = max(len(row) for row in lists)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in lists])
