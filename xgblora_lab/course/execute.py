"""Run one notebook as a stranger would, and believe nothing that papermill leaves unsaid.

Papermill ignores a misspelt parameter, has no time-out by default, and passes a notebook whose widget
callback raised, because the error went to an `Output` widget. `run_notebook` refuses the first, stops the
second with a sentence, and looks for the third in the widgets' state, which it then drops: one live plotly
figure is 5 MB of it.
"""

from __future__ import annotations

import copy
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
from xgblora_lab.course.notebooks import read
from xgblora_lab.course.parameters import check_parameters

if TYPE_CHECKING:
    from nbformat import NotebookNode

_WIDGETS = "application/vnd.jupyter.widget-state+json"
_VIEW = "application/vnd.jupyter.widget-view+json"
_INTERACTIVE = "An interactive piece stands here when the notebook runs in a live kernel."
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_TRACEBACK = "Traceback (most recent call last)"


class NotebookError(RuntimeError):
    """A notebook did not run as it should; `str()` of it is one sentence for the reader.

    Attributes: `cell`, the index of the cell in the executed notebook (None where no cell can be named);
    `traceback`, the kernel's own traceback as plain text (may be empty).
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

    Args:
        path: the `.ipynb` file; it is only read.
        parameters: values by name, for the cell tagged `parameters`. Text is read as the declared type.
        output: where the executed notebook goes, written whole or not at all; None writes none. After a
            failure the notebook as far as it came lies beside it as `<name>.failed.ipynb`.
        html: where a self-contained page goes whose plotly figures show without a network; None writes none.
        timeout: seconds that each cell may take.
        progress: show papermill's bar over the cells.

    Raises:
        FileNotFoundError: no such notebook. ValueError: an unknown or wrongly typed parameter.
        NotebookError: a cell failed or took too long, or an error was hidden in a widget or a thread.
    """
    import nbformat
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    name = Path(path).name
    values = check_parameters(path, parameters or {})
    if timeout <= 0:
        raise ValueError(f"The time-out per cell must be more than 0 seconds; it is {timeout:g}.")
    usage: dict[str, float] = {}
    # a folder of its own: papermill reads braces in a path as a format, and writes beside its output
    with tempfile.TemporaryDirectory(prefix="xgblora-lab-") as scratch, _quiet_papermill():
        copied, executed = Path(scratch) / "notebook.ipynb", Path(scratch) / "executed.ipynb"
        nbformat.write(read(path), copied)
        failure: NotebookError | None = None
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
            index, source = _last_started(nbformat.read(executed, as_version=4))
            message = (
                f"{name}, {_cell_name(source)}: took longer than {timeout:g} seconds and was stopped; "
                "allow more time, or choose smaller parameters."
            )
            failure = NotebookError(message, index)
        except DeadKernelError:
            index, source = _last_started(nbformat.read(executed, as_version=4))
            message = f"{name}, {_cell_name(source)}: the kernel died, most often for want of memory."
            failure = NotebookError(message, index)

        notebook = nbformat.read(executed, as_version=4)
    failure = failure or next(hidden_errors(notebook, name), None)
    _clean(notebook, name)
    seconds = sum(c.metadata.get("papermill", {}).get("duration") or 0.0 for c in notebook.cells)
    if failure is not None:
        if output is not None:
            partly = Path(output).with_suffix(".failed.ipynb")
            _write(partly, nbformat.writes(notebook))
            failure.args = (f"{failure} (The notebook as far as it came: {partly})",)
        raise failure from None
    if output is not None:
        _write(Path(output), nbformat.writes(notebook))
    if html is not None:
        _write(Path(html), to_html(notebook, title=Path(name).stem))
    peak = usage.get("peak_bytes")
    return Executed(
        notebook,
        Path(output) if output else None,
        Path(html) if html else None,
        seconds,
        [
            out.data[_CHECK]
            for c in notebook.cells
            for out in c.get("outputs", [])
            if _CHECK in out.get("data", {})
        ],
        usage.get("cpu_seconds"),
        None if peak is None else int(peak),
    )


def hidden_errors(notebook: NotebookNode, name: str = "notebook") -> Iterator[NotebookError]:
    """Errors that papermill lets pass: in `Output` widgets, and tracebacks that a thread or task printed."""
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


def to_html(notebook: NotebookNode, title: str = "notebook") -> str:
    """The notebook as one page. Every plotly figure is drawn by one copy of plotly.js inside the page.

    A progress bar shows its last state alone, a widget, which needs a kernel, is one sentence, and what is
    collapsed in a notebook is left out.
    """
    import plotly.io
    from nbconvert import HTMLExporter
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    page = copy.deepcopy(notebook)
    _without_views(page)
    drawn = 0
    for cell in page.cells:
        if cell.metadata.get("jupyter", {}).get("source_hidden"):
            cell.metadata["transient"] = {"remove_source": True}  # nbconvert's word for it
        for out in cell.get("outputs", []):
            figure = out.get("data", {}).get("application/vnd.plotly.v1+json")
            if figure is None:
                continue
            kept = {key: figure[key] for key in ("data", "layout", "frames") if key in figure}
            # plotly.js travels with the first figure; the others find it there
            div = plotly.io.to_html(
                kept, include_plotlyjs=drawn == 0, full_html=False, validate=False, auto_play=False
            )
            out.data = type(out.data)({"text/html": div})
            drawn += 1
    # require.js, which the template would fetch, keeps plotly.js from registering itself
    exporter = HTMLExporter(require_js_url="")
    exporter.register_preprocessor(CoalesceStreamsPreprocessor(), enabled=True)
    body, _ = exporter.from_notebook_node(page, resources={"metadata": {"name": title}})
    return str(body).replace('<script src=""></script>', "")


@contextmanager
def _quiet_papermill() -> Iterator[None]:
    """What papermill logs is raised here, in our words."""
    logger = logging.getLogger("papermill")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _kernel_manager(usage: dict[str, float]) -> type:
    """A kernel manager that starts this interpreter's ipykernel, whatever kernels are installed.

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
    """Processor seconds of a process so far and its peak memory in bytes; nothing where there is no /proc."""
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
    """Index of the first cell whose output shows the widget `model`, itself or inside a box."""
    for index, cell in enumerate(notebook.cells):
        pending = [
            o["data"][_VIEW]["model_id"] for o in cell.get("outputs", []) if _VIEW in o.get("data", {})
        ]
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
    """Index and source of the cell that ran last."""
    started = [
        (i, c.source)
        for i, c in enumerate(notebook.cells)
        if c.cell_type == "code" and c.metadata.get("papermill", {}).get("start_time")
    ]
    return started[-1] if started else (None, "")


def _cell_name(source: str) -> str:
    """A cell by its first line, as the reader sees it."""
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
    _without_views(notebook)


def _without_views(notebook: NotebookNode) -> None:
    """A sentence for every widget: a view without its state is an error message in every viewer."""
    for cell in notebook.cells:
        for out in cell.get("outputs", []):
            if _VIEW in out.get("data", {}):
                del out.data[_VIEW]
                if not set(out.data) - {"text/plain"}:  # else it brought a picture of its own
                    out.data["text/plain"] = _INTERACTIVE


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(content, encoding="utf-8")
    os.replace(partial, path)
