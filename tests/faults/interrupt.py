"""Ctrl-C at every line: `python tests/faults/interrupt.py` prints how many left a wrong bench behind.

An operation is run again and again, and `KeyboardInterrupt` is raised at its first line, then at its second,
and so on, until it comes to its end. After each the bench must be, bit for bit, what it was before the
operation or what it is after it. The same bench is then used on, and every few interrupts a further round
must be that of a run without any. `crash.py --lines` does the same and looks at the disk.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where it is run as a command

import torch
from faults.faulty import Lines
from faults.small import METHODS, STEP, Reference, Small, Trail, advance, bench_of, differences, seen

from xgblora_lab.bench import Bench

CHECK = 6  # interrupts between two further rounds


def look(bench: Bench) -> None:
    with bench.at(1):
        bench.evaluate()
        with bench.at(0):
            bench.predict()


def export(bench: Bench) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bench.export_merged(Path(folder) / "merged")


def begin_anew(bench: Bench) -> None:
    bench_of(bench.method.name, bench.model)


TWO: Trail = (STEP, STEP)
# The operation, the paths before and after it; None: another bench follows, on the base.
OPERATIONS: dict[str, tuple[Callable[[Bench], Any], Trail, Trail | None]] = {
    "first step": (lambda bench: bench.step(), (), (STEP,)),
    "step": (lambda bench: bench.step(), TWO, (STEP, STEP, STEP)),
    "rewind": (lambda bench: bench.rewind(1), TWO, (STEP,)),
    "drop": (lambda bench: bench.drop(0), TWO, (*TWO, 0)),
    "at": (look, TWO, TWO),
    "staged": (lambda bench: list(bench.staged_evaluate()), TWO, TWO),
    "left_out": (lambda bench: list(bench.left_out()), TWO, TWO),
    "update": (lambda bench: [bench.spectrum(name, 1) for name in bench.modules], TWO, TWO),
    "export_merged": (export, TWO, TWO),
    "close": (lambda bench: bench.close(), TWO, None),
    "new bench": (begin_anew, TWO, None),
}


def possible(name: str, operation: str) -> bool:
    """Whether a method can do this at all."""
    if operation in ("drop", "left_out"):
        return name == "xgblora"
    return name != "full" or operation not in ("rewind", "at", "staged", "update")


class Trials:
    """Interrupts one operation of one method at one line after the other, on one bench while it is right."""

    def __init__(self, name: str, operation: str, reference: Reference) -> None:
        self.name, self.reference = name, reference
        self.do, self.before, self.after = OPERATIONS[operation]
        self.bench, self.trail = bench_of(name), ()
        self.done = 0

    def prepare(self) -> None:
        """Bring the bench back to the path before the operation, or take a new one."""
        again = self.before and not any(operation != STEP for operation in self.trail)
        if again and len(self.trail) > len(self.before) and self.bench.method.rewindable:
            self.bench.rewind(len(self.before))
        elif again and len(self.trail) <= len(self.before):
            advance(self.bench, self.before[len(self.trail) :])
        else:
            self.bench = advance(bench_of(self.name, self.bench.model), self.before)
        self.trail = self.before

    def at(self, stop: int | None) -> tuple[str, Lines, list[str]]:
        """What was left ("old", "new" or "wrong") by an interrupt, the lines that ran, and what is wrong."""
        self.prepare()
        random = torch.random.get_rng_state()
        with Lines(stop) as lines:
            self.do(self.bench)
        if self.after is None:
            self.bench, self.trail, left = bench_of(self.name, self.bench.model), (), "new"
            wrong = self.differences()
        else:
            self.bench.check_open()  # as any use of the bench does first
            self.trail, left = self.after, "new"
            wrong = self.differences()
            if wrong and (self.before == self.after or not self.differences(self.before)):
                self.trail, left = self.before, "old"
                wrong = self.differences()
        if not torch.equal(torch.random.get_rng_state(), random):
            wrong.append("global random numbers")
        self.done += 1
        if self.done % CHECK == 0 or stop is None:
            self.bench.step()
            self.trail = (*self.trail, STEP)
            wrong += [f"then {piece}" for piece in self.differences()]
        if wrong:
            self.bench, self.trail = bench_of(self.name), ()
        return ("wrong" if wrong else left), lines, wrong

    def differences(self, trail: Trail | None = None) -> list[str]:
        """What the bench has otherwise than it should after a path."""
        return differences(seen(self.bench), self.reference.after(self.trail if trail is None else trail))

    def all(self, every: int = 1) -> Iterator[tuple[str, Lines, list[str]]]:
        """Interrupt at every line, or at every so-manieth; then once at none."""
        stop = 1
        while True:
            left, lines, wrong = self.at(stop)
            if not lines.where:  # it came to its end
                break
            yield left, lines, wrong
            stop += every
        _, _, wrong = self.at(None)
        assert not wrong, wrong
        self.bench.close()
        assert not differences(dict(self.bench.model.named_parameters()), dict(Small().named_parameters()))
        assert not any(m._forward_hooks for m in self.bench.model.modules())


def main(arguments: Iterable[str] | None = None) -> int:
    """Print a line per method and operation; returns how many trials were wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--every", type=int, default=1, help="only every so-manieth line")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--operations", default=",".join(OPERATIONS))
    options = parser.parse_args(None if arguments is None else list(arguments))
    torch.set_num_threads(1)
    total: Counter[str] = Counter()
    for name in options.methods.split(","):
        reference = Reference(name)
        for operation in options.operations.split(","):
            if not possible(name, operation):
                continue
            began, counts = time.perf_counter(), Counter[str]()
            for left, lines, wrong in Trials(name, operation, reference).all(options.every):
                counts[left] += 1
                if wrong:
                    print(f"  {name} {operation} at {lines.where} ({lines.stop}): {', '.join(wrong[:6])}")
            total += counts
            took = time.perf_counter() - began
            print(
                f"{name:8} {operation:14} {counts.total():6} interrupts: {counts['old']} old, "
                f"{counts['new']} new, {counts['wrong']} wrong ({took:.0f} s)",
                flush=True,
            )
    print(f"{total['wrong']} wrong of {total.total()}")
    return total["wrong"]


if __name__ == "__main__":
    sys.exit(main() > 0)
