"""What makes two races the same: digests of the model's and the data's contents, and the hooks asked for."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn, uint8

from xgblora_lab.bench.hooks import Hook
from xgblora_lab.tasks.checkpoint import load_config, location
from xgblora_lab.tasks.rows import local_path
from xgblora_lab.tasks.tables import READERS

if TYPE_CHECKING:
    from xgblora_lab.tasks.task import Task

MODEL_FILES = (".json", ".safetensors", ".model", ".txt")
ROWS = 256  # of a task, hashed at a time
CHUNK = 2**20  # bytes of a file


def model_digest(model: str | Path | nn.Module) -> str:
    """The digest of a model: of its files' or its weights' contents; a hub's own revision.

    Parameters
    ----------
    model : str, Path or nn.Module
        As in `race`. A bench that is open on the object is closed, so that the weights are the base's.

    Returns
    -------
    str
        64 hexadecimal digits.

    Raises
    ------
    FileNotFoundError, OSError, ValueError
        As `load_config` raises them for a name.
    """
    if isinstance(model, nn.Module):
        owner = getattr(model, "_bench_owner", None)
        if owner is not None and owner.bench is not None:
            owner.bench.close()
        return _digest([type(model).__qualname__, model.state_dict()])
    config, place = load_config(model), Path(location(model))
    if not place.is_dir():
        return _digest([str(model), getattr(config, "_commit_hash", None)])
    return _digest(sorted(p for p in place.iterdir() if p.suffix in MODEL_FILES))


def data_digest(data: str | Path | Task) -> str:
    """The digest of data: of its files' contents, or of every row of a task.

    Parameters
    ----------
    data : str, Path or Task
        As in `race`. Data of the hub is known by its name, the interpreter's documentation by its version.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    if isinstance(data, str | Path):
        path = local_path(data)
        if path.is_file():
            return _digest([path])
        if data != "planted" and path.is_dir():
            return _digest(sorted(p for p in path.iterdir() if p.suffix.lower() in READERS and p.is_file()))
        return _digest([str(data), sys.version if data == "pydocs" else ""])
    return _digest([data.name, data.kind, getattr(data, "truth", None), *_rows(data)])


def hook_names(make: Callable[[], Sequence[Hook]] | None) -> list[str]:
    """The hooks that a function makes, by class and plain options, such as "Spectrum(limit=16)"."""
    return [_described(hook) for hook in make()] if make is not None else []


def short_digest(names: Sequence[str]) -> str:
    """Eight digits for a list of names, for the name of a file."""
    return _digest(list(names))[:8]


def _described(hook: Hook) -> str:
    plain = (int, float, str, bool, type(None))
    told = []
    for name, value in sorted(vars(hook).items()):
        listed = isinstance(value, list | tuple) and all(isinstance(part, plain) for part in value)
        if not name.startswith("_") and (isinstance(value, plain) or listed):
            told.append(f"{name}={list(value) if isinstance(value, tuple) else value}")
    return f"{type(hook).__qualname__}({', '.join(told)})"


def _rows(task: Task) -> Iterable[Any]:
    for split in ("train", "dev", "test"):
        with contextlib.suppress(ValueError):  # there is no such split
            count = task.size(split)
            for start in range(0, count, ROWS):
                yield split, task.batch(split, range(start, min(count, start + ROWS)))


def _digest(parts: Iterable[Any]) -> str:
    hashed = hashlib.sha256()
    for part in parts:
        _feed(hashed, part)
    return hashed.hexdigest()


def _feed(hashed: Any, value: Any) -> None:
    """Add a value; every part says what it is, so that no two lists of parts look alike."""
    if isinstance(value, Path):
        hashed.update(f"file {value.name!r} {value.stat().st_size} ".encode())
        with value.open("rb") as file:
            while block := file.read(CHUNK):
                hashed.update(block)
    elif isinstance(value, Tensor):
        hashed.update(f"tensor {value.dtype} {tuple(value.shape)} ".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        hashed.update(flat.view(uint8).numpy().tobytes() if flat.numel() else b"")
    elif isinstance(value, Mapping):
        hashed.update(f"mapping {len(value)} ".encode())
        for name, part in value.items():
            _feed(hashed, str(name))
            _feed(hashed, part)
    elif isinstance(value, list | tuple):
        hashed.update(f"list {len(value)} ".encode())
        for part in value:
            _feed(hashed, part)
    else:
        hashed.update(f"{type(value).__name__} {value!r} ".encode())
