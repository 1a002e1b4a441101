"""Run one notebook as a stranger would, and find the errors that papermill does not report.

Papermill ignores a misspelt parameter, has no time-out by default, and passes a notebook in which a widget's
callback raised, because that error went to an `Output` widget. `run_notebook` refuses the parameter and stops
the slow cell, each with a sentence. It looks for hidden errors in the widgets' state, and then drops this
state, because one live plotly figure takes 5 MB of it.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgblora_lab.course.check import MIME as _CHECK
from xgblora_lab.course.pages import VIEW, to_html, without_views
from xgblora_lab.course.parameters import check_parameters
from xgblora_lab.course.sources import read
from xgblora_lab.files import write_text

if TYPE_CHECKING:
    from nbformat import NotebookNode

_WIDGETS = "application/vnd.jupyter.widget-state+json"
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_TRACEBACK = "Traceback (most recent call last)"


class NotebookError(RuntimeError):
    """A notebook did not run as it should; `str()` of it is one sentence for the reader.

    Attributes
    ----------
    cell : int or None
        The index of the cell in the executed notebook; None where no cell can be named.
    traceback : str
        The kernel's own traceback as plain text; may be empty.
    """

    def __init__(self, message: str, cell: int | None = None, traceback: str = "") -> None:
        super().__init__(message)
        self.cell = cell
        self.traceback = traceback


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
    progress : bool, default True
        Show papermill's bar over the cells.

    Raises
    ------
    FileNotFoundError
        There is no such notebook.
    ValueError
        A parameter is unknown or of the wrong type, or `timeout` is not positive.
    NotebookError
        A cell failed or took too long, or an error was hidden in a widget or a thread.
    """
    import nbformat

    name = Path(path).name
    values = check_parameters(path, parameters or {})
    if timeout <= 0:
        raise ValueError(f"The time-out per cell must be more than 0 seconds; it is {timeout:g}.")
    usage: dict[str, float] = {}
    notebook, failure = _execute(read(path), name, values, timeout, progress, usage)
    failure = failure or next(hidden_errors(notebook, name), None)
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
        write_text(html, to_html(notebook, title=Path(name).stem))
    return _executed(notebook, output, html, usage)


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
    # a folder of its own: papermill reads braces in a path as a format, and writes beside its output
    with tempfile.TemporaryDirectory(prefix="xgblora-lab-") as scratch, _quiet_papermill():
        copied, executed = Path(scratch) / "notebook.ipynb", Path(scratch) / "executed.ipynb"
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
                kernel_manager_class=_kernel_manager(usage),
                autosave_cell_every=0,
            )
        except PapermillExecutionError as error:
            message = f"{name}, {_cell_name(error.source)}: {error.ename}: {error.evalue}".rstrip(": ")
            failure = NotebookError(message, error.cell_index, _plain(error.traceback))
        except CellTimeoutError:
            stopped = f"took longer than {timeout:g} seconds and was stopped; "
            stopped += "allow more time, or choose smaller parameters."
        except DeadKernelError:
            stopped = "the kernel died, most often because the memory was full."
        notebook = nbformat.read(executed, as_version=4)
    if stopped:
        index, source = _last_started(notebook)
        failure = NotebookError(f"{name}, {_cell_name(source)}: {stopped}", index)
    return notebook, failure


def hidden_errors(notebook: NotebookNode, name: str = "notebook") -> Iterator[NotebookError]:
    """Yield the errors that papermill lets pass.

    Parameters
    ----------
    notebook : NotebookNode
        An executed notebook with its widgets' state.
    name : str
        What to call it in the sentences.

    Yields
    ------
    NotebookError
        One for every error in an `Output` widget, and for every traceback that a thread or task printed.
    """
    state = notebook.metadata.get("widgets", {}).get(_WIDGETS, {}).get("state", {})
    for model, widget in state.items():
        for out in widget.get("state", {}).get("outputs") or []:
            if widget.get("model_name") == "OutputModel" and out.get("output_type") == "error":
                index = _shown_by(notebook, state, model)
                place = (
                    "a widget that no cell shows"
                    if index is None
                    else _cell_name(notebook.cells[index].source)
                )
                message = f"{name}, {place}: hidden in a widget's output: {out['ename']}: {out['evalue']}"
                yield NotebookError(message, index, _plain(out.get("traceback", [])))
    for index, cell in enumerate(notebook.cells):
        for out in cell.get("outputs", []):
            if out.output_type == "error":
                yield NotebookError(f"{name}, {_cell_name(cell.source)}: {out.ename}: {out.evalue}", index)
            elif out.output_type == "stream" and out.name == "stderr" and _TRACEBACK in out.text:
                last = out.text.strip().splitlines()[-1]
                place = f"{name}, {_cell_name(cell.source)}"
                message = f"{place}: a traceback on stderr (a thread or task failed): {last}"
                yield NotebookError(message, index, _plain([out.text]))


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


def _kernel_manager(usage: dict[str, float]) -> type:
    """Make a kernel manager that starts this interpreter's ipykernel, whatever kernels are installed.

    What the kernel used goes into `usage` when it is stopped.
    """
    import zmq
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from traitlets import default

    class ThisInterpreter(AsyncKernelManager):
        @default("transport_encryption")
        def _encrypted(self) -> str:
            return "auto" if zmq.has("curve") else "disabled"  # unencrypted, the kernel prints a warning

        @property
        def kernel_spec(self) -> KernelSpec:
            # figures as data: small notebooks, and `to_html` draws them
            return KernelSpec(**get_kernel_dict(), env={"PLOTLY_RENDERER": "plotly_mimetype"})

        async def _async_shutdown_kernel(self, now: bool = False, restart: bool = False) -> None:
            with suppress(OSError):  # the kernel may be gone
                usage.update(_used(getattr(self.provisioner, "pid", None) or 0))
            await super()._async_shutdown_kernel(now=now, restart=restart)

        shutdown_kernel = _async_shutdown_kernel  # as in the class above

    return ThisInterpreter


def _used(pid: int) -> dict[str, float]:
    """Return a process's processor seconds and peak memory in bytes; nothing where there is no /proc."""
    home = Path(f"/proc/{pid}")
    if not home.is_dir():
        return {}
    fields = (home / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()  # from the third one on
    used = {"cpu_seconds": (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")}
    # not `ru_maxrss`: that begins at the memory of the process that started this one
    match = re.search(
        r"^VmHWM:\s+(\d+) kB", (home / "status").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    return used | ({"peak_bytes": 1024.0 * int(match[1])} if match else {})


def _shown_by(notebook: NotebookNode, state: Mapping[str, Any], model: str) -> int | None:
    """Return the index of the first cell whose output shows the widget `model`, itself or inside a box."""
    for index, cell in enumerate(notebook.cells):
        pending = [o["data"][VIEW]["model_id"] for o in cell.get("outputs", []) if VIEW in o.get("data", {})]
        seen = set()
        while pending:
            current = pending.pop()
            if current == model:
                return index
            if current not in seen:
                seen.add(current)
                children = state.get(current, {}).get("state", {}).get("children") or []
                pending += [str(child).removeprefix("IPY_MODEL_") for child in children]
    return None


def _last_started(notebook: NotebookNode) -> tuple[int | None, str]:
    """Return the index and the source of the cell that ran last."""
    started = [
        (i, c.source)
        for i, c in enumerate(notebook.cells)
        if c.cell_type == "code" and c.metadata.get("papermill", {}).get("start_time")
    ]
    return started[-1] if started else (None, "")


def _cell_name(source: str) -> str:
    """Name a cell by its first line, as the reader sees it."""
    line = next((line.strip() for line in source.splitlines() if line.strip()), "")
    return f"cell `{line if len(line) <= 60 else line[:57] + '...'}`" if line else "a cell"


def _plain(traceback: list[str]) -> str:
    return _ANSI.sub("", "\n".join(traceback))


def _clean(notebook: NotebookNode, name: str) -> None:
    """Drop widget state and the paths of the machine that ran it."""
    notebook.metadata.pop("widgets", None)
    record = notebook.metadata.get("papermill", {})
    record.pop("environment_variables", None)
    record["input_path"], record["output_path"] = name, None
    without_views(notebook)
