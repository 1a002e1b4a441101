"""`Stepper`: press *next round* and see what one round did."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from xgblora_lab import figures
from xgblora_lab.bench.hooks import Spectrum
from xgblora_lab.bench.records import History, Round
from xgblora_lab.figures._read import brief, plural
from xgblora_lab.widgets.canvas import Live
from xgblora_lab.widgets.controls import ROUNDS, Controls
from xgblora_lab.widgets.knobs import Options
from xgblora_lab.widgets.telling import compared, summary, trained
from xgblora_lab.widgets.undo import Undo

if TYPE_CHECKING:
    from xgblora_lab.bench.bench import Bench

# Seconds between two rounds in which the kernel takes messages. They come from another thread by way of a
# socket, so that giving way for a single turn of the event loop would often miss a click on Pause.
TURN = 0.02


class Stepper(Controls):
    """A bench under the reader's hands.

    Moving the slider looks at an earlier round: nothing is trained and nothing is forgotten. *Rewind to here*
    takes the bench back to it. *Run* trains one round per turn of the kernel's event loop, so that *Pause*
    and the slider answer between rounds. Every button is a method too (`next_round`, `run`, …).

    The learning rate, κ, rank and selection of the next round may be changed between rounds. Each round
    records what it was trained with, and rewinding brings that back.

    Parameters
    ----------
    bench : Bench
        One without a `Spectrum` hook gets one.
    module : str, optional
        Whose spectrum is drawn at first. Default: the one with the largest update.
    live : bool or "auto", default "auto"
        As for `Canvas`.
    beside : Bench or History, optional
        Another run to compare with. A bench, on a model of its own, is trained along until it has done as
        many steps; it is not rewound.

    Raises
    ------
    ValueError
        Where the bench adapts no such module.
    """

    def __init__(
        self,
        bench: Bench,
        module: str | None = None,
        live: Live = "auto",
        beside: Bench | History | None = None,
    ) -> None:
        if module is not None and module not in bench.modules:
            raise ValueError(f"The bench adapts no module {module!r}; it has {', '.join(bench.modules)}.")
        self.bench, self.beside = bench, beside
        for each in (bench, beside):
            if each is not None and not isinstance(each, History):
                watched = any(isinstance(hook, Spectrum) for hook in each.hooks)
                each.hooks.extend([] if watched else [Spectrum()])
        bench.hooks[:] = [hook for hook in bench.hooks if not isinstance(hook, Options)] + [Options()]
        self.task: asyncio.Task[None] | None = None  # of the present run, where there is an event loop
        self._pausing = self.training = self._asked = False
        self._note = ""
        self._dropped: dict[int, int] = {}  # dropped round -> rounds that had been recorded by then
        self._frames: dict[int, int] = {}  # round -> frame of the figure
        self._seen: float = 0  # rounds at the last look
        self._undo = Undo(bench)
        super().__init__(bench, module, live)
        with self.guard():
            self.refresh()

    # What the buttons do

    def next_round(self) -> None:
        """Train one round and look at it."""
        self._run_now(1)

    def run(self, n: int | None = None) -> None:
        """Train up to n rounds.

        Inside an event loop, as in a notebook, it returns at once and the rounds follow, one per turn;
        `await stepper.task` waits for them. Elsewhere it returns when they are done.

        Parameters
        ----------
        n : int, optional
            Default: as many as the field says.

        Raises
        ------
        RuntimeError
            Where a run is under way.
        """
        n = self.count.value if n is None else n
        if self.running:
            raise RuntimeError("A run is under way: pause it first.")
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._run_now(n)
            return
        self.task = loop.create_task(self._run(n))
        self._enable()

    def pause(self) -> None:
        """Stop the run after its present round."""
        self._pausing = True

    def rewind(self) -> None:
        """Take the bench back to the end of the round under the slider, and forget the later ones."""
        self._go_back("rewind", self.slider.value + 1 if len(self.bench.history) else 0)

    def reset(self) -> None:
        """Take the bench back to its base."""
        self._go_back("reset", 0)

    def drop(self) -> None:
        """Take the boosters of the round under the slider out of the model; look at what is left now."""
        self._check_idle()
        self._note = ""
        if self.bench.method.additive:
            self._undo.keep("drop")
        self.bench.drop(self.slider.value)
        self.refresh(newest=True)

    def undo(self) -> None:
        """Make the run what it was before the last drop, rewind or reset."""
        self._check_idle()
        self._note = f"Undone: {self._undo.take_back()}."
        self._seen, self._dropped = math.inf, {}
        self.refresh(newest=True)

    def keep(self) -> None:
        """Draw this run as it is now beside the rounds that follow, e.g. after a reset."""
        kept = self.bench.history
        settings = dataclasses.replace(kept.settings, label=f"kept after {plural(len(kept), 'round')}")
        self.beside = History(kept.method, settings, list(kept.rounds))
        self.refresh()

    def _go_back(self, what: str, rounds: int) -> None:
        self._check_idle()
        self._note = ""
        if rounds < len(self.bench.history):
            self._undo.keep(what)
        self.bench.rewind(rounds)
        self.refresh()

    @property
    def undoing(self) -> str:
        """What could be undone, e.g. "reset"; empty where there is nothing."""
        return self._undo.what

    @property
    def running(self) -> bool:
        """Whether a run is under way."""
        return self.task is not None and not self.task.done()

    def refresh(self, newest: bool = False) -> None:
        """Draw the history as it is now, also after rounds that were run from a cell.

        Parameters
        ----------
        newest : bool, default False
            Look at the last round; otherwise at the one that was looked at.
        """
        done = len(self.bench.history)
        if self.bench.method.additive:
            gone = [t for t in range(len(self.bench.ensemble)) if not self.bench.ensemble[t]]
            self._dropped = {t: min(self._dropped.get(t, done), done) for t in gone}
        with self.quietly():
            if done < self._seen:  # rewound, also from a cell
                self.knobs.take(self.bench.history[-1] if done else None)
            if not self._asked:
                self.count.value = min(ROUNDS, self._left())
            follow = newest or self.slider.value >= self.slider.max
            self.slider.max = max(0, done - 1)
            self.slider.value = self.slider.max if follow else min(self.slider.value, self.slider.max)
        self._seen = done
        self._enable()
        module, planned = self.module.value or None, self._planned()
        drawn = figures.spectrum(
            self._as_it_stands(), module, rounds=(), beside=self._other(), planned=planned
        )
        self._frames = {int(frame.name): i for i, frame in enumerate(drawn.plot.frames)}
        self.canvas.draw(drawn)
        self._look()

    def _left(self) -> int:
        """Rounds until the planned steps are done, at the κ of the next one."""
        left = self.bench.steps - self.bench.trained_steps
        return max(0, math.ceil(left / self.bench.method.steps_per_round))

    def _planned(self) -> int:
        return len(self.bench.history) + self._left()

    def _ask(self) -> None:
        self._asked = True  # for so many rounds, be they more than are left

    def _change(self) -> None:
        """Give the next round what the controls say."""
        with self.quietly():
            self.knobs.apply()
        self.refresh()

    # Running

    def _run_now(self, n: int) -> None:
        self._check_idle()
        for _ in self._steps(n):
            pass

    async def _run(self, n: int) -> None:
        with self.guard():
            for _ in self._steps(n):
                await asyncio.sleep(TURN)
        self.task = None
        self._enable()

    def _steps(self, n: int) -> Iterator[None]:
        """Train and show round by round until n are done, the reader pauses, or a hook ends the run."""
        self._note, self._pausing = "", False
        if n == 0:
            self._note = "The plan is done. Write into “rounds to run” how many more you want."
        rounds, done = self.bench.rounds(n), 0
        try:
            while done < n and self._train(rounds):
                done += 1
                self.refresh(newest=n == 1)
                yield
                if self._pausing and done < n:
                    self._note = f"Paused after {done} of {plural(n, 'round')}."
                    return
            if done < n:
                self._note = f"A hook ended the run after {done} of {plural(n, 'round')}."
        finally:
            rounds.close()  # type: ignore[attr-defined]
            asked, self._asked = self._asked, False
            if asked or len(self.bench.history) != self.slider.max + 1 or self._note:
                self.refresh()  # a round that failed late is on record all the same

    def _train(self, rounds: Iterator[Round]) -> bool:
        """Train one round, and the run beside until it has done as many steps; False where a hook ended it.

        The page hears of it before the kernel is busy.
        """
        text = f"Training round {len(self.bench.history)} …"
        self.busy.value = f'<span role="status" style="margin-left: .5em">{text}</span>'
        self.training = True
        self._enable()
        try:
            if next(rounds, None) is None:
                return False
            other = self.beside
            if other is not None and not isinstance(other, History):
                while other.trained_steps < self.bench.trained_steps:
                    other.step()
            return True
        finally:
            self.busy.value = ""
            self.training = False
            self._enable()

    def _check_idle(self) -> None:
        if self.running:
            raise RuntimeError("A run is under way: pause it first.")

    # Showing

    def _look(self) -> None:
        """Show the round under the slider, from the history alone."""
        t = self.slider.value
        if not len(self.bench.history):
            planned = plural(self._left(), "round")
            text = f"The base model: no round yet, {planned} planned."
            self.say(self._note, text, "Press “Next round” and look at the curves.")
            return
        record, measured = self._as_it_stands()[t], self.bench.history[t]
        if t in self._frames:
            sentence = self.canvas.scrub(self._frames[t])
        else:
            sentence = "No spectrum was measured in this round."
        if record is measured:
            lines = summary(record, self._planned(), self.bench.steps)
        else:
            text = f"The model as it is now: residual loss {brief(record.probe_after)}; "
            lines = [text + f"round {t} had measured {brief(measured.probe_after)}."]
        past = f"The plan of {self.bench.steps:,} steps is done; rounds past it keep its last learning rate."
        self.say(
            self._note,
            *lines,
            f"{sentence} {compared(self._other(), record)}".strip(),
            trained(record, list(self.bench.modules)),
            self._absent(),
            "" if self._left() else past,
        )

    def _other(self) -> History | None:
        """The run beside."""
        beside = self.beside
        return beside if beside is None or isinstance(beside, History) else beside.history

    def _as_it_stands(self) -> History:
        """The history; where boosters were dropped after the last round, that round as the model is now."""
        history, last = self.bench.history, len(self.bench.history) - 1
        if not any(recorded > last for recorded in self._dropped.values()):
            return history
        key = (self.bench.ensemble.version, last)
        if self._now is None or self._now[0] != key:
            split = "dev" if self.bench.task.size("dev") else "train"
            loss = self.bench.evaluate(split, limit=self.bench.probe_size or None)["loss"]
            spectrum = {name: self.bench.spectrum(name).tolist() for name in self.bench.modules}
            measurements = {**history[last].measurements, "spectrum": spectrum}
            record = dataclasses.replace(history[last], probe_after=loss, measurements=measurements)
            self._now = (key, History(history.method, history.settings, [*history.rounds[:last], record]))
        return self._now[1]

    _now: tuple[tuple[object, int], History] | None = None

    def _absent(self) -> str:
        """Which rounds' boosters are out of the model, and what the figure shows of that."""
        if not self._dropped:
            return ""
        gone = ", ".join(map(str, sorted(self._dropped)))
        text = f"Out of the model: the boosters of round {gone}."
        if self._as_it_stands() is not self.bench.history:
            text += " The last round is drawn as the model is now, the others as they were measured."
        return text
