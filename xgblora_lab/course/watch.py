"""Loaded into the kernel of a run: notes the errors that no cell shows, and waits for those still to come.

A runner sees only what a cell displays. A task whose result nobody asks for, a thread that fails after the
last cell, a failing shell command and a captured traceback leave the cells clean. `load_ipython_extension`
hooks the places that such errors pass. `end` runs as a last cell, waits, looks through what is left, and
shows what was found.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import gc
import multiprocessing.process
import subprocess
import threading
import time
import traceback
import weakref
from dataclasses import dataclass, field
from typing import Any

MIME = "application/vnd.xgblora-lab.hidden+json"
TRACEBACK = "Traceback (most recent call last)"
_KERNELS = {"ipykernel", "jupyter_client", "tornado", "zmq"}  # their tasks live as long as the kernel
_STOPPED = {0, None, -15, -9}  # exit codes of a process that ended well, runs on, or was stopped on purpose


@dataclass
class Watch:
    """What was seen in this kernel so far."""

    errors: list[dict[str, str]] = field(default_factory=list)
    warnings: list[dict[str, str]] = field(default_factory=list)
    cells: list[str] = field(default_factory=list)  # sources: the running cell, then those that it runs
    seen: list[BaseException] = field(default_factory=list)  # kept, so that an id means one of them
    threads: list[threading.Thread] = field(default_factory=list)
    timers: list[asyncio.TimerHandle] = field(default_factory=list)
    commands: list[subprocess.Popen[Any]] = field(default_factory=list)
    processes: list[multiprocessing.process.BaseProcess] = field(default_factory=list)
    at_exit: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    futures: weakref.WeakSet[Any] = field(default_factory=weakref.WeakSet)
    unasked: dict[int, Any] = field(default_factory=dict)  # futures that failed, by id, until someone asks

    def note(self, what: str, error: BaseException | None = None, text: str = "") -> None:
        """Keep an error for the report, each exception once."""
        if error is not None:
            if any(error is known for known in self.seen):
                return
            self.seen.append(error)
            text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
            what = f"{what}: {type(error).__name__}: {error}"
        self.errors.append({"message": what, "traceback": text[-8000:], "source": self.source})

    @property
    def source(self) -> str:
        """The source of the running cell; empty between cells."""
        return self.cells[0] if self.cells else ""

    def warn(self, what: str) -> None:
        """Keep a warning for the report."""
        self.warnings.append({"message": what, "traceback": "", "source": self.source})

    def look_at(self, kind: str, content: Any) -> None:
        """Note an error or a traceback in a message from the kernel; a later `clear_output` hides it."""
        if kind == "error":
            text = "\n".join(content.get("traceback", []))
            self.note(f"an error was shown: {content.get('ename')}: {content.get('evalue')}", text=text)
        elif kind == "stream":
            self.look_through(f"a traceback on {content.get('name')}", content.get("text", ""))
        elif kind == "comm_msg":
            state = content.get("data", {}).get("state", {})
            self.look_through("a traceback in a widget's output", str(state.get("outputs", "")))
        elif kind in ("display_data", "execute_result", "update_display_data"):
            for value in content.get("data", {}).values():
                self.look_through("a traceback was displayed", value)

    def look_through(self, what: str, text: Any) -> None:
        """Note the last line of a traceback where a text holds one."""
        if isinstance(text, str) and TRACEBACK in text:
            self.note(f"{what}: {text.strip().splitlines()[-1].strip()[:300]}", text=text)

    def pending(self) -> bool:
        """Whether something that the notebook started may still fail."""
        now = time.monotonic()
        return (
            any(thread.is_alive() for thread in self.threads)
            or any(not timer.cancelled() and timer.when() > now for timer in self.timers)
            or any(command.poll() is None for command in self.commands)
            or any(process.exitcode is None for process in self.processes if _open(process))
            or any(not future.done() for future in self.futures)
            or any(_of_notebook(task) for task in asyncio.all_tasks() - {asyncio.current_task()})
        )

    def close(self) -> None:
        """Look through what is left when the waiting is over."""
        for process in filter(_open, self.processes):
            if process.exitcode not in _STOPPED:
                self.note(f"the process {process.name} ended with exit code {process.exitcode}")
        for command in self.commands:
            if command.poll() not in _STOPPED:
                self.note(f"the command `{short(command.args)}` ended with exit code {command.returncode}")
        gc.collect()  # what is only held by a circle fails in its __del__ now
        for thing in gc.get_objects():
            if issubclass(type(thing), asyncio.Future) and getattr(thing, "_log_traceback", False):
                self.note("nobody asked for the result of a task or future", thing.exception())
        for future in list(self.unasked.values()):
            self.note("nobody asked for the result of a future", _reason(future))
        while self.at_exit:
            function, arguments, options = self.at_exit.pop()
            _unregister(function)
            try:
                function(*arguments, **options)
            except BaseException as error:
                self.note("a function for the exit failed", error)


WATCH = Watch()
_unregister = atexit.unregister
_reason = concurrent.futures.Future.exception  # unhooked: it does not count as asking


def short(command: Any) -> str:
    """Return a command as one line of at most 100 characters."""
    text = command if isinstance(command, str) else " ".join(map(str, command))
    return text if len(text) <= 100 else text[:97] + "..."


async def end(seconds: float) -> None:
    """Wait for what the notebook started, then show every hidden error as data of the type `MIME`.

    Parameters
    ----------
    seconds : float
        How long to wait at most. What still runs then is no error.
    """
    from IPython.display import display

    WATCH.cells.clear()  # what fails from now on is no cell's
    deadline = time.monotonic() + seconds
    await asyncio.sleep(0.01)  # for callbacks that are due
    while WATCH.pending() and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.01)
    WATCH.close()
    display({MIME: {"errors": WATCH.errors, "warnings": WATCH.warnings}}, raw=True)


def _of_notebook(task: asyncio.Task[Any]) -> bool:
    frame = getattr(task.get_coro(), "cr_frame", None)
    module = "" if frame is None else str(frame.f_globals.get("__name__", ""))
    return module.partition(".")[0] not in _KERNELS


def _open(process: multiprocessing.process.BaseProcess) -> bool:
    return not getattr(process, "_closed", False)  # a closed process no longer tells its exit code
