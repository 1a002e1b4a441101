"""What makes two races the same: digests of the model's and the data's contents, and the hooks asked for."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from xgblora_lab.bench.hooks import Hook
from xgblora_lab.disk import digest, digest_of
from xgblora_lab.precision import fastest, width_of
from xgblora_lab.tasks.checkpoint import load_config, location
from xgblora_lab.tasks.identity import rows_of
from xgblora_lab.tasks.rows import local_path
from xgblora_lab.tasks.safe import file_of
from xgblora_lab.tasks.tables import READERS

if TYPE_CHECKING:
    from xgblora_lab.tasks.task import Task

MODEL_FILES = (".json", ".safetensors", ".model", ".txt")


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
        return digest([("class", type(model).__qualname__), *model.state_dict().items()])
    load_config(model)  # says clearly what is wrong with a folder or a hub id
    place = Path(location(model))
    if not place.is_dir():
        found = file_of(str(model), "config.json")  # in the hub's cache, below the name of the commit
        return digest([("name", str(model)), ("revision", found.parent.name if found else "")])
    return _files(p for p in place.iterdir() if p.suffix in MODEL_FILES)


def precision_of(asked: str | None, model: str | Path | nn.Module, folder: Path | None) -> str | None:
    """The mixed precision of every run of a race, also of those in other processes.

    Parameters
    ----------
    asked : str or None
        As in `race`.
    model : str, Path or nn.Module
        As in `race`; its width is what "auto" measures at.
    folder : Path or None
        The race's. For "auto", a race that goes on there keeps the precision that it began with.

    Returns
    -------
    str or None
        What was asked; in place of "auto" the precision that was the faster one.
    """
    if asked != "auto":
        return asked
    with contextlib.suppress(OSError, ValueError, AttributeError):
        held = json.loads((folder / "settings.json").read_text(encoding="utf-8")) if folder else {}
        if held.get("precision"):
            return str(held["precision"])
    if isinstance(model, nn.Module):
        return fastest(width_of(model))
    return fastest(int(getattr(load_config(model), "hidden_size", 1)))


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
            return _files([path])
        if data != "planted" and path.is_dir():
            return _files(p for p in path.iterdir() if p.suffix.lower() in READERS and p.is_file())
        return digest([("name", str(data)), ("python", sys.version if data == "pydocs" else "")])
    truth = [
        (f"truth.{n}.{i}", t) for n, pair in getattr(data, "truth", {}).items() for i, t in enumerate(pair)
    ]
    return digest([("name", data.name), ("kind", data.kind), *truth, *rows_of(data)])


def hook_names(make: Callable[[], Sequence[Hook]] | None) -> list[str]:
    """The hooks that a function makes, by class and plain options, such as "Spectrum(limit=16)"."""
    return [_described(hook) for hook in make()] if make is not None else []


def short_digest(names: Sequence[str]) -> str:
    """Eight digits for a list of names, for the name of a file."""
    return digest(("", name) for name in names)[:8]


def _described(hook: Hook) -> str:
    plain = (int, float, str, bool, type(None))
    told = []
    for name, value in sorted(vars(hook).items()):
        listed = isinstance(value, list | tuple) and all(isinstance(part, plain) for part in value)
        if not name.startswith("_") and (isinstance(value, plain) or listed):
            told.append(f"{name}={list(value) if isinstance(value, tuple) else value}")
    return f"{type(hook).__qualname__}({', '.join(told)})"


def _files(paths: Iterable[Path]) -> str:
    return digest((path.name, digest_of(path)) for path in sorted(paths))
