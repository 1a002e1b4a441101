"""A race in the terminal: what runs, the best so far, the time left; at the end a table that fits."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from xgblora_lab.bench.records import History
    from xgblora_lab.racing.progress import Planned, Progress
    from xgblora_lab.racing.result import Race

WIDTH = 100  # columns of a table, at most
PER_SECOND = 4  # how often the live table is drawn


@contextmanager
def shown(workers: int, console: Console | None = None) -> Iterator[Progress]:
    """Show a race while it runs: a live table in a terminal, a line for every finished run elsewhere.

    Parameters
    ----------
    workers : int
        How many runs are under way at a time.
    console : Console, optional
        Where; default stdout.

    Yields
    ------
    Progress
        For `race`.
    """
    console = console or Console(highlight=False)
    if not console.is_terminal:
        yield Lines(console)
        return
    board = Board(workers)
    with Live(get_renderable=board.view, console=console, refresh_per_second=PER_SECOND, transient=True):
        yield board


class Lines:
    """A line for every run that ends.

    Parameters
    ----------
    console : Console
        Where.
    """

    def __init__(self, console: Console) -> None:
        self.console = console

    def expects(self, plans: float) -> None:
        """Without effect."""

    def planned(self, runs: Sequence[Planned]) -> None:
        """Without effect."""

    def ended(self, run: Planned, result: History | Exception, kept: bool = False) -> None:
        """Print the line."""
        from xgblora_lab.racing.progress import told

        if not kept:
            self.console.print(Text(told(run, result)), soft_wrap=True)


class Board:
    """What the live table shows, method by method.

    Parameters
    ----------
    workers : int
        How many runs are under way at a time: the first of those that have not ended.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._began = time.monotonic()
        self._expected = 0.0  # work, in runs of the whole plan
        self._known = self._done = self._trained = 0.0
        self._waiting: list[Planned] = []
        self._runs: dict[str, list[int]] = {}  # method -> runs ended, runs known
        self._best: dict[str, tuple[tuple[bool, float], str]] = {}  # method -> merit, and in words
        self._failed: dict[str, int] = {}

    def expects(self, plans: float) -> None:
        """So much work lies ahead."""
        self._expected = plans

    def planned(self, runs: Sequence[Planned]) -> None:
        """Put the runs into their methods' rows."""
        self._waiting += runs
        for run in runs:
            self._runs.setdefault(run.trial.label, [0, 0])[1] += 1
            self._known += run.share

    def ended(self, run: Planned, result: History | Exception, kept: bool = False) -> None:
        """Note how the run ended."""
        label = run.trial.label
        self._waiting = [other for other in self._waiting if other is not run]
        self._runs[label][0] += 1
        self._done += run.share
        self._trained += 0 if kept else run.share
        if isinstance(result, Exception):
            self._failed[label] = self._failed.get(label, 0) + 1
            return
        found = _reached(run, result)
        if label not in self._best or found[0] > self._best[label][0]:
            self._best[label] = found

    def seconds_left(self) -> float:
        """As long as the runs so far took, for those that are left; nan before the first has ended."""
        if not self._trained:
            return math.nan
        left = max(self._expected, self._known) - self._done
        return left * (time.monotonic() - self._began) / self._trained

    def view(self) -> Group:
        """How far the race is, and the table."""
        ended, known = (sum(counts[i] for counts in self._runs.values()) for i in (0, 1))
        gone, left = time.monotonic() - self._began, self.seconds_left()
        when = f"about {_duration(left)} left" if left == left else "the time left is not known yet"
        heading = f"{ended} of {known} runs planned so far · {_duration(gone)} gone · {when}"
        return Group(Text(heading), self.table())

    def table(self) -> Table:
        """A row for every method, that of the best one in bold."""
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("method", no_wrap=True)
        for name in ("runs", "best so far", "running now"):
            table.add_column(name)
        running: dict[str, list[str]] = {}
        for run in self._waiting[: self.workers]:
            running.setdefault(run.trial.label, []).append(str(run).removeprefix(f"{run.trial.label}, "))
        leader = max(self._best, key=lambda label: self._best[label][0], default=None)
        for label, (over, planned) in self._runs.items():
            failed = f", {self._failed[label]} failed" if label in self._failed else ""
            best = self._best[label][1] if label in self._best else "–"
            now = "\n".join(running.get(label, []))
            cells = (label, f"{over}/{planned}{failed}", best, now)
            table.add_row(*map(Text, cells), style="bold" if label == leader else "")
        return table


def _reached(run: Planned, result: History) -> tuple[tuple[bool, float], str]:
    """What a run is worth, and in words: the whole plan counts before a part of it."""
    from xgblora_lab.racing.tuning import merit

    if run.share < 1:
        loss = result.scores.get("early_loss", math.nan)
        worth = -loss if math.isfinite(loss) else -math.inf
        return (False, worth), f"loss {loss:.4g} after {run.stop} steps, {run.trial}"
    score = result.scores.get("dev")
    told = (
        f"loss {result[-1].probe_after:.4g}" if score is None else f"dev {result.settings.metric} {score:.4g}"
    )
    return (True, merit(result)), f"{told}, {run.trial}"


def _duration(seconds: float) -> str:
    """As 45 s, 3 min or 2 h 5 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def result_table(race: Race) -> Table:
    """The result in at most `WIDTH` columns: what decides; the rest is in the race's folder."""
    found = race.table
    scores = [name for name in found.columns if name.startswith(("test ", "dev "))]
    minus = [name for name in found.columns if name.startswith("minus ")]
    verdict = [name for name in ("verdict (Holm)",) if name in found.columns]
    names = [*scores[-1:], *minus, *verdict, "peak parameters", "seconds"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("method", overflow="fold")
    table.add_column("chosen", overflow="fold", min_width=22)
    for name in names:
        table.add_column(Text(name), justify="right" if name in ("peak parameters", "seconds") else "left")
    for label, row in found.iterrows():
        values = [f"{row[name]:,}" if name == "peak parameters" else str(row[name]) for name in names]
        table.add_row(*map(Text, (str(label), str(row["chosen"]).replace(", ", "\n"), *values)))
    return table


def print_result(race: Race, console: Console | None = None) -> None:
    """Print what stands above the table, and the table."""
    console = console or Console(highlight=False)
    console.width = min(console.width, WIDTH) if console.is_terminal else WIDTH
    if race.note:
        console.print(Text(race.note))
    console.print(result_table(race))
