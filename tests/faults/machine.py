"""Any order of operations: `python tests/faults/machine.py` runs 5,000 and prints the differences it saw.

Hypothesis draws what a reader may do with a bench: train, go back, drop, look back, export, save and resume,
press Ctrl-C, close, begin anew. After every operation the bench must be, bit for bit, what a bench is that
trained and dropped in the same order and did nothing else (`small.Reference`).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where it is run as a command

import torch
from faults.faulty import Lines
from faults.interrupt import export, look, possible
from faults.small import METHODS, STEP, TASK, Reference, Small, Trail, bench_of, differences, rewound, seen
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from xgblora_lab.bench import Bench, Checkpoint, resume

MOST = 5  # rounds
REFERENCES: dict[str, Reference] = {}


class Saving(Checkpoint):
    """Saves undisturbed: a save that is cut off has a harness of its own."""

    def on_round_end(self, bench: Any, record: Any) -> None:
        outer = sys.gettrace()
        sys.settrace(None)
        super().on_round_end(bench, record)
        sys.settrace(outer)


class Machine(RuleBasedStateMachine):
    """A bench under a reader's hands, and the path that it should have taken."""

    name: ClassVar[str]
    operations: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.reference = REFERENCES.setdefault(self.name, Reference(self.name))
        self.folders: list[tempfile.TemporaryDirectory[str]] = []
        self.begin(Small())

    def begin(self, model: Any) -> None:
        self.folders.append(tempfile.TemporaryDirectory())
        self.folder = Path(self.folders[-1].name) / "run"
        self.bench, self.trail = bench_of(self.name, model, hooks=[Saving(self.folder)]), ()
        self.saved: Trail | None = None  # the path that is on disk
        self.whole = True  # whether it is this bench's, with every round

    def teardown(self) -> None:
        self.bench.close()
        assert not differences(dict(self.bench.model.named_parameters()), dict(Small().named_parameters()))
        for folder in self.folders:
            folder.cleanup()

    @property
    def rounds(self) -> int:
        return self.trail.count(STEP)

    def can(self, operation: str) -> bool:
        return possible(self.name, operation)

    @invariant()
    def is_the_bench_of_its_path(self) -> None:
        wrong = differences(seen(self.bench), self.reference.after(self.trail))
        assert not wrong, (self.trail, wrong)

    @precondition(lambda self: self.rounds < MOST)
    @rule()
    def step(self) -> None:
        self.bench.step()
        self.trail = self.saved = (*self.trail, STEP)
        Machine.operations += 1

    @precondition(lambda self: self.rounds < MOST - 1)
    @rule()
    def run(self) -> None:
        self.bench.run(2, progress=False)
        self.trail = self.saved = (*self.trail, STEP, STEP)
        Machine.operations += 1

    @precondition(lambda self: self.rounds and self.can("rewind"))
    @rule(data=st.data())
    def rewind(self, data: st.DataObject) -> None:
        rounds = data.draw(st.integers(0, self.rounds))
        self.bench.rewind(rounds)
        self.trail = rewound(self.trail, rounds)
        Machine.operations += 1

    @precondition(lambda self: self.rounds and self.can("drop"))
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, self.rounds - 1))
        self.bench.drop(index)
        self.trail = (*self.trail, index)
        Machine.operations += 1

    @precondition(lambda self: self.rounds)
    @rule(operation=st.sampled_from(["at", "staged", "left_out", "export_merged"]))
    def look(self, operation: str) -> None:
        if self.can(operation):
            self.do(operation, 0)
            Machine.operations += 1

    @precondition(lambda self: self.saved is not None and self.whole)
    @rule()
    def resume(self) -> None:
        self.bench.close()
        self.bench = resume(self.folder, Small(), TASK)
        found = seen(self.bench)
        paths = [trail for trail in (self.trail, self.saved) if trail is not None]
        right = [trail for trail in paths if not differences(found, self.reference.after(trail))]
        assert right, [differences(found, self.reference.after(trail)) for trail in paths]
        self.trail, self.whole = right[0], False
        self.bench.hooks.clear()
        Machine.operations += 1

    @rule(
        operation=st.sampled_from(["step", "rewind", "drop", "at", "staged", "left_out", "export_merged"]),
        line=st.integers(1, 1500),
        choice=st.integers(0, 99),
    )
    def interrupt(self, operation: str, line: int, choice: int) -> None:
        if not self.can(operation) or (operation == "step" and self.rounds == MOST):
            return
        if operation != "step" and not self.rounds:
            return
        with Lines(line) as lines:
            after = self.do(operation, choice)
        if lines.where:
            found, after = seen(self.bench_in_use()), self.after(operation, choice)
            if differences(found, self.reference.after(after)):
                after = self.trail
            elif operation == "step":
                self.whole = False  # done, but perhaps not saved
        elif operation == "step":
            self.saved = after
        self.trail = after
        Machine.operations += 1

    @rule(line=st.integers(1, 120))
    def close(self, line: int) -> None:
        with Lines(line):
            self.bench.close()
        self.begin(self.bench.model)
        Machine.operations += 1

    @rule(line=st.integers(1, 500))
    def new_bench(self, line: int) -> None:
        with Lines(line):
            bench_of(self.name, self.bench.model)
        self.begin(self.bench.model)
        Machine.operations += 1

    def bench_in_use(self) -> Bench:
        self.bench.check_open()  # as any use of the bench does first
        return self.bench

    def after(self, operation: str, choice: int) -> Trail:
        """The path after an operation."""
        if operation == "step":
            return (*self.trail, STEP)
        if operation == "rewind":
            return rewound(self.trail, choice % (self.rounds + 1))
        return (*self.trail, choice % self.rounds) if operation == "drop" else self.trail

    def do(self, operation: str, choice: int) -> Trail:
        """Do it; returns the path after it."""
        bench, rounds = self.bench, self.rounds
        if operation == "step":
            bench.step()
        elif operation == "rewind":
            bench.rewind(choice % (rounds + 1))
        elif operation == "drop":
            bench.drop(choice % rounds)
        elif operation == "at":
            look(bench)
        elif operation == "staged":
            list(bench.staged_evaluate())
        elif operation == "left_out":
            list(bench.left_out())
        else:
            export(bench)
        return self.after(operation, choice)


def play(name: str, examples: int, steps: int, number: int | None = None) -> int:
    """Let a machine run; returns the operations that it did. AssertionError at the first difference.

    Parameters
    ----------
    name : str
        The method, of `METHODS`.
    examples, steps : int
        Benches, and the most operations on each.
    number : int or None
        Of the random numbers; None: always the same ones, as in the suite.
    """
    before = Machine.operations
    machine = type("Machine", (Machine,), {"name": name})
    options = settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=number is None,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    if number is not None:
        machine = seed(number)(machine)
    run_state_machine_as_test(machine, settings=options)
    return Machine.operations - before


def main(arguments: Iterable[str] | None = None) -> int:
    """Print a line per method; returns the number of differences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--operations", type=int, default=5000, help="in all, at least")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(None if arguments is None else list(arguments))
    torch.set_num_threads(1)
    names, total, different = options.methods.split(","), 0, 0
    for name in names:
        done = turn = 0
        while done < options.operations / len(names):
            try:
                done += play(name, 10, 30, options.seed + turn)
            except AssertionError as error:
                print(f"{name}: {error}")
                different += 1
                break
            turn += 1
        total += done
        print(f"{name:8} {done:6} operations", flush=True)
    print(f"{different} differences in {total} operations")
    return different


if __name__ == "__main__":
    sys.exit(main() > 0)
