"""Every crash point of all that writes: `python tests/faults/crash.py` tries them and prints the counts.

Each operation runs again and again in a fresh fork, and each time another of its file operations fails: the
process dies there, or gets an error. With `--lines` Ctrl-C is pressed instead, at every line of the package,
and a race's worker dies at every line. Then a new process looks: it must find the old state or the new one,
whole, and must be able to go on. `--every N` tries every N-th point only, `--only NAME` one operation.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where it is run as a command

import nbformat
import tiny
import torch
from faults.faulty import CRASHED, CRASHES, ERRORS, Disk, Lines, in_a_process
from toy import ToyTask

import xgblora_lab.files as files
from xgblora_lab.bench import Bench, Checkpoint, History, resume
from xgblora_lab.course import execute
from xgblora_lab.disk import digest, recover
from xgblora_lab.lowrank.ensemble import Ensemble
from xgblora_lab.methods import Full, LoRA, XGBLoRA
from xgblora_lab.racing.processes import Processes
from xgblora_lab.racing.race import race
from xgblora_lab.racing.result import Race
from xgblora_lab.report import page

INTERRUPT, WORKERS = "interrupt", "race, a worker dies"
LESSON = Path(__file__).resolve().parents[2] / "notebooks" / "00_start_here.ipynb"
METHODS = {
    "xgblora": XGBLoRA(lr=0.05, steps_per_round=1, modules_per_round=2, selection="random"),
    "lora": LoRA(rank=2, lr=0.05, steps_per_round=1),
    "full": Full(lr=1e-3, steps_per_round=1),
}


def base() -> Any:
    return tiny.tiny_llama()


def bench_of(method: str = "xgblora", rounds: int = 2) -> Bench:
    bench = Bench(base(), ToyTask(), METHODS[method], steps=50, batch_size=2, probe_size=2)
    bench.run(rounds, progress=False)
    return bench


def state_of(bench: Bench) -> str:
    """All that a run is made of, in one line: what must be the same after a crash."""
    rounds = range(1, len(bench.history) + 1)
    states = [bench.state(t) for t in rounds] if bench.method.rewindable else [bench.state()]
    parts = [(f"{t}.{n}", v) for t, s in enumerate(states) for n, v in sorted(s.items())]
    losses = [r.losses for r in bench.history]
    dropped = [bench.ensemble.dropped(t) for t in range(len(bench.ensemble))]
    weights = digest([*bench.model.state_dict().items(), *parts])
    return f"{losses} {dropped} {bench.trained_steps} {weights}"


@dataclass(frozen=True)
class Operation:
    """What is tried: `prepare` makes the old state and returns the act, `look` says what is there."""

    prepare: Callable[[Path], Callable[[], Any]]
    look: Callable[[Path], str]  # raises where what is there is not whole
    go_on: Callable[[Path], None]  # what must work afterwards, in another process
    again: Callable[[Path], None] = lambda folder: None  # what must work after an error, in the same process


# Runs that are saved after every round


def of_run(method: str, act: Callable[[Bench], Any], saved: bool = True) -> Operation:
    bench = bench_of(method)  # every fork begins with this one

    def prepare(folder: Path) -> Callable[[], Any]:
        bench.hooks.append(Checkpoint(folder / "run"))
        if saved:
            next(bench.rounds(0), None)  # a run of no further rounds: what is there is saved at its start
        return lambda: act(bench)

    def again(folder: Path) -> None:
        bench.step()
        assert state_of(resume(folder / "run", base(), ToyTask())) == state_of(bench)

    return Operation(prepare, look_at_run, lambda folder: go_on_with_run(folder, method), again)


def look_at_run(folder: Path) -> str:
    try:
        bench = resume(folder / "run", base(), ToyTask())
    except FileNotFoundError as error:
        if "No run to resume" in str(error):
            return "nothing"
        raise
    found = state_of(bench)
    if bench.method.rewindable and len(bench.history):
        bench.rewind(0)  # the folder, too; every earlier state must be there
    return found


def go_on_with_run(folder: Path, method: str) -> None:
    try:
        bench = resume(folder / "run", base(), ToyTask())
    except FileNotFoundError:  # nothing was saved: the script is started again
        bench = bench_of(method, 0)
        bench.hooks.append(Checkpoint(folder / "run"))
    bench.step()
    expected = state_of(bench)
    bench.close()
    assert state_of(resume(folder / "run", base(), ToyTask())) == expected
    names = {p.name for p in (folder / "run").iterdir()} - {"history.jsonl", ".lock", "rounds"}
    assert all(name.startswith("state-") for name in names), names


def resumed(folder: Path) -> Callable[[], Any]:
    bench = bench_of("xgblora")
    bench.hooks.append(Checkpoint(folder / "run"))
    next(bench.rounds(0), None)
    bench.close()
    return lambda: resume(folder / "run", base(), ToyTask()).step()


# Files and folders that are replaced as a whole


def of_target(name: str, writes: Callable[[Any, Path], Any], old: bool = True) -> Operation:
    benches = bench_of("xgblora", 1), bench_of("xgblora", 2)
    if name == "page.html":
        benches = tuple(b.history for b in benches)

    def prepare(folder: Path) -> Callable[[], Any]:
        if old:
            writes(benches[0], folder / name)
        return lambda: writes(benches[1], folder / name)

    def go_on(folder: Path) -> None:
        writes(benches[1], folder / name)
        assert [p.name for p in folder.iterdir()] == [name], "a killed process's leftovers stay"

    return Operation(prepare, lambda folder: look_at(folder / name), go_on)


def write_page(history: History, path: Path) -> None:
    """A report that is drawn at once: what is tried is the writing."""
    kept, page.render = page.render, lambda *drawn: f"<html>{'round ' * 5000 * len(history)}</html>"
    try:
        page.report(history, path)
    finally:
        page.render = kept


def look_at(target: Path) -> str:
    if not target.exists():
        return "nothing"
    if target.is_file():
        text = target.read_text(encoding="utf-8")
        assert text.rstrip().endswith("</html>"), "the page is cut"
        return digest([("page", text)])
    found = {p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()} - {files.MANIFEST}
    written = files.manifest_of(target)
    assert found == set(written), "files are missing or were added"
    assert all(files.digest_of(target / n) == written[n][1] for n in found), "a file is not whole"
    if (target / "ensemble.json").exists():
        Ensemble.load(target)
    return digest([(n, str(written[n])) for n in sorted(found)])


class Mortal(Processes):
    """A race's one worker: the first ends at a line of the package, the next ones live."""

    def __init__(self, stop: int) -> None:
        self.stops = [stop]
        super().__init__(1)

    def _new(self) -> ProcessPoolExecutor:
        lines = Lines(self.stops[-1], dies=len(self.stops) == 1)
        self.stops.append(0)
        return ProcessPoolExecutor(1, multiprocessing.get_context("fork"), lines.__enter__)


def run_race(folder: Path, executor: Executor | None = None) -> None:
    options = {"lrs": [0.05], "seeds": 2, "steps": 1, "batch_size": 2, "progress": False}
    race(base(), ToyTask(), [LoRA(rank=1)], out=folder / "race", executor=executor, **options)


def look_at_race(folder: Path) -> str:
    """The result, but for the time it took; single runs are no result yet."""
    if not (folder / "race" / "race.json").exists():
        return "nothing"
    return str(Race.load(folder / "race").table.drop(columns="seconds").to_json())


def of_race() -> Operation:
    with a_folder() as folder:
        run_race(folder)
        result = look_at_race(folder)

    def go_on(folder: Path) -> None:  # with the runs that are there
        run_race(folder)
        assert look_at_race(folder) == result, "another result"

    return Operation(lambda folder: lambda: run_race(folder), look_at_race, go_on, go_on)


def run_lesson(folder: Path, cells: int) -> None:
    """A notebook's run whose kernel has been there: what is tried is the writing of notebook and page."""
    done = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", id=str(i)) for i in range(cells)])
    kept = execute._execute, execute._hidden, execute.to_html
    execute._execute, execute._hidden = lambda *given: (done, None), lambda *given: None
    execute.to_html = lambda notebook, title: f"<html>{'cell ' * 5000 * cells}</html>"
    try:
        execute.run_notebook(LESSON, output=folder / "run.ipynb", html=folder / "run.html", progress=False)
    finally:
        execute._execute, execute._hidden, execute.to_html = kept


def look_at_lesson(folder: Path) -> str:
    notebook, html = folder / "run.ipynb", folder / "run.html"
    cells = len(nbformat.read(notebook, as_version=4).cells) if notebook.exists() else 0
    return f"{cells} cells, {look_at(html)}"


def of_lesson() -> Operation:
    def prepare(folder: Path) -> Callable[[], Any]:
        run_lesson(folder, 1)
        return lambda: run_lesson(folder, 2)

    def go_on(folder: Path) -> None:
        run_lesson(folder, 2)
        assert sorted(p.name for p in folder.iterdir()) == ["run.html", "run.ipynb"]
        assert look_at_lesson(folder).startswith("2 cells")

    return Operation(prepare, look_at_lesson, go_on, go_on)


def look_after_recovery(folder: Path) -> str:
    recover(folder / "merged")
    return look_at(folder / "merged")


def aside(bench: Bench, folder: Path) -> None:
    """An export where the system cannot swap two names."""
    kept, files.exchange = files.exchange, lambda one, other: False
    try:
        bench.export_merged(folder)
    finally:
        files.exchange = kept


def operations() -> dict[str, Callable[[], Operation]]:
    def run(method: str, *acts: Callable[[Bench], Any], saved: bool = True) -> Callable[[], Operation]:
        return lambda: of_run(method, lambda bench: [act(bench) for act in acts], saved)

    def without_swap() -> Operation:
        found = of_target("merged", aside)
        return Operation(found.prepare, look_after_recovery, found.go_on)

    def rewind(bench: Bench) -> None:
        bench.rewind(1)

    def drop(bench: Bench) -> None:
        bench.drop(0)

    return {
        "save, the first": run("xgblora", Bench.step, saved=False),
        "save": run("xgblora", Bench.step),
        "save, LoRA": run("lora", Bench.step),
        "save, full": run("full", Bench.step),
        "drop": run("xgblora", drop),
        "rewind": run("xgblora", rewind),
        "drop, rewind, save": run("xgblora", drop, rewind, Bench.step),
        "rewind, save, LoRA": run("lora", rewind, Bench.step),
        "resume, save": lambda: Operation(resumed, look_at_run, lambda f: go_on_with_run(f, "xgblora")),
        "export_merged": lambda: of_target("merged", Bench.export_merged),
        "export_merged, new": lambda: of_target("merged", Bench.export_merged, old=False),
        "export_merged, no swap": without_swap,
        "export_peft": lambda: of_target("adapter", Bench.export_peft),
        "ensemble.save": lambda: of_target("ensemble", lambda bench, path: bench.ensemble.save(path)),
        "race": of_race,
        "run, its page": of_lesson,
        "report": lambda: of_target("page.html", write_page),
        "report, new": lambda: of_target("page.html", write_page, old=False),
    }


def without_a_fault(operation: Operation, folder: Path) -> tuple[str, str, int, int]:
    """What the folder holds before and after, and how many file operations and lines lie between."""

    def seen_now() -> str:
        copy = folder.parent / "copy"
        shutil.copytree(folder, copy, symlinks=True)
        assert in_a_process(lambda: seen.write_text(operation.look(copy))) == 0
        shutil.rmtree(copy)
        return seen.read_text()

    def trial() -> None:
        act = operation.prepare(folder)
        old.write_text(seen_now())
        with Disk("none", 0) as disk, Lines() as lines:
            act()
        counts.write_text(f"{disk.count} {lines.count}")

    seen, old, counts = (folder.parent / name for name in ("seen", "old", "counts"))
    assert in_a_process(trial) == 0
    points, lines = map(int, counts.read_text().split())
    return old.read_text(), seen_now(), points, lines


@contextmanager
def a_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="crash-") as place:
        (Path(place) / "in").mkdir()
        yield Path(place) / "in"


def try_all(name: str, faults: tuple[str, ...] = (*CRASHES, *ERRORS), every: int = 1) -> Counter[str]:
    """Counts: points, old, new, between (a whole state of an act of several steps), wrong."""
    operation = operations()[name]()
    with a_folder() as folder:
        old, new, points, lines = without_a_fault(operation, folder)
    counts: Counter[str] = Counter()
    for i, fault in enumerate(faults):  # a sample takes other points of each
        for at in range(i % every, lines if fault == INTERRUPT else points, every):
            with a_folder() as folder:
                counts["points"] += 1
                counts[trial_of(operation, folder, fault, at, old, new, several="," in name)] += 1
    return counts


def trial_of(
    operation: Operation, folder: Path, fault: str, at: int, old: str, new: str, several: bool
) -> str:
    copy = folder.parent / "copy"  # looking may change what is looked at

    def act() -> None:
        wanted = operation.prepare(folder)
        with Lines(at + 1) if fault == INTERRUPT else Disk(fault, at):
            wanted()
        shutil.copytree(folder, copy, symlinks=True)
        operation.again(folder)

    def look() -> None:
        if not copy.exists():
            shutil.copytree(folder, copy, symlinks=True)
        (folder.parent / "seen").write_text(operation.look(copy))
        operation.go_on(folder)

    status = in_a_process(act)
    if status != (CRASHED if fault in CRASHES else 0) or in_a_process(look) != 0:
        print(f"WRONG: {fault} at {at}, status {status}", file=sys.stderr)
        return "wrong"
    seen = (folder.parent / "seen").read_text()
    if seen in (old, new):
        return "old" if seen == old else "new"
    if several:
        return "between"
    print(f"WRONG: {fault} at {at}: neither old nor new\n{seen}\n{old}\n{new}", file=sys.stderr)
    return "wrong"


def dead_workers(every: int = 1) -> Counter[str]:
    """A race whose worker dies at one line after the other must end with the result of one that lived."""
    counts: Counter[str] = Counter()
    with a_folder() as folder:
        run_race(folder)
        result = look_at_race(folder)

    def trial() -> None:
        with Mortal(stop) as executor:
            run_race(folder, executor)
        (folder.parent / "pools").write_text(str(len(executor.stops) - 1))
        assert look_at_race(folder) == result, "another result"

    for stop in range(1, 1_000_000, every):
        with a_folder() as folder:
            right = in_a_process(trial) == 0
            if right and (folder.parent / "pools").read_text() == "1":  # it came to its end
                return counts
            counts["points"] += 1
            counts["new" if right else "wrong"] += 1
            if not right:
                print(f"WRONG: the worker died at line {stop}", file=sys.stderr)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--only", choices=[*operations(), WORKERS])
    parser.add_argument("--lines", action="store_true", help="Ctrl-C and dead workers instead of the disk")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    total: Counter[str] = Counter()
    names = [chosen.only] if chosen.only else [*operations(), *[WORKERS] * chosen.lines]
    for name in names:
        if name == WORKERS:
            counts = dead_workers(chosen.every)
        else:
            counts = try_all(name, *[(INTERRUPT,)] * chosen.lines, every=chosen.every)
        total += counts
        print(f"{name:24}", *(f"{counts[k]:5} {k}" for k in ("points", "old", "between", "new", "wrong")))
        sys.stdout.flush()
    print(f"{total['wrong']} wrong of {total['points']}")
    return min(total["wrong"], 1)


if __name__ == "__main__":
    sys.exit(main())
