"""The errors that a notebook's run hides: in widgets, streams, tasks, threads, commands and captured text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from xgblora_lab.course.pages import VIEW
from xgblora_lab.course.watch import MIME, TRACEBACK

if TYPE_CHECKING:
    from nbformat import NotebookNode

_WIDGETS = "application/vnd.jupyter.widget-state+json"
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
END = "xgblora-lab-end"  # the tag of the cell that asks for what no cell shows
WAIT = 5.0  # seconds that this cell waits for tasks, threads and processes


class NotebookError(RuntimeError):
    """A notebook did not run as it should; `str()` of it is one sentence for the reader.

    Attributes
    ----------
    cell : int or None
        The index of the cell in the executed notebook; None where no cell can be named.
    traceback : str
        The kernel's own traceback as plain text; may be empty.
    hidden : list of NotebookError
        Every error that no cell ended with, itself among them; empty where a cell failed.
    """

    def __init__(self, message: str, cell: int | None = None, traceback: str = "") -> None:
        super().__init__(message)
        self.cell = cell
        self.traceback = traceback
        self.hidden: list[NotebookError] = []


def ending(timeout: float) -> NotebookNode:
    """Make the cell that runs last, waits at most `timeout` seconds, and reports to `hidden_errors`."""
    from nbformat.v4 import new_code_cell

    wait = min(WAIT, timeout / 2)
    source = f"await __import__('sys').modules['xgblora_lab.course.watch'].end({wait:g})"
    return new_code_cell(source, metadata={"tags": [END]})


def hidden_errors(
    notebook: NotebookNode, name: str = "notebook", *, warnings: bool = False
) -> Iterator[NotebookError]:
    """Yield the errors that papermill lets pass.

    Parameters
    ----------
    notebook : NotebookNode
        An executed notebook with its widgets' state, and with the cell of `ending` where one ran.
    name : str
        What to call it in the sentences.
    warnings : bool, default False
        Count warnings as errors too.

    Yields
    ------
    NotebookError
        One for every error or traceback in an `Output` widget or a cell's output, and one for everything that
        the kernel's watch found.
    """
    yield from _in_widgets(notebook, name)
    for index, cell in enumerate(notebook.cells):
        place = f"{name}, {cell_name(cell.source)}"
        for out in cell.get("outputs", []):
            if out.output_type == "error":
                yield NotebookError(f"{place}: {out.ename}: {out.evalue}", index)
            elif out.output_type == "stream" and TRACEBACK in out.text:
                why = "a thread or task failed" if out.name == "stderr" else "an error was caught and printed"
                message = f"{place}: a traceback on {out.name} ({why}): {_last_line(out.text)}"
                yield NotebookError(message, index, plain([out.text]))
    for found in _watched(notebook, warnings):
        sources = [cell.source for cell in notebook.cells]
        within = sources.index(found["source"]) if found["source"] in sources else None
        place = cell_name(found["source"]) if found["source"] else "after the last cell"
        yield NotebookError(f"{name}, {place}: {found['message']}", within, plain([found["traceback"]]))


def reported(notebook: NotebookNode) -> dict[str, Any] | None:
    """Return what the cell of `ending` found; None where it did not run to its end."""
    for cell in notebook.cells[-1:]:
        for out in cell.get("outputs", []):
            if END in cell.metadata.get("tags", []) and MIME in out.get("data", {}):
                return dict(out.data[MIME])
    return None


def _watched(notebook: NotebookNode, warnings: bool) -> list[dict[str, str]]:
    found = reported(notebook) or {}
    return [*found.get("errors", []), *(found.get("warnings", []) if warnings else [])]


def _in_widgets(notebook: NotebookNode, name: str) -> Iterator[NotebookError]:
    state = notebook.metadata.get("widgets", {}).get(_WIDGETS, {}).get("state", {})
    for model, widget in state.items():
        if widget.get("model_name") != "OutputModel":
            continue
        for out in widget.get("state", {}).get("outputs") or []:
            text = str(out.get("text", ""))
            if out.get("output_type") == "error":
                what, trace = f"{out['ename']}: {out['evalue']}", out.get("traceback", [])
            elif TRACEBACK in text:
                what, trace = f"a traceback on {out.get('name')}: {_last_line(text)}", [text]
            else:
                continue
            index = _shown_by(notebook, state, model)
            place = (
                "a widget that no cell shows" if index is None else cell_name(notebook.cells[index].source)
            )
            yield NotebookError(f"{name}, {place}: hidden in a widget's output: {what}", index, plain(trace))


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


def cell_name(source: str) -> str:
    """Name a cell by its first line, as the reader sees it."""
    if "xgblora_lab.course.watch" in source:
        return "after the last cell"
    line = next((line.strip() for line in source.splitlines() if line.strip()), "")
    return f"cell `{line if len(line) <= 60 else line[:57] + '...'}`" if line else "a cell"


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def plain(traceback: list[str]) -> str:
    """Join a traceback's lines and take the colours out."""
    return _ANSI.sub("", "\n".join(traceback))
