"""Writing files and folders whole or not at all: under another name first, then into their place."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgblora_lab.disk import digest_of, exchange, kind, place, scratch_beside, sync

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"  # in every folder that `replaced_folder` wrote: its files, their sizes and digests
_WIDTH = 110  # of a line of JSON; a list of numbers may be longer


@contextmanager
def replaced(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path whose file takes the place of `path` when the block ends well.

    Whoever looks finds the old file or the new one, whole, also after a kill, a power loss or on a full disk.
    After an exception nothing is left beside it, and what a killed process left goes with the next writing.

    Parameters
    ----------
    path : str or Path
        The file to replace or to make; folders on the way to it are made too.

    Yields
    ------
    Path
        A free name with the same suffix, on the same disk.

    Raises
    ------
    FileExistsError, NotADirectoryError, PermissionError
        As `check_file`, before the block begins.
    """
    path = check_file(path)
    with scratch_beside(path) as scratch:
        partial = scratch / f"new{path.suffix}"
        yield partial
        sync(partial)
        os.replace(partial, path)
        sync(path.parent)


@contextmanager
def replaced_folder(folder: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder that takes the place of `folder` when the block ends well.

    What `replaced` promises of a file holds of the whole folder. Where the system cannot swap two names in
    one step (neither Linux nor macOS, some network disks), the old folder is put aside for a moment; after a
    kill in that moment the next writing brings it back.

    Parameters
    ----------
    folder : str or Path
        The folder to replace or to make. An existing one is replaced only where it is empty or was written
        by this function and holds nothing else since, so that no save can delete something else.

    Yields
    ------
    Path
        The folder to write into. `manifest.json` is added to it: every file with its size and digest.

    Raises
    ------
    FileExistsError, NotADirectoryError, PermissionError
        As `check_folder`, before the block begins.
    """
    folder = check_folder(folder)
    with scratch_beside(folder) as scratch:
        new = scratch / "new"
        new.mkdir()
        yield new
        listed = {name: [size, digest_of(new / name)] for name, size in _listed(new).items()}
        manifest = json.dumps({"made_by": "xgblora_lab", "files": listed}, indent=1)
        (new / MANIFEST).write_text(manifest + "\n", encoding="utf-8")
        for inside in [*new.rglob("*"), new]:
            sync(inside)
        if not check_folder(folder).exists():  # looked at again: the writing may have taken long
            os.rename(new, folder)
        elif not exchange(new, folder):
            os.rename(folder, scratch / "old")
            os.rename(new, folder)
        sync(folder.parent)  # before the old one is deleted


def check_file(path: str | Path) -> Path:
    """Refuse a place where no file may be written; to be asked before the work that makes its content.

    Returns
    -------
    Path
        The same place; its folder is absolute and without links.

    Raises
    ------
    FileExistsError
        A folder, a link, a device or the like is there.
    NotADirectoryError, PermissionError
        A folder on the way is a file, or may not be written into.
    """
    path = place(path)
    if path.is_symlink() or (os.path.lexists(path) and not path.is_file()):
        raise FileExistsError(f"{path} is {kind(path)}, not a file; choose another name for the new file.")
    return path


def check_folder(folder: str | Path) -> Path:
    """Refuse a folder that `replaced_folder` may not replace; to be asked before the work.

    Returns
    -------
    Path
        The same place; its parent is absolute and without links.

    Raises
    ------
    FileExistsError
        It is a file, a link or the working directory, or holds what `replaced_folder` did not write.
    NotADirectoryError, PermissionError
        A folder on the way is a file, or may not be written into.
    """
    folder = place(folder)
    if folder.is_symlink() or (os.path.lexists(folder) and not folder.is_dir()):
        raise FileExistsError(f"{folder} is {kind(folder)}, not a folder; choose another name.")
    if Path.cwd().is_relative_to(folder):
        raise FileExistsError(f"{folder} is the folder that you work in; name a new folder inside it.")
    inside = _listed(folder)
    written = manifest_of(folder) if inside else {}
    strange = [n for n, size in inside.items() if written.get(n) != [size, digest_of(folder / n)]]
    if strange:
        what = f"{strange[0]} was put there or changed since" if written else f"no {MANIFEST} of xgblora_lab"
        raise FileExistsError(f"{folder} exists and holds something else ({what}); choose another folder.")
    return folder


def manifest_of(folder: Path) -> dict[str, Any]:
    """[Size, SHA-256] by name of what `replaced_folder` wrote; empty where it did not write the folder."""
    try:
        return dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}


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


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """Read lines of JSON, each an object; a last line that is not whole (its writer was stopped) is left out.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It has no line, or a line is no JSON object.
    """
    *lines, _ = Path(path).read_bytes().split(b"\n")
    if lines and b"\0" in lines[-1]:  # what a power loss leaves of a line on some disks
        lines.pop()
    read = []
    for number, line in enumerate(lines, 1):
        try:
            read.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: no JSON ({error}); put the file back.") from error
    if not read or not all(isinstance(value, dict) for value in read):
        raise ValueError(f"{path} holds no lines of JSON objects; put the file back.")
    return read


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors of any device as safetensors, whole or not at all."""
    with replaced(path) as partial:
        write_tensors(partial, tensors)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors of any device as safetensors into a file that nobody reads yet."""
    from safetensors.torch import save_file

    plain_tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    save_file(plain_tensors, path, metadata={"format": "pt"})


def load_tensors(path: Path, sha256: str = "") -> dict[str, Tensor]:
    """Read a safetensors file; no code can hide in one.

    Parameters
    ----------
    path : Path
        The file.
    sha256 : str, optional
        What its digest must begin with, where that is known.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is damaged, or it is not the file that was written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; the folder is incomplete or was not written by save().")
    if not digest_of(path).startswith(sha256):
        raise ValueError(f"{path} is not as it was written; put the file back, or the whole folder.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file ({error}); put it back.") from error


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


def _listed(folder: Path) -> dict[str, int]:
    """Every file and link below a folder with its size, without the manifest."""
    inside = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*"))}
    return {
        name: p.lstat().st_size
        for name, p in inside.items()
        if name != MANIFEST and (p.is_symlink() or not p.is_dir())
    }


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
