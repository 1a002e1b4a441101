"""Writing files whole or not at all: to a temporary name, then renamed."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_WIDTH = 110  # of a line of JSON; a list of numbers may be longer


@contextmanager
def replaced(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path that takes the place of `path` when the block ends well.

    The block creates a file or a folder there. After an exception `path` is as it was before, and nothing
    is left beside it.

    Parameters
    ----------
    path : str or Path
        The file or folder to replace or to make; folders on the way to it are made too.

    Yields
    ------
    Path
        A free name with the same suffix, on the same disk, so that the renaming is one step.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as scratch:
        partial = Path(scratch) / f"new{path.suffix}"
        yield partial
        if path.is_dir() and partial.is_dir():  # a folder that is not empty cannot be overwritten
            os.replace(path, Path(scratch) / "old")
        os.replace(partial, path)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with replaced(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON, whole or not at all.

    Parameters
    ----------
    path : str or Path
        The file.
    value : Any
        Anything that `plain` takes. What fits into a line stands on one, and so does every list of numbers.

    Raises
    ------
    TypeError
        A value has no form in JSON.
    """
    write_text(path, _lines(plain(value), "") + "\n")


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors of any device as safetensors, whole or not at all."""
    from safetensors.torch import save_file

    with replaced(path) as partial:
        plain_tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        save_file(plain_tensors, partial, metadata={"format": "pt"})


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; no code can hide in one.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    """
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; the folder is incomplete or was not written by save().")
    return load_file(path)


@contextmanager
def replaced_folder(folder: str | Path, marker: str) -> Iterator[Path]:
    """Yield an empty temporary folder that takes the place of `folder` when the block ends well.

    Parameters
    ----------
    folder : str or Path
        The folder to replace or to make.
    marker : str
        A file that every such folder holds. An existing folder is replaced only where it is empty or holds
        this file, so that no save can delete something else.

    Yields
    ------
    Path
        The folder to write into.

    Raises
    ------
    FileExistsError
        `folder` holds something else, or is a file.
    """
    folder = Path(folder)
    if folder.exists() and (
        not folder.is_dir() or (any(folder.iterdir()) and not (folder / marker).exists())
    ):
        raise FileExistsError(
            f"{folder} exists and holds something else (no {marker} in it); choose another folder."
        )
    with replaced(folder) as partial:
        partial.mkdir()
        yield partial


def plain(value: Any) -> Any:
    """Turn a value into what JSON can hold; a float that it cannot (nan, inf) becomes its name.

    Parameters
    ----------
    value : Any
        Numbers, strings, paths, None, arrays and tensors, and lists, tuples and mappings of these.

    Returns
    -------
    Any
        The same out of dict, list, str, int, float, bool and None; the keys are strings.

    Raises
    ------
    TypeError
        A value is of none of these types.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy and torch
        return plain(value.tolist())
    raise TypeError(
        f"{type(value).__name__} is not a JSON value; a measurement holds numbers, strings, lists, dicts."
    )


def _lines(value: Any, indent: str) -> str:
    """JSON over several lines where it is long, but with no number on a line of its own."""
    flat = json.dumps(value, allow_nan=False)
    inner = indent + " "
    if len(inner) + len(flat) > _WIDTH:
        if isinstance(value, dict):
            parts = (f"{inner}{json.dumps(key)}: {_lines(item, inner)}" for key, item in value.items())
            return "{\n" + ",\n".join(parts) + f"\n{indent}}}"
        if isinstance(value, list) and all(isinstance(item, dict | list) for item in value):
            return "[\n" + ",\n".join(inner + _lines(item, inner) for item in value) + f"\n{indent}]"
    return flat
