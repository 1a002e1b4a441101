"""What a disk must be asked so that a kill or a power loss leaves the old state or the new one."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def place(path: str | Path) -> Path:
    """Say exactly where a path leads, and refuse one that cannot be written to.

    Returns
    -------
    Path
        The same place; its folder is absolute and without links. The last part may still be a link.

    Raises
    ------
    NotADirectoryError, PermissionError
        A folder on the way is a file, or may not be written into.
    """
    path = Path(path)
    whole = path.name in ("", "..")  # "." and the like are a folder's whole name
    path = Path(os.path.realpath(path)) if whole else Path(os.path.realpath(path.parent)) / path.name
    with suppress(FileNotFoundError, NotADirectoryError):
        path.lstat()  # raises where the name is too long
    above = next(p for p in [*path.parents, path] if os.path.lexists(p))
    if not above.is_dir():
        raise NotADirectoryError(f"{above} is {kind(above)}, so nothing can be written below it.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(f"{above} may not be written into; choose another place.")
    return path


def kind(path: Path) -> str:
    """What stands at a path, in words."""
    if path.is_symlink():
        return f"a link to {os.readlink(path)}"
    return "a folder" if path.is_dir() else "a file" if path.is_file() else "a device, a pipe or a socket"


def make_folders(folder: Path) -> list[Path]:
    """Make a folder, and those on the way to it, so that they survive a power loss; returns the new ones."""
    made = [p for p in [folder, *folder.parents] if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for new in made:
        sync(new.parent)
    return made


@contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """Yield a folder beside `path` under a name of its own; it is gone after the block.

    Folders on the way to `path` are made, and taken away again where the block fails.
    """
    from filelock import FileLock

    made = make_folders(path.parent)
    recover(path)
    scratch = Path(tempfile.mkdtemp(prefix=scratch_prefix(path), dir=path.parent))
    try:
        with FileLock(scratch / "lock"):
            try:
                yield scratch
            finally:
                _clear(scratch, path)
    except BaseException:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise


def recover(path: Path) -> None:
    """Clear what a killed process left beside `path`, and bring back a folder that it had put aside."""
    from filelock import FileLock, Timeout

    for scratch in [p for p in path.parent.iterdir() if p.name.startswith(scratch_prefix(path))]:
        with suppress(Timeout), FileLock(scratch / "lock", timeout=0):  # else it is being written
            _clear(scratch, path)


def _clear(scratch: Path, path: Path) -> None:
    old, new = scratch / "old", scratch / "new"
    if old.exists() and new.exists():  # stopped between two renames: `old` is the only whole one
        if os.path.lexists(path):
            return  # somebody put something else there since: `old` stays for them to decide
        os.rename(old, path)
        sync(path.parent)
    for _ in range(2):  # a disk may refuse once, and what stays inside a new folder would become a part of it
        shutil.rmtree(scratch, ignore_errors=True)


def exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; False where the system cannot."""
    names = os.fsencode(one), os.fsencode(other)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            failed = library.renamex_np(*names, 2)  # RENAME_SWAP
        else:
            failed = library.renameat2(-100, names[0], -100, names[1], 2)  # AT_FDCWD, RENAME_EXCHANGE
    except (AttributeError, TypeError):  # no such call here, or no such library (Windows)
        return False
    if failed and (number := ctypes.get_errno()) not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        raise OSError(number, os.strerror(number), str(other))
    return not failed


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk and survives a power loss."""
    folder = path.is_dir()
    if folder and os.name == "nt":
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not folder or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise  # some network disks know no such thing as a folder's fsync
    finally:
        os.close(descriptor)


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def digest(parts: Iterable[tuple[str, Tensor | str | int]]) -> str:
    """SHA-256 of named values in their order: tensors with their dtype and shape, strings and numbers.

    Two models, or two tables of rows, have the same digest only where every bit is the same.
    """
    import torch

    found = hashlib.sha256()
    for name, value in parts:
        if isinstance(value, torch.Tensor):
            found.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
            flat = value.detach().cpu().contiguous().flatten()
            for block in flat.split(1 << 22):
                found.update(block.view(torch.uint8).numpy())
        else:
            found.update(f"{name}={value!r};".encode())
    return found.hexdigest()


def scratch_prefix(path: Path) -> str:
    """How the names of the folders begin that `scratch_beside` makes for a path."""
    return f".{path.name[:24]}-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]}-"
