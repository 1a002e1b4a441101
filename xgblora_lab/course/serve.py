"""What `open` serves: a notebook, or a folder of notebooks, and never a folder of the system."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

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


def jupyterlab(path: Path, port: int, no_browser: bool) -> None:
    """Serve a notebook and its folder on this machine alone, until it is stopped.

    The notebook's kernel starts with the server and imports while the browser still loads its page.

    Parameters
    ----------
    path : Path
        The notebook.
    port : int
        On 127.0.0.1; the next free one is taken where it is in use.
    no_browser : bool
        Print the address only.
    """
    from jupyterlab.labapp import LabApp

    root = path.resolve().parent
    arguments = [
        str(root),
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        f"--ServerApp.root_dir={root}",
        f"--LabApp.default_url=/lab/tree/{path.name}",
    ]
    if no_browser:
        arguments.append("--no-browser")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--allow-root")  # a container: the server is on the loopback, behind its token
    server = LabApp.initialize_server(argv=arguments)
    if sources.read(path).metadata.get("kernelspec", {}).get("name") == "python3":
        server.io_loop.add_callback(_warm, server, path.name)
    server.start()


async def _warm(server: Any, name: str) -> None:
    """Start the notebook's kernel, which JupyterLab then finds, and let it import what takes seconds."""
    session = await server.session_manager.create_session(name, name, "notebook", "python3")
    client = server.kernel_manager.get_kernel(session["kernel"]["id"]).client()
    client.start_channels()
    await client.wait_for_ready()
    client.execute("__import__('xgblora_lab.widgets')", silent=True)  # no name of the reader's changes
    client.stop_channels()
