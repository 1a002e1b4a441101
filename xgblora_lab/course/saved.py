"""Training that a lesson saves: after a restart of the kernel the same cell goes on where it was.

A free server stops a kernel that nobody has used for some minutes, and all that it held is gone. What `bench`
and `race` have trained lies in a folder then, `runs/saved` beside the notebook, or where the environment
variable `XGBLORA_LAB_RUNS` says. The name of a run's folder holds a digest of model, data, settings, hooks
and version: whoever changes one of them begins anew, in another folder.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgblora_lab.bench import Bench, Checkpoint, Hook, resume
from xgblora_lab.bench.records import short_name
from xgblora_lab.course.board import say
from xgblora_lab.course.kernel import RUNS
from xgblora_lab.disk import digest
from xgblora_lab.files import plain
from xgblora_lab.racing.cells import require_writable
from xgblora_lab.racing.identity import data_digest, hook_names, model_digest
from xgblora_lab.racing.race import OPEN
from xgblora_lab.racing.race import race as race_anew
from xgblora_lab.store import LOG

if TYPE_CHECKING:
    from torch import nn

    from xgblora_lab.methods import Method
    from xgblora_lab.racing.result import Race
    from xgblora_lab.tasks.task import Task

ELSEWHERE = ("executor", "out", "progress", "watch")  # options of a race that change none of its runs


def bench(model: nn.Module, task: Task, method: Method, **options: Any) -> Bench:
    """Make a bench that saves every round, and has those that were saved before.

    Parameters
    ----------
    model, task, method, **options
        As in `Bench`; a method that `METHODS` knows.

    Returns
    -------
    Bench
        With the rounds of an earlier kernel, of which a sentence tells; new where there are none, or where
        nothing can be written here.

    Raises
    ------
    ValueError, FileNotFoundError, FileExistsError
        As `resume` raises them: the files were changed, or another kernel is writing them.
    """
    hooks = list(options.get("hooks", ()))
    base = model_digest(model)
    made = Bench(model, task, method, **options)
    folder = _folder(method.name, made.history.common(), base, data_digest(task), hooks)
    if folder is None:
        return made
    if not (folder / LOG).is_file():
        made.hooks.append(Checkpoint(folder))
        return made
    made = resume(folder, model, task, hooks=hooks, accelerator=options.get("accelerator"))
    _tell(f"{len(made.history)} of {made.planned_rounds} rounds of this run", folder)
    return made


def race(
    model: str | Path | nn.Module, data: str | Path | Task, methods: Sequence[str | Method], **options: Any
) -> Race:
    """Race methods as `race` does, and save every finished run: those that are there are not run again.

    Parameters
    ----------
    model, data, methods, **options
        As in `race`, but for `out`, which is found here.

    Returns
    -------
    Race
        The same as without a stop.

    Raises
    ------
    ValueError, OSError, RuntimeError
        As `race` raises them.
    """
    make: Callable[[], Sequence[Hook]] = options.get("hooks", tuple)
    settings = {k: v for k, v in options.items() if k not in (*OPEN, *ELSEWHERE, "hooks")}
    settings["methods"] = [m if isinstance(m, str) else [m.name, m.options(), m.lr] for m in methods]
    if isinstance(model, str | Path):
        settings["model"] = short_name(model)
    folder = _folder("race", settings, model_digest(model), data_digest(data), make())
    if folder is not None and (done := len(list(folder.glob("runs/*.json")))):
        _tell(f"{done} of this race's runs", folder)
    return race_anew(model, data, methods, **options, out=folder)


def _folder(name: str, settings: Any, base: str, data: str, hooks: Sequence[Hook]) -> Path | None:
    """Where a run with these settings is saved; None where nothing can be written."""
    told = [settings, hook_names(lambda: hooks), list(_own_code(hooks)), metadata.version("xgblora_lab")]
    key = digest([("base", base), ("data", data), ("run", json.dumps(plain(told), sort_keys=True))])
    folder = Path(os.environ.get(RUNS) or Path("runs") / "saved") / f"{name}-{key[:12]}"
    try:
        require_writable(folder)
    except OSError:
        return None
    return folder


def _own_code(hooks: Iterable[Hook]) -> Iterable[str]:
    """What the reader has written of these hooks: whoever corrects a hook wants it measured again."""
    for hook in hooks:
        for function in vars(type(hook)).values():
            if inspect.isfunction(function) and function.__module__ == "__main__":
                with suppress(OSError):
                    yield inspect.getsource(function)


def _tell(what: str, folder: Path) -> None:
    say(f"{what} were trained before and lie in `{folder}`: this cell goes on. To begin anew, delete it.")
