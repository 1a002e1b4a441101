"""What `open` may serve: a notebook, or a folder of notebooks, and never a folder of the system."""

from __future__ import annotations

import os
from pathlib import Path

from xgblora_lab.course import sources

_SYSTEM: tuple[str, ...] = (
    *("bin", "boot", "dev", "etc", "lib", "lib64", "proc", "run", "sbin", "sys", "usr"),
    *("System", "Library", "private/etc", "Windows", "Program Files"),  # of macOS and Windows
)


def openable(name: str | Path) -> Path:
    """Find the notebook to open; its folder is what JupyterLab will serve.

    Parameters
    ----------
    name : str or Path
        As for `sources.find`, or a folder, whose first notebook is taken.

    Raises
    ------
    FileNotFoundError
        There is no such notebook, or none in the folder.
    ValueError
        It is not a notebook, or it lies in a folder of the system.
    """
    path = _first(Path(name)) if os.path.isdir(name) else sources.find(name)
    sources.read(path)  # refuses what is no notebook
    home = path.resolve().parent
    inside = home.relative_to(home.anchor).as_posix() + "/"
    if home == Path(home.anchor) or inside.startswith(tuple(f"{name}/" for name in _SYSTEM)):
        raise ValueError(f"{home} belongs to the system and is not served: copy {path.name} elsewhere.")
    return path


def _first(folder: Path) -> Path:
    found = sorted(folder.glob("*.ipynb"))
    if not found:
        raise FileNotFoundError(f"There are no notebooks in {folder}: give a folder that holds some.")
    return found[0]


def check_port(port: int) -> None:
    """Raise ValueError where a port is out of range."""
    if not 1 <= port <= 65535:
        raise ValueError(f"--port is a number from 1 to 65535, not {port}.")
