"""Rows of text from a hub id, a folder or a file: the splits, and which column is what."""

from __future__ import annotations

import csv
import math
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

Table = dict[str, list[Any]]  # column name -> values, one per row

SPLITS = {  # what a file or a hub split may be called
    "train": ("train", "training"),
    "dev": ("dev", "validation", "valid", "val"),
    "test": ("test",),
}
SUFFIXES = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".txt": "text",
}

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


@dataclass
class Source:
    """The rows of a data set.

    Attributes
    ----------
    splits : dict of str to Table
        "train", "dev" and "test", as far as they are there.
    label_names : dict of str to list of str
        By column, the names of its integers, where the data set declares them.
    absent : dict of str to str
        By split, why it is not there, where that is known.
    """

    splits: dict[str, Table]
    label_names: dict[str, list[str]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


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


def read(data: str | Path, seed: int = 0) -> Source:
    """Read train, dev and test rows.

    One file without splits is split by row, 80 / 10 / 10 %. A missing dev split is a tenth of train's rows. A
    missing test split stays missing.

    Parameters
    ----------
    data : str or Path
        A folder with train / dev / test files, one file (.csv .tsv .jsonl .json .parquet .txt), or a hub id
        ("name" or "name:config"). A tab-separated file has no quoting; rows of .txt are paragraphs.
    seed : int, default 0
        Draws the rows that are held out.

    Returns
    -------
    Source
        Every split in the order of its file.

    Raises
    ------
    FileNotFoundError
        Where no file or folder is at a path, or the folder has no train file.
    ValueError
        Where a file cannot be read, a split has no rows or several files, there are too few rows to hold some
        out, or the hub has no such data set.
    """
    path = Path(data).expanduser()
    if path.is_dir():
        files = {split: _split_file(path, split) for split in SPLITS}
        source = Source({split: _read_file(file) for split, file in files.items() if file})
        if "train" not in source.splits:
            found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
            raise FileNotFoundError(
                f"The folder {path} has no train file ({', '.join('train' + s for s in SUFFIXES)}); "
                f"it holds {found}."
            )
    elif path.is_file():
        source = Source({"train": _read_file(path)})
    else:
        source = _read_hub(str(data))
    for split, table in source.splits.items():
        if not _length(table):
            raise ValueError(f"The {split} split of {data} has no rows; give it some, or remove its file.")
    if path.is_file():
        parts = _parted(source.splits["train"], (0.8, 0.1, 0.1), seed, path.name)
        source.splits = dict(zip(("train", "dev", "test"), parts, strict=True))
    elif "dev" not in source.splits:
        source.splits["train"], source.splits["dev"] = _parted(
            source.splits["train"], (0.9, 0.1), seed, str(data)
        )
    return source


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
        of floats a "regression"; an answer (and no label) makes "prompt-answer"; text alone "causal-lm".
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
            floats = any(isinstance(value, float) for value in values[found_label])
            kind = "regression" if floats else "classification"
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


def subset(table: Table, rows: Iterable[int]) -> Table:
    """The table's rows of these numbers."""
    rows = list(rows)
    return {name: [values[i] for i in rows] for name, values in table.items()}


def sample(table: Table, limit: int, seed: int) -> Table:
    """Draw rows, as the first rows of a sorted file would be of one class.

    Parameters
    ----------
    table : Table
        The rows.
    limit : int
        How many to draw; all where there are no more.
    seed : int
        Of the draw.

    Returns
    -------
    Table
        In the table's order.
    """
    count = _length(table)
    if limit >= count:
        return table
    return subset(table, sorted(np.random.default_rng(seed).permutation(count)[:limit].tolist()))


def missing(value: Any) -> bool:
    """Whether a cell is empty: None, NaN or blank text."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def _split_file(folder: Path, split: str) -> Path | None:
    pattern = re.compile(rf"({'|'.join(SPLITS[split])})([-_.].*)?", re.IGNORECASE)
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and pattern.fullmatch(p.stem))
    if len(found) > 1:
        raise ValueError(f"{folder} has several {split} files: {', '.join(p.name for p in found)}; keep one.")
    return found[0] if found else None


def _read_file(path: Path) -> Table:
    """One file through the builders of `datasets`, in memory: nothing stays in the user's cache."""
    import datasets

    builder = SUFFIXES.get(path.suffix.lower())
    if builder is None:
        raise ValueError(
            f"{path.name}: files ending in {path.suffix!r} are not read; use {' '.join(SUFFIXES)}."
        )
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty; give it a header and rows.")
    options: dict[str, Any] = {}
    if builder == "csv":  # the words "None" and "NA" are text; only an empty cell is missing
        options = {"keep_default_na": False, "na_values": [""]}
        if path.suffix.lower() == ".tsv":
            options |= {"sep": "\t", "quoting": csv.QUOTE_NONE}
    elif builder == "text":
        options = {"sample_by": "paragraph"}
    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        with tempfile.TemporaryDirectory() as cache:
            rows = datasets.load_dataset(
                builder, data_files=str(path), split="train", cache_dir=cache, keep_in_memory=True, **options
            )
            return {name: list(rows[name]) for name in rows.column_names}
    except (datasets.exceptions.DatasetGenerationError, ValueError) as error:
        if "no data" in str(error):  # what datasets says of a header alone
            return {}
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ValueError(f"{path} could not be read as {path.suffix[1:]}: {reason}") from error
    finally:
        if bars:
            datasets.enable_progress_bars()


def _read_hub(name: str) -> Source:
    import datasets

    if name[:1] in ("", ".", "/", "~", "\\") or name.count("/") > 1 or Path(name).suffix.lower() in SUFFIXES:
        raise FileNotFoundError(
            f"There is no file or folder {name!r}; give one, a hub id, pydocs or planted."
        )
    repository, _, config = name.partition(":")
    try:
        found = datasets.load_dataset(repository, config or None)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"No data set {name!r}: it is no local path, and the hub gave none; is the network up? "
            "(A configuration is written name:config, as in nyu-mll/glue:sst2.) "
            f"datasets says: {str(error).strip().splitlines()[0]}"
        ) from error
    source = Source({})
    for split in SPLITS:
        key = next((k for k in found if re.fullmatch(rf"({'|'.join(SPLITS[split])})([-_.].*)?", k)), None)
        if key is None:
            continue
        rows = found[key]
        source.splits[split] = {column: list(rows[column]) for column in rows.column_names}
        for column, feature in rows.features.items():
            if isinstance(feature, datasets.ClassLabel):
                source.label_names[column] = list(feature.names)
                if all(v == -1 for v in source.splits[split][column]):  # how the hub writes hidden labels
                    del source.splits[split]
                    source.absent[split] = "its labels are not published"
                    break
    if "train" not in source.splits:
        raise ValueError(f"The data set {name!r} has no train split; it has {', '.join(found)}.")
    return source


def _parted(table: Table, shares: tuple[float, ...], seed: int, name: str) -> list[Table]:
    """The table in parts of these shares, drawn by `seed`, each in the table's order."""
    count = _length(table)
    if count < 10:
        raise ValueError(
            f"{name} has {count} rows, too few to hold out a tenth; give at least 10, or a dev file."
        )
    order = np.random.default_rng(seed).permutation(count)
    ends = [round(count * share) for share in np.cumsum(shares[:-1])]
    return [subset(table, sorted(part.tolist())) for part in np.split(order, ends)]


def _length(table: Table) -> int:
    return len(next(iter(table.values()), []))


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
