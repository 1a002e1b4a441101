"""One file as a table: CSV, TSV, JSON, JSON lines, Parquet or text, read as it is written.

A file is opened by its very name, so that no character of a name is a pattern, a variable or an address. A
cell of a CSV or TSV file stays the text that it is; a column becomes numbers only where they say the same.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

Table = dict[str, list[Any]]  # column name -> values, one per row

INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")


def read_table(path: Path) -> Table:
    """Read one file, whole.

    Parameters
    ----------
    path : Path
        Its suffix says what it is, see `READERS`. Text is UTF-8.

    Returns
    -------
    Table
        An empty cell is None. Rows of a .txt file are its paragraphs, in the column `text`.

    Raises
    ------
    OSError
        Where the file cannot be opened.
    ValueError
        Where the suffix is none of `READERS`, the file is empty, or it is not what its suffix says.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(
            f"{path.name}: files ending in {path.suffix!r} are not read; use {' '.join(READERS)}."
        )
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty; give it a header and rows.")
    try:
        return reader(path)
    except (UnicodeDecodeError, RecursionError) as error:
        reason = "it is no UTF-8 text" if isinstance(error, UnicodeDecodeError) else "it is nested too deeply"
        raise ValueError(f"{path} could not be read as {path.suffix[1:]}: {reason}.") from error
    except ValueError as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(f"{path} could not be read as {path.suffix[1:]}: {reason}.") from error


def _comma(path: Path, **options: Any) -> Table:
    """Comma-separated, or as the options say; the words "None" and "NA" are text."""
    import pandas as pd

    with path.open(encoding="utf-8-sig", newline="") as file:
        if "\0" in file.read():
            raise ValueError("it holds a zero byte, so it is no text; save it as UTF-8")
        file.seek(0)
        frame = pd.read_csv(
            file, header=None, dtype=str, keep_default_na=False, na_values=[""], engine="c", **options
        )
    rows = frame.astype(object).where(frame.notna(), None)
    header = [name if name is not None else "" for name in rows.iloc[0]]
    _distinct(header)
    return {name: _numbers(rows[i].tolist()[1:]) for i, name in enumerate(header)}


def _tab(path: Path) -> Table:
    """Tab-separated, without quoting."""
    return _comma(path, sep="\t", quoting=csv.QUOTE_NONE)


def _json(path: Path) -> Table:
    """A list of objects, an object of columns, or an object on each line."""
    text = path.read_text(encoding="utf-8-sig")
    try:
        found = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError:
        if not text.lstrip().startswith("{"):
            raise
        return _lines(path)
    if isinstance(found, dict):
        if not all(isinstance(values, list) for values in found.values()):
            return _records([found])
        if len({len(values) for values in found.values()}) > 1:
            raise ValueError("its columns have different lengths")
        return found
    if not isinstance(found, list):
        raise ValueError(f"it holds {_kind(found)}; accepted is a list of objects, one for each row")
    return _records(found)


def _lines(path: Path) -> Table:
    """JSON lines: an object on each line that is not blank."""
    with path.open(encoding="utf-8-sig") as file:
        rows = []
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, object_pairs_hook=_object)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number}: {error.msg} at character {error.pos + 1}") from error
            if not isinstance(row, dict):
                raise ValueError(f"line {number} holds {_kind(row)}; accepted is an object on each line")
            rows.append(row)
    return _records(rows)


def _parquet(path: Path) -> Table:
    import pyarrow as pa
    from pyarrow import parquet

    with path.open("rb") as file:
        try:
            table = parquet.ParquetFile(file).read()
            _distinct(table.column_names)
            return dict(table.to_pydict())
        except (pa.ArrowException, OSError) as error:
            raise ValueError(str(error)) from error


def _text(path: Path) -> Table:
    """Paragraphs, which a blank line ends."""
    return {"text": [part for part in path.read_text(encoding="utf-8-sig").split("\n\n") if part.strip()]}


READERS: dict[str, Callable[[Path], Table]] = {
    ".csv": _comma,
    ".tsv": _tab,
    ".jsonl": _lines,
    ".json": _json,
    ".parquet": _parquet,
    ".txt": _text,
}


def _numbers(cells: list[str | None]) -> list[Any]:
    """The cells as numbers, where all of them are written just as Python writes numbers."""
    filled = [cell for cell in cells if cell is not None]
    if filled and all(INTEGER.fullmatch(cell) for cell in filled):
        return [None if cell is None else int(cell) for cell in cells]
    try:
        if filled and all(repr(float(cell)) == cell and cell[-1].isdigit() for cell in filled):
            return [None if cell is None else float(cell) for cell in cells]
    except ValueError:
        pass
    return list(cells)


def _records(rows: Sequence[Any]) -> Table:
    """Objects as columns; what an object leaves out is None."""
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} is {_kind(row)}; accepted is an object for each row")
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _distinct([name for name, _ in pairs])
    return dict(pairs)


def _distinct(names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"two columns are called {name!r}; rename one of them")
        seen.add(name)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list"}
    return names.get(type(value), "an object")
