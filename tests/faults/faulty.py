"""What fails on purpose: a disk at its n-th operation that changes it, a process at its n-th line.

Works inside a process that was forked for it, because a crash is `os._exit`: nothing is tidied up. Counted on
the disk: files opened for writing and what is written to them, folders made, renamed and removed, files
renamed and deleted, fsync, safetensors' own writing, and the swap of two folders.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import multiprocessing.util
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import safetensors.torch

import xgblora_lab
import xgblora_lab.files as files

PACKAGE = str(Path(xgblora_lab.__file__).parent)
CRASHED = 137
LONGEST = 150  # seconds, of one trial
CRASHES = ("kill", "torn", "power")  # the process ends; what comes back later is a new one
ERRORS = ("full", "once", "readonly")  # OSError; the process goes on and tries again
NAMES = ("mkdir", "rmdir", "unlink", "remove", "rename", "replace", "fsync", "link", "symlink", "truncate")


class Disk:
    """Counts in a block; at operation `at` (from 0) the fault happens. It stays installed, healthy, after it.

    kill: the process ends before the operation. torn: it ends after it, a write being half done. power: as
    kill, and what was not synced is lost: content of files, and renames (but not deletions). full: this and
    every later operation that needs space raises ENOSPC. once: this one raises EIO. readonly: from here on
    everything raises EROFS.
    """

    def __init__(self, fault: str, at: int) -> None:
        self.fault, self.at, self.count, self.healthy = fault, at, 0, False
        self.trace: list[str] = []
        self._unsynced: dict[tuple[int, int], tuple[int, int]] = {}  # inode: descriptor, size that is safe
        self._kept: list[str] = []  # second names of files that a rename has overwritten
        self._renames: list[tuple[int, Callable[[], None]]] = []  # inode of the folder, how to undo it
        self._real = {name: getattr(os, name) for name in (*NAMES, "open", "write")}
        self._open, self._exchange = io.open, files.exchange
        self._serialize = safetensors.torch.serialize_file

    def __enter__(self) -> Disk:
        for name in NAMES:
            setattr(os, name, self._counted(name))
        os.open, os.write = self._os_open, self._os_write
        io.open = builtins.open = self._opened
        safetensors.torch.serialize_file = self._serialized
        files.exchange = self._exchanged
        return self

    def __exit__(self, *exception: object) -> bool:
        self.healthy = True
        return isinstance(exception[1], OSError) and "planned" in str(exception[1])

    def operation(self, name: str, needs_space: bool, half: Callable[[], Any], do: Callable[[], Any]) -> Any:
        """Do it, or fail as planned. `half` does a part of it."""
        now, self.count = self.count, self.count + 1
        self.trace.append(name)
        if self.healthy or now < self.at:
            return do()
        if self.fault in ("kill", "power") and now == self.at:
            self._die()
        if self.fault == "torn" and now == self.at:
            with suppress(OSError):  # what would fail anyway, such as to make a folder that is there
                half()
            self._die()
        if self.fault == "full" and needs_space:
            half()
            raise OSError(errno.ENOSPC, "no space left on the device (planned)")
        if self.fault == "once" and now == self.at:
            raise OSError(errno.EIO, "input/output error (planned)")
        if self.fault == "readonly":
            raise OSError(errno.EROFS, "read-only file system (planned)")
        return do()

    def _die(self) -> None:
        if self.fault == "power":
            for descriptor, size in self._unsynced.values():
                os.ftruncate(descriptor, size)
            for _, undo in reversed(self._renames):
                undo()
            for kept in self._kept:
                if os.path.exists(kept):
                    self._real["unlink"](kept)
        os._exit(CRASHED)

    def _counted(self, name: str) -> Callable[..., Any]:
        real = self._real[name]

        def call(*arguments: Any, **options: Any) -> Any:
            def do() -> Any:
                renames = self.fault == "power" and name in ("rename", "replace")
                undo = self._undo(*arguments) if renames else None
                done = real(*arguments, **options)
                if name == "fsync":
                    self._synced(arguments[0])
                if undo is not None:
                    self._renames.append((_folder(arguments[1]), undo))
                return done

            what = f"{name} {' '.join(str(a) for a in arguments if not isinstance(a, int))}"
            return self.operation(what, name in ("mkdir", "fsync", "link", "symlink"), do, do)

        return call

    def _undo(self, source: Any, target: Any) -> Callable[[], None]:
        kept = None
        if os.path.isfile(target):
            kept = f"{target}.kept-{self.count}"
            self._real["link"](target, kept)
            self._kept.append(kept)

        def undo() -> None:
            try:
                self._real["rename"](target, source)
                if kept is not None:
                    self._real["rename"](kept, target)
            except OSError:  # what it was is gone for good
                shutil.rmtree(target, ignore_errors=True)

        return undo

    def _exchanged(self, one: Path, other: Path) -> bool:
        def do() -> bool:
            done = self._exchange(one, other)

            def undo() -> None:
                try:
                    self._exchange(one, other)
                except OSError:
                    shutil.rmtree(other, ignore_errors=True)

            if done:
                self._renames.append((_folder(other), undo))
            return done

        return self.operation(f"exchange {one} {other}", False, do, do)

    def _dirty(self, path: Any, safe: int) -> None:
        descriptor = self._real["open"](path, os.O_WRONLY)
        found = os.fstat(descriptor)
        self._unsynced.setdefault((found.st_dev, found.st_ino), (descriptor, safe))

    def _synced(self, descriptor: int) -> None:
        found = os.fstat(descriptor)
        self._unsynced.pop((found.st_dev, found.st_ino), None)
        self._renames = [r for r in self._renames if r[0] != found.st_ino]

    def _os_open(self, path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        def do() -> int:
            return self._real["open"](path, flags, *arguments, **options)

        if not flags & os.O_CREAT:
            return do()
        return self.operation(f"open {path}", True, lambda: None, do)

    def _os_write(self, descriptor: int, data: bytes) -> int:
        def do() -> int:
            return self._real["write"](descriptor, data)

        return self.operation("write", True, lambda: self._real["write"](descriptor, data[::2]), do)

    def _opened(self, file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if isinstance(file, int) or not set(mode) & set("wax+"):
            return self._open(file, mode, *arguments, **options)

        def do() -> Any:
            safe = os.path.getsize(file) if "a" in mode and os.path.exists(file) else 0
            opened = self._open(file, mode, *arguments, **options)
            self._dirty(file, safe)
            return _File(opened, self, str(file))

        return self.operation(f"open {file}", True, lambda: None, do)

    def _serialized(self, tensors: Any, filename: Any, *arguments: Any, **options: Any) -> None:
        def do() -> None:
            self._serialize(tensors, filename, *arguments, **options)
            self._dirty(filename, 0)

        def half() -> None:
            do()
            self._real["truncate"](filename, os.path.getsize(filename) // 2)

        self.operation(f"write {filename}", True, half, do)


class _File:
    """A file open for writing: what is written is there at once, and may be cut."""

    def __init__(self, file: Any, disk: Disk, name: str) -> None:
        self._file, self._disk, self._name = file, disk, name

    def write(self, data: Any) -> Any:
        def put(part: Any) -> Any:
            count = self._file.write(part)
            self._file.flush()
            return count

        return self._disk.operation(
            f"write {self._name}", True, lambda: put(data[: len(data) // 2]), lambda: put(data)
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


def _folder(path: Any) -> int:
    return os.stat(os.path.dirname(os.path.abspath(path))).st_ino


def in_a_process(work: Callable[[], Any]) -> int:
    """The exit status of a fork that does `work`; what it raises is told on the standard error."""
    with warnings.catch_warnings():  # Python 3.12 on warns where there are threads, such as a progress bar's
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        status = 1
        signal.alarm(LONGEST)
        multiprocessing.util._run_after_forkers()  # as in its own forks: no server thread came along
        try:
            work()
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Lines:
    """Counts the lines that run in a block, and presses Ctrl-C at one of them.

    The lines are those of the package and of `contextlib` where it runs the package's `with` blocks.

    Parameters
    ----------
    stop : int or None
        The line at which to interrupt, from 1; None: none.
    dies : bool
        End the process there instead.
    """

    def __init__(self, stop: int | None = None, dies: bool = False) -> None:
        self.stop, self.dies, self.count, self.where = stop, dies, 0, ""

    def __enter__(self) -> Lines:
        self._outer = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *exception: object) -> bool:
        sys.settrace(self._outer)
        return exception[0] is KeyboardInterrupt

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        caller: FrameType | None = frame
        while caller is not None and caller.f_code.co_filename == contextlib.__file__:
            caller = caller.f_back
        ours = caller is not None and caller.f_code.co_filename.startswith(PACKAGE)
        return self._line if ours else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self.count += 1
            if self.count == self.stop:
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                if self.dies:
                    os._exit(CRASHED)
                raise KeyboardInterrupt
        return self._line
