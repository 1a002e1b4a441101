"""`Stepper`: press *next round* and see what one round did."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import math
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import ipywidgets

from xgblora_lab import figures
from xgblora_lab.bench.hooks import Spectrum
from xgblora_lab.bench.records import History, Round
from xgblora_lab.figures._read import brief, natural, plural, residual, short
from xgblora_lab.widgets.canvas import Canvas, Live
from xgblora_lab.widgets.knobs import Knobs, Options, in_words
from xgblora_lab.widgets.panel import LABEL, Panel, button, round_slider, row
from xgblora_lab.widgets.undo import Undo

if TYPE_CHECKING:
    from xgblora_lab.bench.bench import Bench

# Seconds between two rounds in which the kernel takes messages. They come from another thread by way of a
# socket, so that giving way for a single turn of the event loop would often miss a click on Pause.
TURN = 0.02
HEIGHT = 350  # pixels of the figure: with words and controls, a screen of 720 has room for all
ROUNDS = 10  # to run, where as many are left
HINTS = {
    "next": "Train one round",
    "run": "Train several rounds; Pause stops after the present one",
    "pause": "Stop after the present round",
    "reset": "Go back to the base model and forget all rounds",
    "rewind": "Forget the rounds after this one",
    "drop": "Take this round's boosters out of the model",
    "keep": "Draw this run beside the ones that follow",
    "undo": "Make the run what it was before that",
}


class Stepper(Panel):
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
        Another run to compare with. A bench, on a model of its own, is trained along until it has done as many
        steps; it is not rewound.

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
            if not isinstance(each, History | None) and not any(isinstance(h, Spectrum) for h in each.hooks):
                each.hooks.append(Spectrum())
        bench.hooks[:] = [hook for hook in bench.hooks if not isinstance(hook, Options)] + [Options()]
        self.task: asyncio.Task[None] | None = None  # of the present run, where there is an event loop
        self._pausing = self._training = self._asked = False
        self._note = ""
        self._dropped: dict[int, int] = {}  # dropped round -> rounds that had been recorded by then
        self._frames: dict[int, int] = {}  # round -> frame of the figure
        self._seen: float = 0  # rounds at the last look
        self._undo = Undo(bench)

        self.canvas = Canvas(live, HEIGHT)
        self.knobs = Knobs(bench.method, len(bench.modules))
        if len(bench.history):
            self.knobs.take(bench.history[-1])
        self.next_button = button("Next round", HINTS["next"], "primary")
        self.run_button = button("Run", HINTS["run"])
        self.pause_button = button("Pause", HINTS["pause"])
        self.reset_button = button("Reset", HINTS["reset"])
        self.undo_button = button("Undo", HINTS["undo"])
        self.count = ipywidgets.BoundedIntText(
            ROUNDS, min=0, max=100_000, description="rounds to run", style=LABEL, layout={"width": "11em"}
        )
        self.busy = ipywidgets.HTML()
        self.slider, field = round_slider(self.canvas.live)
        self.rewind_button = button("Rewind to here", HINTS["rewind"])
        self.drop_button = button("Drop its boosters", HINTS["drop"])
        self.keep_button = button("Keep to compare", HINTS["keep"])
        names = sorted(bench.modules, key=natural)
        self.module = ipywidgets.Dropdown(
            options=[("the one with the largest update", ""), *((n, n) for n in names)], value=module or "",
            description="Spectrum of module", style=LABEL, layout={"width": "auto"},
        )  # fmt: skip
        self._listen()
        run = (self.next_button, self.run_button, self.count, self.pause_button, self.reset_button)
        look = (field, self.slider, self.rewind_button, self.drop_button, self.keep_button)
        following = ipywidgets.HTML("<strong>Next round:</strong>", layout={"margin": "0 .5em 0 .2em"})
        chosen = (following, *self.knobs.controls.values(), *([self.module] if len(names) > 1 else []))
        super().__init__([row(*run, self.undo_button, self.busy), row(*look), row(*chosen)], [self.canvas])
        with self.guard():
            self.refresh()
        _warm_up()

    def _listen(self) -> None:
        for control, answer in (
            (self.next_button, self.next_round),
            (self.run_button, self.run),
            (self.pause_button, self.pause),
            (self.reset_button, self.reset),
            (self.undo_button, self.undo),
            (self.rewind_button, self.rewind),
            (self.drop_button, self.drop),
            (self.keep_button, self.keep),
            (self.slider, self._look),
            (self.module, self.refresh),
            (self.count, self._ask),
            *((control, self._change) for control in self.knobs.controls.values()),
        ):
            self._on(control, answer)

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
        other = getattr(self.beside, "history", self.beside)
        drawn = figures.spectrum(
            self._as_it_stands(), self.module.value or None, rounds=(), beside=other, planned=self._planned()
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
            self._asked = False
            if len(self.bench.history) != self.slider.max + 1 or self._note:
                self.refresh()  # a round that failed late is on record all the same

    def _train(self, rounds: Iterator[Round]) -> bool:
        """Train one round, and the run beside until it has done as many steps; False where a hook ended it.

        The page hears of it before the kernel is busy.
        """
        text = f"Training round {len(self.bench.history)} …"
        self.busy.value = f'<span role="status" style="margin-left: .5em">{text}</span>'
        self._training = True
        self._enable()
        try:
            trained = next(rounds, None) is not None
            other = self.beside
            while trained and not isinstance(other, History | None):
                if other.trained_steps >= self.bench.trained_steps:
                    break
                other.step()
            return trained
        finally:
            self.busy.value = ""
            self._training = False
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
            lines = _summary(record, self._planned())
        else:
            text = f"The model as it is now: residual loss {brief(record.probe_after)}; "
            lines = [text + f"round {t} had measured {brief(measured.probe_after)}."]
        past = (
            "" if self._left() else f"The plan of {self.bench.steps:,} steps is done; rounds past it go on "
        )
        past += past and "at its last learning rate."
        chosen = f"{self._modules(record)} {in_words(record)}"
        self.say(
            self._note, *lines, f"{sentence} {self._compared(record)}".strip(), chosen, self._absent(), past
        )

    def _compared(self, record: Round) -> str:
        """What the run beside had reached after as many steps."""
        other = getattr(self.beside, "history", self.beside)
        reached = [(r, v) for r, v in zip(other or (), residual(other)[0] if other else (), strict=False)]
        before = [(r, v) for r, v in reached if r.step <= record.step]
        if not before:
            return ""
        r, value = before[-1]
        return f"Beside it {other.label} after {r.step:,} steps: {brief(value)}."

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

    _now: tuple[tuple[int, int], History] | None = None

    def _modules(self, record: Round) -> str:
        every, chosen = list(self.bench.modules), record.modules
        names = short(every)
        which = ", ".join(names.get(n, n) for n in chosen[:12]) + (", …" if len(chosen) > 12 else "")
        count = f"all {len(every)}" if len(chosen) == len(every) > 1 else f"{len(chosen)} of {len(every)}"
        return f"Modules chosen: {count} ({which})."

    def _absent(self) -> str:
        """Which rounds' boosters are out of the model, and what the figure shows of that."""
        if not self._dropped:
            return ""
        gone = ", ".join(map(str, sorted(self._dropped)))
        text = f"Out of the model: the boosters of round {gone}."
        if self._as_it_stands() is not self.bench.history:
            text += " The last round is drawn as the model is now, the others as they were measured."
        return text

    def _enable(self) -> None:
        """Which buttons can be pressed now, and in a tooltip why not."""
        method, running = self.bench.method, self.running
        done = len(self.bench.history)
        wait = "A run is under way: pause it first" if running else ""
        wait = wait or ("A round is being trained" if self._training else "")
        none = "" if done else "There is no round yet"
        fixed = "" if method.rewindable else f"{method.name} keeps no earlier rounds, so it cannot go back"
        single = "" if method.additive else f"{method.name} has no separate boosters; boosting does"
        undo = "" if self._undo.what else "Nothing was dropped, rewound or reset"
        for control, hint, why in (
            (self.next_button, "next", wait),
            (self.run_button, "run", wait),
            (self.pause_button, "pause", "" if running else "Nothing is running"),
            (self.reset_button, "reset", fixed or wait or none),
            (self.rewind_button, "rewind", fixed or wait or none),
            (self.drop_button, "drop", single or wait or none),
            (self.keep_button, "keep", wait or none),
            (self.undo_button, "undo", wait or undo),
        ):
            control.disabled, control.tooltip = bool(why), why or HINTS[hint]
        self.undo_button.description = f"Undo {self._undo.what}".strip()
        self.count.disabled = running
        self.slider.disabled = done < 2


def _summary(record: Round, planned: int) -> list[str]:
    text = f"Round {record.index} ({record.index + 1} of {planned} planned): "
    text += f"residual loss {brief(record.probe_before)} → {brief(record.probe_after)}, gain {brief(record.gain)}."
    own = f"Own batch {brief(record.loss_before)} → {brief(record.loss_after)};"
    return [f"{text} {own} {plural(len(record.losses), 'step')} in {brief(record.seconds)} s."]


def _warm_up() -> None:
    """In a notebook, load what the first round needs while the reader looks at the base model."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    threading.Thread(target=importlib.import_module, args=("torch._dynamo",), daemon=True).start()
