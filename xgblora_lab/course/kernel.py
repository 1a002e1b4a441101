"""The kernel of a run: this interpreter's, watched and measured, and the folder that it works in."""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISDIR
from typing import Any

RUNS = "XGBLORA_LAB_RUNS"  # the environment variable that says where `saved` puts what a lesson trains
_PREFIX = "xgblora-lab-run-"
_YOUNG = 60  # seconds in which a folder may be there before its lock is
_LOOK = 0.5  # seconds after which a client looks again for a reply


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a temporary folder, and first sweep away those that killed runs left.

    A folder belongs to a living run as long as the lock in it is held. The operating system takes the lock
    back from a process that was killed.
    """
    from filelock import FileLock

    _sweep(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        with FileLock(folder / "lock"):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(where: Path) -> None:
    from filelock import FileLock, Timeout

    for folder in where.glob(f"{_PREFIX}*"):
        with suppress(OSError, Timeout):
            found = folder.lstat()
            ours = S_ISDIR(found.st_mode) and (not hasattr(os, "getuid") or found.st_uid == os.getuid())
            if not ours or time.time() - found.st_mtime < _YOUNG:
                continue
            with FileLock(folder / "lock", timeout=0):
                pass
            shutil.rmtree(folder)


def kernel_manager(usage: dict[str, float], scratch: Path) -> type:
    """Make a kernel manager that starts this interpreter's ipykernel, whatever kernels are installed.

    The kernel loads `watch`. What it used goes into `usage` when it is stopped. The file by which it
    is reached lies in `scratch`.
    """
    import zmq
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.asynchronous.client import AsyncKernelClient
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from traitlets import Type, default

    class Client(AsyncKernelClient):
        shell_channel_class = Type(shell_channel())  # type: ignore[assignment]

    class ThisInterpreter(AsyncKernelManager):
        client_factory = Type(Client)

        @default("transport_encryption")
        def _encrypted(self) -> str:
            return "auto" if zmq.has("curve") else "disabled"  # unencrypted, the kernel prints a warning

        @default("connection_file")
        def _in_scratch(self) -> str:
            return str(scratch / "kernel.json")

        @property
        def kernel_spec(self) -> KernelSpec:
            # figures as data: small notebooks, and `to_html` draws them
            command = get_kernel_dict(extra_arguments=["--ext", "xgblora_lab.course.watch_hooks"])
            env = {"PLOTLY_RENDERER": "plotly_mimetype", RUNS: str(scratch / "runs")}  # every run trains anew
            return KernelSpec(**command, env=env)

        async def _async_shutdown_kernel(self, now: bool = False, restart: bool = False) -> None:
            with suppress(OSError):  # the kernel may be gone
                usage.update(_used(getattr(self.provisioner, "pid", None) or 0))
            await super()._async_shutdown_kernel(now=now, restart=restart)

        shutdown_kernel = _async_shutdown_kernel  # as in the class above

    return ThisInterpreter


def shell_channel() -> type:
    """Make a channel that finds the kernel's reply also where it came while a message was sent.

    nbclient sends to an `Output` widget's comm while the cell's reply is awaited on the same socket. Such a
    send takes note of what has arrived and tells nobody, so the awaiting side would sleep until the cell's
    time-out. Here it looks again every half second.
    """
    from queue import Empty

    from jupyter_client.channels import AsyncZMQSocketChannel

    class Channel(AsyncZMQSocketChannel):
        async def get_msg(self, timeout: float | None = None) -> dict[str, Any]:  # type: ignore[override]
            end = math.inf if timeout is None else time.monotonic() + timeout
            while True:
                left = max(0.0, end - time.monotonic())
                try:
                    return await super().get_msg(min(left, _LOOK))
                except Empty:
                    if left <= _LOOK:
                        raise

    return Channel


def _used(pid: int) -> dict[str, float]:
    """Return a process's processor seconds and peak memory in bytes; nothing where there is no /proc."""
    home = Path(f"/proc/{pid}")
    if not home.is_dir():
        return {}
    fields = (home / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()  # from the third one on
    used = {"cpu_seconds": (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")}
    # not `ru_maxrss`: that begins at the memory of the process that started this one
    match = re.search(
        r"^VmHWM:\s+(\d+) kB", (home / "status").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    return used | ({"peak_bytes": 1024.0 * int(match[1])} if match else {})
