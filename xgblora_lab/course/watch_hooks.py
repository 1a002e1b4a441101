"""The hooks of a kernel's watch: what is patched, so that an error on its way past is noted."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import functools
import logging
import multiprocessing.process
import os
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from typing import Any

from xgblora_lab.course.watch import WATCH, Watch, short


def load_ipython_extension(shell: Any) -> None:
    """Begin to watch; called by IPython as the kernel starts."""
    install(WATCH, shell)


def install(watch: Watch, shell: Any) -> None:
    """Hook the places that hidden errors pass in this process, for good."""
    _hook_cells(watch, shell)
    _hook_output(watch)
    _hook_reports(watch)
    _hook_asyncio(watch)
    _hook_futures(watch)
    _hook_threads(watch)
    _hook_processes(watch)
    _hook_exit(watch)


def _hook(owner: Any, name: str) -> Callable[[Callable[..., Any]], None]:
    """Replace `owner.name` by the decorated function, which gets the original as its first argument."""

    def replace(wrapper: Callable[..., Any]) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def hooked(*args: Any, **kwargs: Any) -> Any:
            return wrapper(original, *args, **kwargs)

        setattr(owner, name, hooked)

    return replace


def _hook_cells(watch: Watch, shell: Any) -> None:
    def before(info: Any) -> None:
        watch.cells.append(info.raw_cell or "")

    def after(result: Any) -> None:
        error = result.error_before_exec or result.error_in_exec
        if len(watch.cells) > 1 and error is not None:  # the outermost cell's own error ends the run
            watch.note("a cell magic or a cell run by a cell failed", error)
        del watch.cells[-1:]

    shell.events.register("pre_run_cell", before)
    shell.events.register("post_run_cell", after)

    @_hook(shell, "system")
    def system(original: Any, command: str) -> Any:
        result = original(command)
        if code := shell.user_ns.get("_exit_code"):
            watch.note(f"the command `{command}` ended with exit code {code}")
        return result


def _hook_output(watch: Watch) -> None:
    from IPython.utils.capture import capture_output
    from jupyter_client.session import Session

    @_hook(Session, "send")
    def send(original: Any, self: Any, stream: Any, message: Any, *rest: Any, **options: Any) -> Any:
        if not isinstance(message, str):
            watch.look_at(message["header"]["msg_type"], message["content"])
        elif content := (rest[0] if rest else options.get("content")):
            watch.look_at(message, content)
        return original(self, stream, message, *rest, **options)

    @_hook(capture_output, "__exit__")
    def leave(original: Any, self: Any, *error: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "getvalue"):
                watch.look_through("a traceback was captured", stream.getvalue())
        return original(self, *error)


def _hook_reports(watch: Watch) -> None:
    @_hook(traceback.TracebackException, "print")
    def show(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        if not _caller("traceback", "functools", __name__).startswith(
            "logging"
        ):  # the log's level decides there
            lines = "".join(self.format())
            watch.note(f"a traceback was printed: {lines.strip().splitlines()[-1]}", text=lines)
        return original(self, *args, **kwargs)

    @_hook(logging.Logger, "callHandlers")
    def log(original: Any, self: Any, record: logging.LogRecord) -> Any:
        error = record.exc_info[1] if record.exc_info else None
        said = f"{record.levelname} in the log of {record.name}: {record.getMessage()}"
        if record.levelno >= logging.ERROR:
            watch.note(said, error)
        elif record.levelno >= logging.WARNING:
            watch.warn(said)
        return original(self, record)

    @_hook(warnings, "showwarning")
    def warn(original: Any, message: Any, category: type[Warning], *args: Any, **kwargs: Any) -> Any:
        watch.warn(f"{category.__name__}: {message}")
        return original(message, category, *args, **kwargs)

    @_hook(sys, "unraisablehook")
    def unraisable(original: Any, found: Any) -> Any:
        watch.note(f"{found.err_msg or 'Exception ignored in'} {found.object!r}", found.exc_value)
        return original(found)


def _hook_asyncio(watch: Watch) -> None:
    @_hook(asyncio.BaseEventLoop, "call_exception_handler")
    def failed(original: Any, self: Any, context: dict[str, Any]) -> Any:
        if (error := context.get("exception")) is not None:
            watch.note("a task, future or callback failed", error)
        return original(self, context)

    @_hook(asyncio.BaseEventLoop, "call_at")
    def call_at(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        timer = original(self, *args, **kwargs)
        if _caller("asyncio", "functools", __name__) == "__main__":
            watch.timers.append(timer)
        return timer


def _hook_futures(watch: Watch) -> None:
    future = concurrent.futures.Future

    @_hook(future, "__init__")
    def begin(original: Any, self: Any) -> None:
        original(self)
        if _caller("asyncio", "concurrent", "functools", __name__) == "__main__":
            watch.futures.add(self)

    @_hook(future, "set_exception")
    def fail(original: Any, self: Any, error: Any) -> Any:
        watch.unasked[id(self)] = self
        return original(self, error)

    for name in ("result", "exception"):

        @_hook(future, name)
        def ask(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return original(self, *args, **kwargs)
            finally:
                if self.done():
                    watch.unasked.pop(id(self), None)


def _hook_threads(watch: Watch) -> None:
    @_hook(threading.Thread, "start")
    def start(original: Any, self: Any) -> Any:
        run = self.run

        def watched() -> None:
            try:
                run()
            except BaseException as error:
                if not (isinstance(error, SystemExit) and error.code in (None, 0)):
                    watch.note("a thread failed", error)
                raise

        self.run = watched
        if _caller("threading", "functools", __name__) == "__main__":
            watch.threads.append(self)
        return original(self)


def _hook_processes(watch: Watch) -> None:
    @_hook(multiprocessing.process.BaseProcess, "start")
    def fork(original: Any, self: Any) -> Any:
        if _caller("multiprocessing", "functools", __name__) == "__main__":
            watch.processes.append(self)
        return original(self)

    @_hook(subprocess.Popen, "__init__")
    def run(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        original(self, *args, **kwargs)
        if _caller("subprocess", "IPython", "ipykernel", "functools", __name__) == "__main__":
            watch.commands.append(self)

    @_hook(subprocess.CalledProcessError, "__init__")
    def told(original: Any, self: Any, code: int, command: Any, *args: Any, **kwargs: Any) -> None:
        original(self, code, command, *args, **kwargs)  # from now on it is an error like any other
        watch.commands = [c for c in watch.commands if c.args != command or c.returncode != code]

    @_hook(os, "system")
    def system(original: Any, command: Any) -> Any:
        code = original(command)
        if code and _caller("functools", __name__) == "__main__":
            watch.note(f"the command `{short(command)}` ended with exit status {code}")
        return code


def _hook_exit(watch: Watch) -> None:
    @_hook(atexit, "register")
    def register(original: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        if _caller("functools", __name__) == "__main__":
            watch.at_exit.append((function, args, kwargs))
        return original(function, *args, **kwargs)

    @_hook(atexit, "unregister")
    def unregister(original: Any, function: Any) -> Any:
        watch.at_exit = [entry for entry in watch.at_exit if entry[0] != function]
        return original(function)


def _caller(*through: str) -> str:
    """Name the module of the first calling function that is not of a module or package in `through`."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if not any(name == known or name.startswith(f"{known}.") for known in through):
            return name
        frame = frame.f_back
    return ""
