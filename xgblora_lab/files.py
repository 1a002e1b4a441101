"""Writing files whole or not at all: to a temporary name, then renamed."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON to a temporary name beside `path`, then rename, so that no reader sees half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(plain(value), indent=1, allow_nan=False), encoding="utf-8")
    os.replace(partial, path)


def plain(value: Any) -> Any:
    """JSON values only; a float that JSON cannot say (nan, inf) becomes its name."""
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


def write_text(path: Path, text: str) -> None:
    """Write to a temporary name, then rename."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write safetensors to a temporary name, then rename."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file(
        {n: t.detach().cpu().contiguous() for n, t in tensors.items()}, partial, metadata={"format": "pt"}
    )
    os.replace(partial, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file (no code can hide in one)."""
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; the folder is incomplete or was not written by save().")
    return load_file(path)


@contextmanager
def replaced_folder(folder: str | Path, marker: str) -> Iterator[Path]:
    """A temporary folder to write into that takes the place of `folder` when the block ends well.

    An existing folder is replaced only where it is empty or holds the file `marker`, so that no save can
    delete something else.
    """
    folder = Path(folder)
    if folder.exists() and (
        not folder.is_dir() or (any(folder.iterdir()) and not (folder / marker).exists())
    ):
        raise FileExistsError(
            f"{folder} exists and holds something else (no {marker} in it); choose another folder."
        )
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
