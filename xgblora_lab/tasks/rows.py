"""Rows of text from a hub id, a folder or a file, in splits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xgblora_lab.tasks.hub import downloaded, refusal
from xgblora_lab.tasks.limits import shown, whole
from xgblora_lab.tasks.tables import READERS, Table, read_table

if TYPE_CHECKING:
    from datasets import DatasetDict

SPLITS = {  # what a file or a hub split may be called
    "train": ("train", "training"),
    "dev": ("dev", "validation", "valid", "val"),
    "test": ("test",),
}

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?", re.ASCII)


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
        Draws the rows that are held out; not negative.

    Returns
    -------
    Source
        Every split in the order of its file.

    Raises
    ------
    FileNotFoundError
        Where no file or folder is at a path, the folder has no train file, or the hub no such data set.
    OSError
        Where the hub cannot be reached and its cache does not hold the data, or they are gated.
    ValueError
        Where a file or the hub's data cannot be read, a split has no rows or several files, or there are too
        few rows to hold some out.
    """
    whole("seed", seed, 0)
    path = local_path(data)
    if path.is_dir():
        files = {split: _split_file(path, split) for split in SPLITS}
        source = Source({split: read_table(file) for split, file in files.items() if file})
        if "train" not in source.splits:
            found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
            raise FileNotFoundError(
                f"The folder {path} has no train file ({', '.join('train' + s for s in READERS)}); "
                f"it holds {found}."
            )
    elif path.is_file():
        source = Source({"train": read_table(path)})
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


def given(data: Mapping[str, Table]) -> Source:
    """Rows that are in memory already.

    Parameters
    ----------
    data : mapping of str to Table
        By split; "train" is needed.

    Returns
    -------
    Source
        The same columns.

    Raises
    ------
    ValueError
        Where train is missing, a split is no table or has no rows, or columns differ in length.
    """
    unknown = [str(split) for split in data if split not in SPLITS]
    if "train" not in data or unknown:
        raise ValueError(
            f"Data in memory is {{'train': {{column: values}}}}, with 'dev' and 'test' where they are there; "
            f"got the keys {', '.join(map(str, data)) or 'of an empty dict'}."
        )
    for split, table in data.items():
        columns = table.values() if isinstance(table, Mapping) else [None]
        if any(isinstance(values, str) or not hasattr(values, "__len__") for values in columns):
            raise ValueError(f"The {split} split is {shown(table)}; give {{column: list of values}}.")
        if len({len(values) for values in columns}) != 1 or not _length(table):
            raise ValueError(
                f"The {split} split needs columns of one length, at least 1; "
                f"got {', '.join(f'{name}: {len(values)}' for name, values in table.items()) or 'no column'}."
            )
    return Source({split: dict(table) for split, table in data.items()})


def local_path(data: str | Path) -> Path:
    """Where data would lie on this machine; the home folder where it begins with `~`."""
    try:
        return Path(data).expanduser()
    except RuntimeError:  # there is no such user
        return Path(data)


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


def _split_file(folder: Path, split: str) -> Path | None:
    pattern = re.compile(rf"({'|'.join(SPLITS[split])})([-_.].*)?", re.IGNORECASE)
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in READERS and pattern.fullmatch(p.stem))
    if len(found) > 1:
        raise ValueError(f"{folder} has several {split} files: {', '.join(p.name for p in found)}; keep one.")
    return found[0] if found else None


def _read_hub(name: str) -> Source:
    import datasets

    named = HUB_ID.fullmatch(name)
    if named is None or len(name) > 96 or Path(name).suffix.lower() in READERS or local_path(name).exists():
        raise FileNotFoundError(
            f"There is no file or folder {shown(name, 250)}; give one, a hub id, pydocs or planted."
        )
    if "/" not in name and name in getattr(datasets.packaged_modules, "_PACKAGED_DATASETS_MODULES", ()):
        raise FileNotFoundError(f"{name!r} is a format and no data set; give the path of a file in it.")
    repository, _, config = name.partition(":")
    try:
        found = _loaded(repository, config or None)
    except (OSError, ValueError, RuntimeError) as error:
        if (refused := refusal("data set", name, error)) is not None:
            raise refused from error
        raise ValueError(
            f"The data set {name!r} could not be read; a configuration is written behind a colon, as in "
            f"nyu-mll/glue:sst2. datasets says: {' '.join(str(error).split())[:600]}"
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


def _loaded(repository: str, config: str | None) -> DatasetDict:
    """From the hub; where it is out of reach, from what it has left in its cache."""
    import datasets

    try:
        return datasets.load_dataset(repository, config)
    except (OSError, ValueError) as error:
        unreachable = isinstance(refusal("data set", repository, error), ConnectionError)
        folder = downloaded(repository) if unreachable else None
        if folder is None:
            raise
    return datasets.load_dataset(str(folder), config)


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
