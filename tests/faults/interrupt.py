"""Ctrl-C at every line: `python tests/faults/interrupt.py` prints how many left a wrong bench behind.

An operation is run again and again on a bench with three rounds, and `KeyboardInterrupt` is raised at its first
line, then at its second, and so on; the lines are those of the package and of `contextlib`, which runs the
package's `with` blocks. After each the bench must be, bit for bit, what it was before the operation or what it
is after it, and the next round must be the one of a run without interrupts.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where it is run as a command

import torch
from faults.small import METHODS, STEP, Reference, Small, Trail, advance, bench_of, differences, rewound, seen

import xgblora_lab
from xgblora_lab.bench import Bench

TRACED = (str(Path(xgblora_lab.__file__).parent), contextlib.__file__)
BEFORE: Trail = (STEP, STEP, STEP)


class Lines:
    """Counts the lines that run in a block, and raises at one of them.

    Parameters
    ----------
    stop : int or None
        The line at which to raise, from 1; None: none.
    """

    def __init__(self, stop: int | None = None) -> None:
        self.stop, self.count, self.where = stop, 0, ""

    def __enter__(self) -> Lines:
        self._outer = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *exception: object) -> bool:
        sys.settrace(self._outer)
        return exception[0] is KeyboardInterrupt

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(TRACED) else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self.count += 1
            if self.count == self.stop:
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                raise KeyboardInterrupt
        return self._line


def look(bench: Bench) -> None:
    with bench.at(1):
        bench.evaluate()
        with bench.at(2):
            bench.predict()


def export(bench: Bench) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bench.export_merged(Path(folder) / "merged")


def begin_anew(bench: Bench) -> None:
    bench_of(bench.method.name, bench.model)


# The operation, and the path after it; None: another bench follows, on the base.
OPERATIONS: dict[str, tuple[Callable[[Bench], Any], Trail | None]] = {
    "step": (lambda bench: bench.step(), (*BEFORE, STEP)),
    "rewind": (lambda bench: bench.rewind(1), rewound(BEFORE, 1)),
    "drop": (lambda bench: bench.drop(1), (*BEFORE, 1)),
    "at": (look, BEFORE),
    "staged": (lambda bench: list(bench.staged_evaluate()), BEFORE),
    "left_out": (lambda bench: list(bench.left_out()), BEFORE),
    "update": (lambda bench: [bench.spectrum(name, 1) for name in bench.modules], BEFORE),
    "export_merged": (export, BEFORE),
    "close": (lambda bench: bench.close(), None),
    "new bench": (begin_anew, None),
}


def possible(name: str, operation: str) -> bool:
    """Whether a method can do this at all."""
    if operation in ("drop", "left_out"):
        return name == "xgblora"
    return name != "full" or operation not in ("rewind", "at", "staged", "update")


def trial(name: str, operation: str, stop: int | None, reference: Reference) -> tuple[str, Lines, list[str]]:
    """Interrupt an operation: what was left ("old", "new" or "wrong"), the lines that ran, and what is wrong."""
    do, after = OPERATIONS[operation]
    bench = advance(bench_of(name), BEFORE)
    torch.manual_seed(5)
    random = torch.random.get_rng_state()
    with Lines(stop) as lines:
        do(bench)
    if after is None:
        bench, trail, left = bench_of(name, bench.model), (), "new"
        wrong = differences(seen(bench), reference.after(()))
    else:
        bench.check_open()  # as any use of the bench does first
        found = seen(bench)
        old, new = (differences(found, reference.after(trail)) for trail in (BEFORE, after))
        trail, left = (after, "new") if not new else (BEFORE, "old")
        wrong = [] if not new else old
    if not torch.equal(torch.random.get_rng_state(), random):
        wrong.append("global random numbers")
    bench.step()
    further = differences(seen(bench), reference.after((*trail, STEP)))
    wrong += [f"then {piece}" for piece in further]
    bench.close()
    base = dict(Small().named_parameters())
    wrong += [f"closed {n}" for n, p in bench.model.named_parameters() if not torch.equal(p, base[n])]
    wrong += ["closed hooks"] * any(m._forward_hooks for m in bench.model.modules())
    return ("wrong" if wrong else left), lines, wrong


def trials(
    name: str, operation: str, reference: Reference, every: int = 1, first: int = 1
) -> Iterator[tuple[str, Lines, list[str]]]:
    """Interrupt an operation at every line, or at every so-manieth."""
    _, lines, wrong = trial(name, operation, None, reference)
    assert not wrong, (name, operation, wrong)
    for stop in range(first, lines.count + 1, every):
        yield trial(name, operation, stop, reference)


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
            for left, lines, wrong in trials(name, operation, reference, options.every):
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
