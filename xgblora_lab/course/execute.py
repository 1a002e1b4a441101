"""Run one notebook as a stranger would, and find the errors that papermill does not report.

Papermill ignores a misspelt parameter, has no time-out by default, and passes a notebook in which a widget's
callback raised, because that error went to an `Output` widget. `run_notebook` refuses the parameter and stops
the slow cell, each with a sentence. A last cell of its own finds the errors that no cell shows. The
widgets' state is looked through and then dropped, because one live plotly figure takes 5 MB of it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgblora_lab.course.check import MIME as _CHECK
from xgblora_lab.course.hidden import END, cell_name, ending, plain, reported
from xgblora_lab.course.hidden import NotebookError as NotebookError  # it is raised here
from xgblora_lab.course.hidden import hidden_errors as hidden_errors
from xgblora_lab.course.kernel import kernel_manager, scratch_folder
from xgblora_lab.course.lesson import lesson
from xgblora_lab.course.pages import to_html, without_views
from xgblora_lab.course.parameters import check_parameters
from xgblora_lab.course.sources import read
from xgblora_lab.files import write_text

if TYPE_CHECKING:
    from nbformat import NotebookNode

_LONGEST = 1e6  # seconds, eleven days


@dataclass(frozen=True)
class Executed:
    """What a run of a notebook left behind."""

    notebook: NotebookNode  # with outputs, without widget state
    output: Path | None  # where it was written
    html: Path | None  # the page, its plots visible without a network
    seconds: float  # spent in cells
    checks: list[dict[str, Any]]  # the self-checks' verdicts in order: exercise, passed, status
    cpu_seconds: float | None  # of the kernel, its imports included; None where there is no /proc
    peak_bytes: int | None  # the most memory that the kernel held at one moment; None where there is no /proc


def run_notebook(
    path: str | Path,
    parameters: Mapping[str, Any] | None = None,
    *,
    output: str | Path | None = None,
    html: str | Path | None = None,
    timeout: float = 120,
    warnings: bool = False,
    progress: bool = True,
) -> Executed:
    """Execute a notebook from top to bottom in a fresh kernel of this very interpreter.

    Parameters
    ----------
    path : str or Path
        The `.ipynb` file; it is only read.
    parameters : mapping, optional
        Values by name, for the cell tagged `parameters`. Text is read as the declared type.
    output : str or Path, optional
        Where the executed notebook goes; by default none is written. After a failure, the notebook as far as
        it came lies beside it as `<name>.failed.ipynb`.
    html : str or Path, optional
        Where a self-contained page goes whose plotly figures show without a network.
    timeout : float, default 120
        Seconds that each cell may take.
    warnings : bool, default False
        Let a warning end the run like an error.
    progress : bool, default True
        Show papermill's bar over the cells.

    Raises
    ------
    FileNotFoundError
        There is no such notebook.
    ValueError
        A parameter is unknown or of the wrong type, or `timeout` is no number of seconds.
    NotebookError
        A cell failed or took too long, or an error was hidden: in a widget's output, a captured or printed
        traceback, a task, a thread, a shell command, a log.
    """
    import nbformat

    name = Path(path).name
    values = check_parameters(path, parameters or {})
    check_timeout(timeout)
    usage: dict[str, float] = {}
    notebook, failure = _execute(read(path), name, values, timeout, progress, usage)
    failure = failure or _hidden(notebook, name, warnings)
    _clean(notebook, name)
    if failure is not None:
        if output is not None:
            partly = Path(output).with_suffix(".failed.ipynb")
            write_text(partly, nbformat.writes(notebook))
            failure.args = (f"{failure} (The notebook as far as it came: {partly})",)
        raise failure from None
    if output is not None:
        write_text(output, nbformat.writes(notebook))
    if html is not None:
        write_text(html, to_html(notebook, title=lesson(notebook).title or Path(name).stem))
    return _executed(notebook, output, html, usage)


def check_timeout(timeout: float) -> None:
    """Raise ValueError where a time-out in seconds is not more than 0 or not finite."""
    if not (math.isfinite(timeout) and 0 < timeout <= _LONGEST):
        limits = f"more than 0 seconds and at most {_LONGEST:,.0f}"
        raise ValueError(f"The time-out per cell must be {limits}; it is {timeout:g}.")


def _hidden(notebook: NotebookNode, name: str, warnings: bool) -> NotebookError | None:
    """Return the first hidden error, which holds all of them; None where there is none."""
    found = list(hidden_errors(notebook, name, warnings=warnings))
    if not found and reported(notebook) is None:
        index, source = _last_started(notebook)
        found = [NotebookError(f"{name}, {cell_name(source)}: failed, and its error was suppressed.", index)]
    for failure in found[:1]:
        failure.hidden = found
        if len(found) > 1:
            failure.args = (f"{failure} ({len(found) - 1} more hidden)",)
        return failure
    return None


def _executed(
    notebook: NotebookNode, output: str | Path | None, html: str | Path | None, usage: Mapping[str, float]
) -> Executed:
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    peak = usage.get("peak_bytes")
    return Executed(
        notebook,
        Path(output) if output else None,
        Path(html) if html else None,
        sum(c.metadata.get("papermill", {}).get("duration") or 0.0 for c in notebook.cells),
        [out.data[_CHECK] for out in outputs if _CHECK in out.get("data", {})],
        usage.get("cpu_seconds"),
        None if peak is None else int(peak),
    )


def _execute(
    notebook: NotebookNode,
    name: str,
    values: Mapping[str, Any],
    timeout: float,
    progress: bool,
    usage: dict[str, float],
) -> tuple[NotebookNode, NotebookError | None]:
    """Return the notebook with outputs, as far as it came, and what stopped it; fill `usage`."""
    import nbformat
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    stopped = ""
    failure: NotebookError | None = None
    notebook.cells.append(ending(timeout))
    # a folder of its own: papermill reads braces in a path as a format, and writes beside its output
    with scratch_folder() as scratch, _quiet_papermill():
        copied, executed = scratch / "notebook.ipynb", scratch / "executed.ipynb"
        nbformat.write(notebook, copied)
        try:
            papermill.execute_notebook(
                str(copied),
                str(executed),
                values,
                kernel_name="python3",
                language="python",
                progress_bar=progress,
                # traitlets wants whole seconds
                execution_timeout=max(1, round(timeout)),
                kernel_manager_class=kernel_manager(usage, scratch),
                autosave_cell_every=0,
            )
        except PapermillExecutionError as error:
            message = f"{name}, {cell_name(error.source)}: {error.ename}: {error.evalue}".rstrip(": ")
            failure = NotebookError(message, error.cell_index, plain(error.traceback))
        except CellTimeoutError:
            stopped = f"took longer than {timeout:g} seconds and was stopped; "
            stopped += "allow more time, or choose smaller parameters."
        except DeadKernelError:
            stopped = "the kernel died, most often because the memory was full."
        notebook = nbformat.read(executed, as_version=4)
    if stopped:
        index, source = _last_started(notebook)
        failure = NotebookError(f"{name}, {cell_name(source)}: {stopped}", index)
    return notebook, failure


@contextmanager
def _quiet_papermill() -> Iterator[None]:
    """Silence papermill's log: we raise the same errors in words of our own."""
    logger = logging.getLogger("papermill")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _last_started(notebook: NotebookNode) -> tuple[int | None, str]:
    """Return the index and the source of the cell that ran last."""
    started = [
        (i, c.source)
        for i, c in enumerate(notebook.cells)
        if c.cell_type == "code" and c.metadata.get("papermill", {}).get("start_time")
    ]
    return started[-1] if started else (None, "")


def _clean(notebook: NotebookNode, name: str) -> None:
    """Drop the last cell, which is ours, widget state, and the paths of the machine that ran it."""
    notebook.cells = [cell for cell in notebook.cells if END not in cell.metadata.get("tags", [])]
    notebook.metadata.pop("widgets", None)
    record = notebook.metadata.get("papermill", {})
    record.pop("environment_variables", None)
    record["input_path"], record["output_path"] = name, None
    without_views(notebook)
