"""From rows to token ids, one way per kind of task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from xgblora_lab.tasks.columns import Columns, missing
from xgblora_lab.tasks.limits import shown, whole
from xgblora_lab.tasks.tables import Table
from xgblora_lab.tasks.task import IGNORED, Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


NESTED = (list, tuple, dict, bytes)  # values that are neither a text nor a number


class Encoder:
    """Tokenises splits; the train split comes first and decides the labels.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        With a pad token.
    kind : str
        A key of `task.METRICS`.
    columns : Columns
        Which column is what.
    max_length : int, default 128
        Tokens per row, at least 2; where the tokenizer allows fewer, those.
    encoder_decoder : bool, default False
        Whether texts go to an encoder, which reads up to an end-of-text token.
    label_names : dict of str to list of str, optional
        Declared names of integer labels, by column.

    Attributes
    ----------
    labels : list of str
        The class names, known after the first split of a classification.
    truncated : dict of str to float
        By split, the share of rows that were cut.

    Raises
    ------
    ValueError
        Where `max_length` is below 2.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        kind: str,
        columns: Columns,
        max_length: int = 128,
        encoder_decoder: bool = False,
        label_names: dict[str, list[str]] | None = None,
    ) -> None:
        self.tokenizer, self.kind, self.columns = tokenizer, kind, columns
        self.max_length = min(whole("max_length", max_length, 2), tokenizer.model_max_length)
        if self.max_length < 2:
            raise ValueError(f"max_length is {self.max_length}; a row needs at least 2 tokens.")
        self.encoder_decoder = encoder_decoder
        self.label_names = label_names or {}
        self.labels: list[str] = []
        self.truncated: dict[str, float] = {}
        single, pair = (tokenizer.num_special_tokens_to_add(pair=p) for p in (False, True))
        self._separates = pair > single

    def encode(self, split: str, table: Table) -> list[Example]:
        """Tokenise a split.

        Parameters
        ----------
        split : str
            "train", "dev" or "test".
        table : Table
            Its rows.

        Returns
        -------
        list of Example
            In the table's order; several or none a row where texts are cut into windows ("causal-lm").

        Raises
        ------
        ValueError
            Where a column is missing or a row cannot be used.
        """
        for column in (c for c in (self.columns.text, self.columns.text_b, self.columns.label) if c):
            if column not in table:
                raise ValueError(f"The {split} split has no column {column!r}; it has {', '.join(table)}.")
        self._cut = 0
        if self.kind == "causal-lm":
            examples = self._windows(split, table)
        elif self.kind in ("prompt-answer", "seq2seq-lm"):
            examples = self._answers(split, table)
        else:
            examples = self._labelled(split, table)
        self.truncated[split] = self._cut / len(examples)
        return examples

    def _windows(self, split: str, table: Table) -> list[Example]:
        """Consecutive windows that share one token, so that every token but a text's first is scored once."""
        examples = []
        texts = self._texts(split, table, self.columns.text, blank=True)
        encodings = (
            self.tokenizer(texts, return_offsets_mapping=True, verbose=False) if texts else {"input_ids": []}
        )
        for row, ids in enumerate(encodings["input_ids"]):
            ends = [end for _, end in encodings["offset_mapping"][row]]  # in characters
            for start in range(0, len(ids) - 1, self.max_length - 1):
                window = ids[start : start + self.max_length]
                scored = texts[row][ends[start] : max(ends[start : start + self.max_length])]
                examples.append(Example(window, window, text_bytes=len(scored.encode())))
        if not examples:
            raise ValueError(
                f"The {split} split has no text of two tokens or more in column {self.columns.text!r}."
            )
        return examples

    def _answers(self, split: str, table: Table) -> list[Example]:
        assert self.columns.answer is not None
        prompts = self._texts(split, table, self.columns.text)
        answers = self._texts(split, table, self.columns.answer)
        end = [] if self.tokenizer.eos_token_id is None else [int(self.tokenizer.eos_token_id)]
        tails = [ids + end for ids in self._ids(answers, add_special_tokens=False)]
        if self.kind == "seq2seq-lm":
            heads = [self._fit(self._with_end(ids)) for ids in self._ids(prompts)]
            return [Example(h, self._fit(t, count=False)) for h, t in zip(heads, tails, strict=True)]
        examples = []
        heads = self._ids([prompt + "\n" for prompt in prompts])
        for row, (head, tail) in enumerate(zip(heads, tails, strict=True)):
            if end and head[-1:] == end:
                head = head[:-1]
            if len(head) >= self.max_length:
                raise ValueError(
                    f"Row {row} of {split}: the prompt alone has {len(head)} tokens, so max_length "
                    f"{self.max_length} leaves no answer token; raise max_length or shorten the prompt."
                )
            examples.append(
                Example(self._fit(head + tail), self._fit([IGNORED] * len(head) + tail, count=False))
            )
        return examples

    def _labelled(self, split: str, table: Table) -> list[Example]:
        assert self.columns.label is not None
        labels = self._label_values(split, table[self.columns.label])
        texts = self._texts(split, table, self.columns.text)
        if self.columns.text_b is None:
            return [
                Example(self._fit(self._with_end(i)), n)
                for i, n in zip(self._ids(texts), labels, strict=True)
            ]
        seconds = self._texts(split, table, self.columns.text_b)
        if not self._separates:
            joined = self._joined(texts, seconds)
            return [Example(ids, label) for ids, label in zip(joined, labels, strict=True)]
        whole = self.tokenizer(texts, seconds, verbose=False)
        self._cut += sum(len(ids) > self.max_length for ids in whole["input_ids"])
        whole = self.tokenizer(texts, seconds, truncation="longest_first", max_length=self.max_length)
        types = whole.get("token_type_ids", [None] * len(texts))
        return [Example(*row) for row in zip(whole["input_ids"], labels, types, strict=True)]

    def _joined(self, firsts: list[str], seconds: list[str]) -> list[list[int]]:
        """Pairs for a tokenizer that marks no border: end-of-text between, cut at the longer one's end."""
        end = self.tokenizer.eos_token_id
        border = [int(end)] if end is not None else self._ids(["\n"], add_special_tokens=False)[0]
        room = self.max_length - len(border)
        rows = []
        for head, tail in zip(self._ids(firsts), self._ids(seconds, add_special_tokens=False), strict=True):
            self._cut += len(head) + len(tail) > room
            while len(head) + len(tail) > room:
                (head if len(head) > len(tail) else tail).pop()
            rows.append(self._with_end(head + border + tail))
        return rows

    def _label_values(self, split: str, values: Sequence[Any]) -> list[int | float]:
        column = self.columns.label
        for row, value in enumerate(values):
            if missing(value):
                raise ValueError(
                    f"Row {row} of {split} has no label in column {column!r}; fill it in or drop the row."
                )
        if self.kind == "regression":
            return [self._number(split, row, value) for row, value in enumerate(values)]
        names = self.label_names.get(column or "")
        for row, value in enumerate(values):
            if isinstance(value, NESTED) or (names and value not in range(len(names))):
                accepted = f"a number from 0 to {len(names) - 1}" if names else "a text or a number"
                raise ValueError(
                    f"Row {row} of {split} has {shown(value)} in the label column {column!r}; "
                    f"give {accepted} for each row."
                )
        known = [names[int(v)] for v in values] if names else [_label_name(v) for v in values]
        if not self.labels:
            self.labels = names or sorted(set(known), key=_label_order)
            if len(set(known)) < 2:
                raise ValueError(
                    f"All {split} rows have the label {known[0]!r}; a classification needs two or more."
                )
        index = {name: i for i, name in enumerate(self.labels)}
        unknown = sorted(set(known) - set(index))
        if unknown:
            raise ValueError(
                f"The {split} split has labels that train has not: {', '.join(unknown[:5])}; "
                f"train has {', '.join(self.labels[:10])}."
            )
        return [index[name] for name in known]

    def _number(self, split: str, row: int, value: Any) -> float:
        """The value of a regression."""
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(
                f"A regression needs numbers in column {self.columns.label!r}, and finite ones; "
                f"row {row} of {split} has {shown(value)}."
            )
        return number

    def _texts(self, split: str, table: Table, column: str, blank: bool = False) -> list[str]:
        """The column as strings; a missing cell is refused, or left out where `blank`."""
        if column not in table:
            raise ValueError(f"The {split} split has no column {column!r}; it has {', '.join(table)}.")
        texts = []
        for row, value in enumerate(table[column]):
            if isinstance(value, NESTED):
                raise ValueError(
                    f"Row {row} of {split} has {shown(value)} in the text column {column!r}; give plain text "
                    "for each row, or name another column."
                )
            if not missing(value):
                texts.append(_readable(str(value)))
            elif not blank:
                raise ValueError(
                    f"Row {row} of {split} has no text in column {column!r}; fill it in or drop the row."
                )
        return texts

    def _ids(self, texts: list[str], add_special_tokens: bool = True) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]

    def _with_end(self, ids: list[int]) -> list[int]:
        """Encoder-decoders read a text up to its end-of-text token (T5's classifier pools there)."""
        end = self.tokenizer.eos_token_id
        if not self.encoder_decoder or end is None:
            return ids
        return [*ids[: self.max_length - 1], end] if ids[-1:] != [end] else ids

    def _fit(self, ids: list[int], count: bool = True) -> list[int]:
        """At most max_length ids; what the tokenizer put at the end (a separator) stays at the end."""
        if len(ids) <= self.max_length:
            return ids
        self._cut += count
        closing = ids[-1:] if ids[-1] in self.tokenizer.all_special_ids else []
        return [*ids[: self.max_length - len(closing)], *closing]


def _readable(text: str) -> str:
    """The text with a replacement character for each half of a character, which no tokenizer reads."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _label_name(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _label_order(name: str) -> tuple[bool, float, str]:
    """Numbers by value, then words."""
    try:
        return False, float(name), name
    except ValueError:
        return True, 0.0, name
