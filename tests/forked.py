"""Processes that are forked from one which has imported the heavy packages.

A fresh process spends about twelve seconds of the processor on imports, and this suite starts dozens. A
forked one has its own folder and environment like any other; only its modules are there already.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

FORKS = "forkserver" in multiprocessing.get_all_start_methods()
SERVER = multiprocessing.get_context("forkserver" if FORKS else "spawn")
HERE = str(Path(__file__).resolve().parent)
CLONE = str(Path(HERE).parent)  # whose package is tested, whichever is installed


class Kernel:
    """What jupyter_client asks of the `subprocess.Popen` that it expects."""

    stdin = stdout = stderr = None

    def __init__(self, command: list[str], **options: Any) -> None:
        serve()
        begun, begins = SERVER.Pipe(duplex=False)
        folder = str(options.get("cwd") or Path.cwd())
        self.process = SERVER.Process(target=_run, args=(command, folder, dict(options["env"]), begins))
        self.process.start()
        begins.close()
        begun.recv()  # from here on it has a process group of its own, which may be killed
        self.pid = self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self.process.join(timeout)
        return self.poll()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid or 0, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def serve() -> None:
    """Start the process that others are forked from; a second call does nothing, nor one on Windows."""
    if not FORKS:
        return
    from multiprocessing import forkserver

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", os.pathsep.join([HERE, CLONE]))  # what it cannot import it passes over
        SERVER.set_forkserver_preload(["heavy"])
        forkserver.ensure_running()


def _run(command: list[str], folder: str, environment: dict[str, str], begins: Any) -> None:
    """In the fork: become the kernel that `command` would start, `python -m ipykernel_launcher …`."""
    assert "heavy" in sys.modules
    os.setsid()
    begins.send(True)
    begins.close()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    module = command.index("-m") + 1
    assert command[module] == "ipykernel_launcher", command
    # the kernel ends with its parent, whose number it read from the environment when ipykernel was imported
    sys.argv = [*command[module:], f"--IPKernelApp.parent_handle={os.getppid()}"]
    # the tests' own modules are none of the kernel's
    sys.path[:] = [path for path in sys.path if path not in (HERE, CLONE)]
    wanted = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:0] = ["", *wanted]
    if any((Path(path) / "sitecustomize.py").exists() for path in wanted):
        sys.modules.pop("sitecustomize", None)
        importlib.import_module("sitecustomize")
    import plotly.io
    from ipykernel.kernelapp import launch_new_instance

    if renderer := environment.get("PLOTLY_RENDERER"):  # which plotly reads when it is imported
        plotly.io.renderers.default = renderer
    launch_new_instance()


def two(name: str, folder: Path) -> list[tuple[int | None, str]]:
    """Run `in_two_processes(folder)` of a test module in two processes as torchrun starts them.

    Returns the exit code and the end of the standard error of each.
    """
    serve()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pair = [SERVER.Process(target=_rank, args=(rank, port, name, folder)) for rank in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join(280)
        process.kill()
    return [
        (p.exitcode, (folder / f"{rank}.err").read_text(errors="replace")[-3000:])
        for rank, p in enumerate(pair)
    ]


def _rank(rank: int, port: int, name: str, folder: Path) -> None:
    shown = os.open(folder / f"{rank}.err", os.O_CREAT | os.O_WRONLY)
    os.dup2(shown, 2)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    importlib.import_module(name).in_two_processes(folder)
