"""Which column of a table plays which part, and what kind of task that makes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from xgblora_lab.tasks.tables import Table

TEXT = ("text", "sentence", "sentence1", "premise", "question", "question1", "review", "content", "document")
TEXT_B = {  # second texts, by the name of the first
    "text": ("text_b", "text2"),
    "sentence": ("sentence_b", "question"),
    "sentence1": ("sentence2",),
    "premise": ("hypothesis",),
    "question": ("passage", "context", "question2"),
    "question1": ("question2",),
}
LABEL = ("label", "labels", "class", "category", "target", "score")
PROMPT = ("prompt", "instruction", "question", "input", "text")
ANSWER = ("answer", "completion", "response", "output")


class ColumnNames(TypedDict, total=False):
    """The columns that a user names; None is as good as left out."""

    text: str | None
    text_b: str | None
    label: str | None
    prompt: str | None
    answer: str | None


@dataclass(frozen=True)
class Columns:
    """Which column plays which part in a task of this kind.

    Attributes
    ----------
    kind : str
        A key of `task.METRICS`.
    text : str
        The text; the prompt where there is an answer.
    text_b, label, answer : str or None
        The second text of a pair, the label or value, the answer.
    """

    kind: str
    text: str
    text_b: str | None = None
    label: str | None = None
    answer: str | None = None


def guess_columns(names: Sequence[str], values: Table, kind: str | None, named: ColumnNames) -> Columns:
    """Which column is what: those that are named, the others by their usual names; and the kind of task.

    Parameters
    ----------
    names : sequence of str
        The columns there are.
    values : Table
        The train rows; the type of their labels decides between classification and regression.
    kind : str or None
        A key of `task.METRICS`. None: a label of strings, integers or booleans makes a "classification", one
        of floats, or of text that is decimal numbers throughout, a "regression"; an answer (and no label)
        makes "prompt-answer"; text alone "causal-lm".
    named : ColumnNames
        The columns that the user names.

    Returns
    -------
    Columns
        With the kind.

    Raises
    ------
    ValueError
        Where a named column is not there, or a needed one is neither named nor found.
    """
    for name in named.values():
        if name is not None and name not in names:
            raise ValueError(f"There is no column {name!r}; the columns are {', '.join(names)}.")
    text, label, answer = named.get("text"), named.get("label"), named.get("answer")
    prompt = named.get("prompt")
    if kind is None:
        found_label = label or _first(LABEL, names)
        if prompt or answer or (not found_label and _first(ANSWER, names)):
            kind = "prompt-answer"
        elif found_label:
            kind = "regression" if _decimal(values[found_label]) else "classification"
        else:
            kind = "causal-lm"
    if kind in ("prompt-answer", "seq2seq-lm"):
        prompt = _need("prompt", prompt or text, PROMPT, names)
        return Columns(kind, prompt, answer=_need("answer", answer, ANSWER, names))
    first = _need("text", text, TEXT, names)
    if kind == "causal-lm":
        return Columns(kind, first)
    second = named.get("text_b") or (None if text else _first(TEXT_B.get(first, ()), names))
    return Columns(kind, first, second, _need("label", label, LABEL, names))


def missing(value: Any) -> bool:
    """Whether a cell is empty: None, NaN or blank text."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def _decimal(values: Iterable[Any]) -> bool:
    """Whether a label is a number with decimals, be it written as text ("2.50", "1e5")."""
    filled = [value for value in values if not missing(value)]
    texts = [value for value in filled if isinstance(value, str)]
    try:
        for text in texts:
            float(text)
    except ValueError:
        return False
    whole_numbers = all(text.strip().lstrip("+-").isdigit() for text in texts)
    return not whole_numbers or any(isinstance(value, float) for value in filled)


def _first(candidates: Iterable[str], names: Sequence[str]) -> str | None:
    return next((c for c in candidates if c in names), None)


def _need(part: str, given: str | None, candidates: Sequence[str], names: Sequence[str]) -> str:
    found = given or _first(candidates, names)
    if found is None:
        raise ValueError(
            f"No {part} column among {', '.join(names)}; name it with {part}=…, or call it "
            f"{' or '.join(candidates)}."
        )
    return found
