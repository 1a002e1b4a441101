"""One source, two notebooks: the student's, its exercises blank, and the instructor's, with the solutions.

In a code cell tagged `exercise`, the lines from `# solution: rank = None  # your answer: a number` to
`# end` are the instructor's; the student finds what stands after the colon in their place. A cell tagged
`solution` is the instructor's alone. A cell tagged `check` is one call of `xgblora_lab.check`, shown
collapsed. In front of both come the badges and the cell that installs the package on Colab.
"""

from __future__ import annotations

import ast
import re
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

if TYPE_CHECKING:
    from nbformat import NotebookNode

_PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
_START = re.compile(r"( *)# solution(?:: *(.+))?")
_END = re.compile(r" *# end")
_BLANK = "...  # your code here"
_COLAB = "https://colab.research.google.com"
_INSTALL = """\
# On Colab this installs the lab and what Colab lacks for it; anywhere else it does nothing.
import importlib.util
import subprocess
import sys

if "google.colab" in sys.modules and importlib.util.find_spec("xgblora_lab") is None:
    lab = "xgblora-lab @ git+{address}@{tag}"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "anywidget", lab], check=True)"""


@cache
def _release() -> tuple[str, str]:
    """The repository's address and the tag of this version, from the clone's `pyproject.toml`."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # jupytext brings it
    project: dict[str, Any] = tomllib.loads(_PYPROJECT.read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"].rstrip("/"), f"v{project['version']}"


def opening(path: str, *, instructor: bool) -> list[NotebookNode]:
    """The first two cells of the notebook at `path` in the repository: badges, and Colab's install."""
    from nbformat.v4 import new_code_cell, new_markdown_cell

    address, tag = _release()
    project = urlparse(address).path
    colab = f"{_COLAB}/github{project}/blob/{tag}/{path}"
    binder = f"https://mybinder.org/v2/gh{project}/{tag}?urlpath=lab/tree/{path}"
    badges = (
        f"[![Open in Colab]({_COLAB}/assets/colab-badge.svg)]({colab})\n"
        f"[![Open in Binder](https://mybinder.org/badge_logo.svg)]({binder})"
    )
    if instructor:
        badges += "\n\n**Instructor's version**, with the solutions."
    install = new_code_cell(_INSTALL.format(address=address, tag=tag))
    return [new_markdown_cell(badges), _collapsed(install)]


def version(cells: list[NotebookNode], *, instructor: bool) -> list[NotebookNode]:
    """The source's cells as the student or the instructor finds them.

    Raises ValueError, naming the cell, where the convention is broken: a marker without its partner or
    outside a cell tagged `exercise`, an exercise without a solution, a check that is not one call of `check`,
    and a blank that is not Python.
    """
    found = []
    for cell in cells:
        tags = cell.metadata.get("tags", [])
        if "solution" in tags and not instructor:
            continue
        if cell.cell_type == "code":
            cell.source = _solve_or_blank(cell.source, "exercise" in tags, instructor)
        if "check" in tags:
            _one_check(cell.source)
            cell = _collapsed(cell)
        found.append(cell)
    return found


def _solve_or_blank(source: str, exercise: bool, instructor: bool) -> str:
    lines, blank, solved = [], None, 0
    for line in source.splitlines():
        start = _START.fullmatch(line)
        if start or _END.fullmatch(line):
            if not exercise or (start is None) == (blank is None):
                raise ValueError(
                    f"{_first(source)}: `{line.strip()}` stands alone; in a cell tagged `exercise`, write "
                    "the solution between a line `# solution: what the student finds` and a line `# end`."
                )
            blank = start.group(1) + (start.group(2) or _BLANK) if start else None
            if start:
                solved += 1
                lines.append(start.group(1) + "# solution" if instructor else str(blank))
        elif instructor or blank is None:
            lines.append(line)
    if blank is not None or (exercise and not solved):
        lacks = "`# end`" if solved else "`# solution: …` with its `# end`"
        raise ValueError(f"{_first(source)}: the exercise has no line {lacks}.")
    text = "\n".join(lines)
    if exercise:
        try:
            ast.parse(text)
        except SyntaxError as error:
            who = "instructor" if instructor else "student"
            raise ValueError(f"{_first(source)}: what the {who} finds is not Python: {error}.") from None
    return text


def _one_check(source: str) -> None:
    """A check returns its verdict, and a notebook shows only the last value of a cell: so one call."""
    body = ast.parse(source).body
    last = body[-1].value if body and isinstance(body[-1], ast.Expr) else None
    call = ast.unparse(last.func) if isinstance(last, ast.Call) else ""
    if len(body) != 1 or not call.startswith("check."):
        raise ValueError(f"{_first(source)}: a cell tagged `check` is one call such as check.number(…).")


def _collapsed(cell: NotebookNode) -> NotebookNode:
    cell.metadata["jupyter"] = {"source_hidden": True}
    return cell


def _first(source: str) -> str:
    return f"The cell `{source.strip().splitlines()[0] if source.strip() else ''}`"
