"""What a model is tuned on: text tasks of every kind, by `load_task`."""

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
from torch.nn.utils.rnn import pad_sequence

from xgblora_lab.tasks import pydocs, rows
from xgblora_lab.tasks.checkpoint import load_tokenizer
from xgblora_lab.tasks.columns import ColumnNames, guess_columns
from xgblora_lab.tasks.encoding import Encoder
from xgblora_lab.tasks.limits import whole
from xgblora_lab.tasks.scores import classification_scores, correlation
from xgblora_lab.tasks.task import GREATER_IS_BETTER, IGNORED, METRICS, Batch, Example, evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from typing_extensions import Unpack

    from xgblora_lab.tasks.tables import Table
EVALUATION_BATCH = 64  # rows


@dataclass
class TextTask:
    """A task on tokenised text. Made by `load_task`; the members are those of `task.Task`.

    The loss is a mean in nats (squared error for regression) over examples, or over label tokens in the
    language-model kinds.

    Attributes
    ----------
    name, kind, metric : str
        Of the data; a key of `task.METRICS`; one of its values.
    splits : dict of str to list of Example
        "train", "dev" and "test", as far as the data has them.
    pad_token_id : int
        Fills rows on the right.
    labels : list of str
        The class names, by class index; empty but for classification.
    truncated : dict of str to float
        By split, the share of rows that were cut.
    absent : dict of str to str
        By split, why it is not there, where that is known.
    """

    name: str
    kind: str
    metric: str
    splits: dict[str, list[Example]]
    pad_token_id: int
    labels: list[str] = field(default_factory=list)
    truncated: dict[str, float] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def greater_is_better(self) -> bool:
        """Of the metric."""
        return self.metric in GREATER_IS_BETTER

    def size(self, split: str = "train") -> int:
        """Number of examples; 0 where the data has no such split."""
        return len(self.splits.get(split, ()))

    def lengths(self, split: str = "train") -> list[int]:
        """Tokens of every row without padding, in the split's order: what `tokens` counts in each.

        Raises
        ------
        ValueError
            Where the data has no such split.
        """
        both = self.kind == "seq2seq-lm"  # the answer is read by the decoder
        answers = [e.label if both and isinstance(e.label, list) else [] for e in self._rows(split)]
        return [len(e.ids) + len(answer) for e, answer in zip(self._rows(split), answers, strict=True)]

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        """Make a batch.

        Parameters
        ----------
        split : str
            "train", "dev" or "test".
        indices : sequence of int
            Rows of the split.

        Returns
        -------
        dict of str to Tensor
            input_ids and attention_mask (N, S), padded on the right; labels (N,) or (N, S); token_type_ids
            (N, S) where the tokenizer has them. On the CPU.

        Raises
        ------
        ValueError
            Where the data has no such split.
        """
        examples = self._rows(split)
        chosen = [examples[i] for i in indices]
        batch = {
            "input_ids": _padded([e.ids for e in chosen], self.pad_token_id),
            "attention_mask": _padded([[1] * len(e.ids) for e in chosen], 0),
        }
        if chosen[0].types is not None:
            batch["token_type_ids"] = _padded([e.types or [] for e in chosen], 0)
        labels: list[Any] = [e.label for e in chosen]
        batch["labels"] = _padded(labels, IGNORED) if self._is_lm else torch.tensor(labels)
        return batch

    def weight(self, batch: Batch) -> int:
        """Terms of the loss: examples, or label tokens in the language-model kinds."""
        return int((self._targets(batch) != IGNORED).sum()) if self._is_lm else len(batch["labels"])

    def tokens(self, batch: Batch) -> int:
        """Tokens without padding, those of the answer included where a decoder reads them."""
        count = int(batch["attention_mask"].sum())
        return count + (self.weight(batch) if self.kind == "seq2seq-lm" else 0)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean over `weight(batch)` terms; the batch lies on the model's device."""
        logits = self._logits(model, batch)
        return self._terms(logits, batch).sum() / self.weight(batch)

    def evaluate(self, model: nn.Module, split: str = "dev", limit: int | None = None) -> dict[str, float]:
        """Score a model.

        Parameters
        ----------
        model : nn.Module
            Left in the mode it was in.
        split : str, default "dev"
            "train", "dev" or "test".
        limit : int, optional
            Only the first rows; default: all.

        Returns
        -------
        dict of str to float
            Exact means over the rows. Always "loss"; for classification "accuracy", "matthews" and "f1"; for
            regression "mse" and "pearson" (0 where undefined); for language models "perplexity", and for kind
            "causal-lm" "bits_per_byte".

        Raises
        ------
        ValueError
            Where the data has no such split.
        """
        losses, weights, predictions = self._score(model, split, limit)
        loss = float(losses.sum() / weights.sum())
        examples = self._rows(split)[:limit]
        if self.kind == "classification":
            truth = np.array([e.label for e in examples])
            return {"loss": loss, **classification_scores(truth, predictions, len(self.labels))}
        if self.kind == "regression":
            truth = np.array([e.label for e in examples], np.float64)
            return {"loss": loss, "mse": loss, "pearson": correlation(truth, predictions)}
        scores = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        if self.kind == "causal-lm":
            scores["bits_per_byte"] = float(losses.sum()) / math.log(2) / sum(e.text_bytes for e in examples)
        return scores

    def predict(self, model: nn.Module, split: str = "dev", limit: int | None = None) -> np.ndarray:
        """Predict rows.

        Parameters
        ----------
        model, split, limit
            As in `evaluate`.

        Returns
        -------
        array, (n,)
            Class indices, regression values, or each row's mean loss in nats (language models).

        Raises
        ------
        ValueError
            Where the data has no such split.
        """
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
        """What every position predicts: in decoders the next one's label, and at the last one nothing."""
        if self.kind not in ("causal-lm", "prompt-answer"):
            return batch["labels"]
        return F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)

    def _terms(self, logits: Tensor, batch: Batch) -> Tensor:
        """The terms of the loss: (N,), or (N, S) with zeros where nothing is scored."""
        targets = self._targets(batch)
        if self.kind == "regression":
            return (logits.squeeze(-1) - targets.to(logits.dtype)).square()
        # One row a position: over (N, classes, S) the same takes three times as long.
        flat = logits.flatten(0, -2), targets.flatten()
        return F.cross_entropy(*flat, ignore_index=IGNORED, reduction="none").view_as(targets)

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
    data: str | Path | Mapping[str, Table] = "pydocs",
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    kind: str | None = None,
    max_length: int = 128,
    limit: int | None = None,
    metric: str | None = None,
    encoder_decoder: bool = False,
    seed: int = 0,
    **columns: Unpack[ColumnNames],
) -> TextTask:
    """Read and tokenise a data set.

    Parameters
    ----------
    data : str, Path or mapping, default "pydocs"
        "pydocs"; a folder with train / dev / test files; one file (split 80 / 10 / 10 % by row); a hub id
        ("name" or "name:config"), see `rows.read`; or {"train": {column: values}, "dev": …}.
    tokenizer : PreTrainedTokenizerBase, optional
        With a pad token; default: the lab model's.
    kind : str, optional
        "classification", "regression", "causal-lm" (any text, cut into windows), "prompt-answer" (scored on
        the answer only) or "seq2seq-lm" (the same for encoder-decoders); default: guessed from the columns.
    max_length : int, default 128
        Tokens per row. Longer rows are cut (`truncated` says how many); longer texts of a causal-lm task
        go on in the next row.
    limit : int, optional
        Train rows used, at least 1, drawn by `seed`; default: all.
    metric : str, optional
        What a race ranks by; default: the first of the kind in `task.METRICS`.
    encoder_decoder : bool, default False
        Whether the model is one. Then prompts go to the encoder and answers to the decoder.
    seed : int, default 0
        Of the rows that are held out and of `limit`.
    **columns : str, optional
        Names of the columns `text`, `text_b`, `label`, `prompt` and `answer`, where not the usual ones.

    Returns
    -------
    TextTask
        With the splits that the data has.

    Raises
    ------
    FileNotFoundError, OSError
        Where the data, or the lab model's tokenizer, is not there, is gated, or the hub cannot be reached.
    TypeError
        For an argument that does not exist.
    ValueError
        For an unknown kind or metric, a column that is not there, a row that cannot be used, or data that
        cannot be read.
    """
    unknown = sorted(set(columns) - set(ColumnNames.__annotations__))
    if unknown:
        raise TypeError(
            f"load_task() has no argument {unknown[0]!r}; columns are named by "
            f"{', '.join(f'{part}=' for part in ColumnNames.__annotations__)}."
        )
    if kind is not None and kind not in METRICS:
        raise ValueError(f"Unknown kind of task {kind!r}; accepted are {', '.join(METRICS)}.")
    whole("limit", 1 if limit is None else limit)
    whole("seed", seed, 0)
    tokenizer = tokenizer or load_tokenizer()
    source = _source(data, kind, seed)
    train = source.splits["train"]
    found = guess_columns(list(train), train, kind, columns)
    kind = found.kind
    if kind == "prompt-answer" and encoder_decoder:
        kind = "seq2seq-lm"
    if kind == "causal-lm" and encoder_decoder:
        raise ValueError("An encoder-decoder needs prompt and answer columns; plain text is for decoders.")
    metric = metric or METRICS[kind][0]
    if metric not in METRICS[kind]:
        raise ValueError(f"Unknown metric {metric!r} for {kind}; accepted are {', '.join(METRICS[kind])}.")
    if limit is not None:
        source.splits["train"] = rows.sample(train, limit, seed)
    encoder = Encoder(tokenizer, kind, found, max_length, encoder_decoder, source.label_names)
    splits = {
        split: encoder.encode(split, source.splits[split]) for split in rows.SPLITS if split in source.splits
    }
    return TextTask(
        name="data" if isinstance(data, Mapping) else Path(data).name,
        kind=kind,
        metric=metric,
        splits=splits,
        pad_token_id=int(tokenizer.pad_token_id),
        labels=encoder.labels,
        truncated=encoder.truncated,
        absent=source.absent,
    )


def _source(data: str | Path | Mapping[str, Table], kind: str | None, seed: int) -> rows.Source:
    if isinstance(data, Mapping):
        return rows.given(data)
    return pydocs.read(kind or "classification") if data == "pydocs" else rows.read(data, seed)


def _padded(lists: Sequence[Sequence[int]], value: int) -> Tensor:
    """(N, S), filled on the right."""
    return pad_sequence([torch.tensor(row) for row in lists], batch_first=True, padding_value=value)
