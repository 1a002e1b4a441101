"""Processes on this machine for the runs of a race."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

MOST = 256  # processes on one machine


class Processes(Executor):
    """A pool of processes, each with its share of the cores, that outlives the death of one of them.

    The runs that a dead process takes along fail; the next one that is submitted finds a new pool.

    Parameters
    ----------
    count : int
        How many processes.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = self._new()

    def _new(self) -> ProcessPoolExecutor:
        threads = max(1, (os.cpu_count() or 1) // self.count)
        context = multiprocessing.get_context("spawn")  # a forked torch may hang
        return ProcessPoolExecutor(self.count, context, _begin, (threads,))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As in any executor."""
        try:
            return self._pool.submit(fn, *args, **kwargs)
        except BrokenExecutor:
            self._pool.shutdown()
            self._pool = self._new()
            return self._pool.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As in any executor."""
        self._pool.shutdown(wait, cancel_futures=cancel_futures)


def _begin(threads: int) -> None:
    """In a process of the pool: its share of the cores, and no word at Ctrl-C, of which the race tells."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(threads)


@contextmanager
def workers(count: int | None) -> Iterator[Executor | None]:
    """Processes for a race, ended with the block.

    Parameters
    ----------
    count : int or None
        How many; None: as many as cores, up to 4.

    Yields
    ------
    Executor or None
        None where one process is enough: this one.

    Raises
    ------
    ValueError
        Where it is no number of processes.
    """
    if count is None:
        count = min(4, os.cpu_count() or 1)
    if not 1 <= count <= MOST:
        raise ValueError(f"--workers is a number of processes, at least 1 and at most {MOST}; got {count}.")
    if count == 1:
        yield None
        return
    executor = Processes(count)
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def refuse_launched() -> None:
    """ValueError in one of several processes that torchrun or `accelerate launch` started."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "A race shares its runs among processes of its own: start it once, with --workers or an "
            "executor, and not by torchrun or accelerate launch."
        )
