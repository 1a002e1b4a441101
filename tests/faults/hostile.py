"""Hostile input, each kind many times: accepted rightly, or answered by one sentence.

`python -m tests.faults.hostile` runs all of it and prints the counts; `tests/test_hostile.py` samples it. An
input is wrong where it ends in another error than a refusal, in a traceback or in more than a line; where it
takes more than 5 seconds of computing; where it is refused and should not be, or the other way round; where
something is written outside the folder it was to go to, or a refusal leaves something behind.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
if str(TESTS) not in sys.path:
    sys.path.insert(0, str(TESTS))
import conftest  # noqa: E402, F401  (no network, one thread: before torch is imported)
import torch  # noqa: E402

SECONDS = 5.0  # of computing, at most
ALARM = 60  # seconds on the clock, on a machine that others use too
REFUSALS = (ValueError, OSError, TypeError)  # what the library refuses with, as its docstrings say
TARGET = "out"  # the one name that an input may write to, in its working folder


@dataclass(frozen=True)
class Input:
    """One hostile input.

    Parameters
    ----------
    room : str
        What it attacks.
    name : str
        What it is, for the list of those that went wrong.
    run : callable
        Is called in an empty working folder; returns where the input is accepted, raises where it is refused.
    accepted : bool or None
        Whether it has to be accepted; None: either, as long as the answer is a good one.
    """

    room: str
    name: str
    run: Callable[[], Any]
    accepted: bool | None = False


class Hung(BaseException):
    """An input took too long; no handler of the library catches it."""


class Forbidden(BaseException):
    """An input made the library do what no input may."""


def judge(case: Input, folder: Path, seconds: float = SECONDS, alarm: float = ALARM) -> str:
    """Run one input in a fresh folder; what is wrong with the answer, or nothing."""
    work = folder / "work"
    work.mkdir(parents=True)
    (folder / "beside.txt").write_text("beside")
    before, began, answer, home = _tree(folder), time.process_time(), "", Path.cwd()
    noise = io.StringIO()
    try:
        os.chdir(work)
        with contextlib.redirect_stderr(noise), contextlib.redirect_stdout(noise), _watched(alarm):
            case.run()
    except BaseException as error:
        answer = _fault(error)
        accepted = False
    else:
        accepted = True
    finally:
        os.chdir(home)
    spent = time.process_time() - began
    changed = sorted(
        name for name in {**before, **_tree(folder)} if before.get(name) != _tree(folder).get(name)
    )
    outside = [name for name in changed if not name.startswith(f"work/{TARGET}") and name not in _GIVEN]
    if answer:
        return answer
    if "Traceback" in noise.getvalue():
        return "a traceback on the screen"
    if spent > seconds:
        return f"{spent:.1f} s of computing"
    if case.accepted is not None and accepted != case.accepted:
        return "accepted" if accepted else "refused: " + noise.getvalue()[-200:]
    if outside:
        return f"wrote {', '.join(outside)}"
    half = [name for name in changed if "/." in name or name.endswith((".partial", ".tmp"))]
    if half or (not accepted and [name for name in changed if name not in _GIVEN]):
        return f"left {', '.join(half or changed)}"
    return ""


_GIVEN: set[str] = set()  # what the input itself put into its working folder, see `given`


def given(name: str, content: bytes | str = b"") -> Path:
    """A file that belongs to the input, in its working folder."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    for part in (path, *path.parents):
        _GIVEN.add(f"work/{part}")
    return path


def link(name: str, target: str) -> None:
    """A symbolic link that belongs to the input."""
    Path(name).symlink_to(target)
    _GIVEN.add(f"work/{name}")


def command(*arguments: str) -> None:
    """The console script with these arguments; raises ValueError with what it wrote where it refuses."""
    from xgblora_lab import cli

    cli._options["traceback"] = False
    screen, argv = io.StringIO(), sys.argv
    sys.argv = ["xgblora-lab", *arguments]
    try:
        with contextlib.redirect_stderr(screen):
            cli.main()
    except SystemExit as stop:
        if stop.code:
            said = screen.getvalue()
            last = said.rstrip("\n").rpartition("\n")[2]  # a progress bar may stand above
            if not last.startswith("xgblora-lab: "):
                raise AssertionError(f"exit code {stop.code} without a sentence: {said[-300:]!r}") from None
            if stop.code != 2:
                raise AssertionError(f"exit code {stop.code}: {last}") from None
            raise ValueError(last.removeprefix("xgblora-lab: ")) from None
    finally:
        sys.argv = argv


def _fault(error: BaseException) -> str:
    """What is wrong with a refusal, or nothing."""
    message = str(error)
    if not isinstance(error, REFUSALS):
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {message[:200]} ({Path(where.filename).name}:{where.lineno})"
    if isinstance(error, OSError) and error.strerror:
        return ""  # the system's own words, with the path; the command line makes a sentence of them
    if "\n" in message.strip():
        return f"more than a line: {message[:200]!r}"
    if len(message) < 20 or " " not in message:
        return f"no sentence: {message!r}"
    if len(message) > 1500:
        return f"a sentence of {len(message)} characters"
    return ""


@contextlib.contextmanager
def _watched(alarm: float) -> Iterator[None]:
    """An alarm, and no way to torch.load, the hub's kernels or another process."""

    def ring(*_: object) -> None:
        raise Hung(f"no answer in {alarm} s")

    def forbidden(*_: object, **__: object) -> None:
        raise Forbidden("torch.load was reached")

    before, load = signal.signal(signal.SIGALRM, ring), torch.load
    signal.setitimer(signal.ITIMER_REAL, alarm)
    torch.load = forbidden  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.load = load
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder by name, with size and time of its last change."""
    found = {}
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(root) / name
            told = path.lstat()
            key = path.relative_to(folder).as_posix()
            found[key] = (0, 0) if name in folders else (told.st_size, told.st_mtime_ns)
    return found


def run(cases: Sequence[Input], say: Callable[[str], None] = lambda line: None) -> dict[Input, str]:
    """Judge the inputs; those that went wrong, with what was wrong."""
    wrong = {}
    for case in cases:
        folder = Path(tempfile.mkdtemp(prefix="hostile-"))
        _GIVEN.clear()
        try:
            fault = judge(case, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if fault:
            wrong[case] = fault
            say(f"WRONG {case.room}: {case.name}: {fault}")
    return wrong


def main() -> int:
    """Run all inputs, or those of the rooms named, and print the counts."""
    import warnings

    from faults.hostile_inputs import inputs

    warnings.simplefilter("ignore")
    cases = inputs(*sys.argv[1:])
    wrong = run(cases, lambda line: print(line, flush=True))
    counts, faults = Counter(case.room for case in cases), Counter(case.room for case in wrong)
    for room, count in counts.items():
        print(f"{room:14} {count:5} inputs {faults[room]:4} wrong")
    print(f"{'all':14} {len(cases):5} inputs {len(wrong):4} wrong")
    return bool(wrong)


if __name__ == "__main__":
    sys.modules["faults.hostile"] = sys.modules["__main__"]  # one module under both names
    sys.exit(main())
