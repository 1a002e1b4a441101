"""The sources of the notebooks: where notebooks lie, and how one source becomes two of them.

`notebooks/source/NN_name.py` (jupytext percent format) is what people edit and review. The command `python -m
xgblora_lab.course.sources` writes two notebooks from it, the student's `notebooks/NN_name.ipynb`, in which
the exercises are blank, and the instructor's `notebooks/instructor/NN_name.ipynb`. They depend only on the
source, the measured seconds beside it, and the address and version in `pyproject.toml`: they have no outputs,
cell ids that come from the cells' text, and one kernelspec.

In a code cell tagged `exercise`, the lines from `# solution: rank = None  # your answer: a number` to
`# end` are the instructor's; the student finds what stands after the colon in their place. A cell tagged
`solution` is for the instructor alone. A cell tagged `check` is one call of `xgblora_lab.check`, shown
collapsed, as is a cell tagged `folded`, which holds what must be there and teaches nothing. What is meant for
the formatter (`# fmt: skip`) stays in the source, and `{time}` becomes the time that the lesson takes. Both
notebooks begin with the badges and with the cell that installs the package on Colab.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from xgblora_lab.course.opening import opening as opening  # its first two cells belong to every notebook
from xgblora_lab.course.times import MARK, measured, minutes
from xgblora_lab.files import write_text

if TYPE_CHECKING:
    from nbformat import NotebookNode

_PACKAGE = Path(__file__).resolve().parents[1]
INSTRUCTOR = "instructor"  # the folder of the versions with solutions, beside the students'
_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
_START = re.compile(r"( *)# solution(?:: *(.+))?")
_END = re.compile(r" *# end")
_FORMATTER = re.compile(r"[ \t]*# fmt: (?:skip|off|on)$", re.MULTILINE)  # a word to ruff, not to the reader


def in_clone() -> bool:
    """Tell whether the package runs from a clone of the repository rather than from an installed wheel."""
    return (_PACKAGE.parent / "notebooks" / "source").is_dir()


def folder() -> Path:
    """Return the folder of the `.ipynb` files: the clone's own, or the copies inside an installed wheel."""
    return _PACKAGE.parent / "notebooks" if in_clone() else _PACKAGE / "_notebooks"


def shipped(*, instructor: bool = False) -> list[Path]:
    """List the students' notebooks in order, or the instructor's.

    Raises
    ------
    FileNotFoundError
        There are none: they were not built yet, or the package was not installed whole.
    """
    where = folder() / INSTRUCTOR if instructor else folder()
    found = sorted(where.glob("[0-9]*.ipynb"))
    if not found:
        raise FileNotFoundError(
            f"There are no notebooks in {where}: in a clone, run `python -m xgblora_lab.course.sources`; "
            "else install the package again."
        )
    return found


def find(name: str | Path) -> Path:
    """Find a notebook by path, or one of ours by any unambiguous part of its name.

    Parameters
    ----------
    name : str or Path
        A path, a number (`1`, `01`) or a part of a name (`one_matrix`).

    Raises
    ------
    FileNotFoundError
        No notebook fits, or several do; the sentence lists the candidates.
    """
    if os.path.isfile(name):  # not `Path.is_file`, which raises where a name is too long
        return Path(name)
    number = str(name).isdecimal() and str(name).isascii()
    key = f"{str(name).lstrip('0'):0>2}_" if number else str(name)
    matches = [p for p in shipped() if (p.stem.startswith if number else p.stem.__contains__)(key)]
    if len(matches) == 1:
        return matches[0]
    known = ", ".join(p.stem for p in matches or shipped())
    problem = "fits several notebooks" if matches else "is neither a file nor one of our notebooks"
    raise FileNotFoundError(f"{str(name)[:80]} {problem}: give a path or one of {known}.")


def working_copy(target: Path = Path("xgblora-notebooks")) -> Path:
    """Return a folder to work in: `target`, with the students' notebooks that it lacks copied into it.

    A file that is there already is the reader's own work and is left alone. A clone's own notebooks are never
    worked in, so that lessons leave no change in the tree.
    """
    target.mkdir(parents=True, exist_ok=True)
    for notebook in shipped():
        if not (target / notebook.name).exists():
            shutil.copyfile(notebook, target / notebook.name)
    return target


def read(path: str | Path) -> NotebookNode:
    """Read a Python notebook.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is not a notebook, or it is written in another language.
    """
    import nbformat

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no notebook {path}.")
    try:
        notebook = nbformat.read(path, as_version=4)
        kernel = notebook.metadata.get("kernelspec", {})
        known = notebook.metadata.get("language_info", {}).get("name") or kernel.get("language")
        _ = [(c.cell_type, c.source.strip(), c.metadata.get("tags")) for c in notebook.cells]  # else damaged
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError, nbformat.ValidationError):
        raise ValueError(f"{path.name} is not a notebook: give a file that ends in .ipynb.") from None
    if known not in (None, "", "python"):
        raise ValueError(f"{path.name} is written in {known}; only Python notebooks run here.")
    notebook.metadata["kernelspec"] = dict(_KERNEL)
    return notebook


def convert(source: Path, *, instructor: bool = False) -> NotebookNode:
    """Make the student's or the instructor's notebook from a source in percent format.

    Raises
    ------
    ValueError
        An exercise breaks the convention at the head of this module; the file and the cell are named.
    """
    import jupytext

    notebook = jupytext.read(source, fmt="py:percent")
    path = "/".join(("notebooks", *([INSTRUCTOR] if instructor else []), f"{source.stem}.ipynb"))
    try:
        cells = version(notebook.cells, instructor=instructor)
    except ValueError as error:
        raise ValueError(f"{source.name}: {error}") from None
    for cell in cells:
        if MARK in cell.source and cell.cell_type == "markdown":
            students = version(jupytext.read(source, fmt="py:percent").cells, instructor=False)
            seconds = measured(source.parent).get(source.stem)
            cell.source = cell.source.replace(MARK, str(minutes(students, seconds)))
    notebook.cells = opening(path, instructor=instructor) + cells
    seen: Counter[str] = Counter()
    for cell in notebook.cells:
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        seen[digest] += 1
        cell["id"] = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
    notebook.metadata = {"kernelspec": dict(_KERNEL), "language_info": {"name": "python"}}
    return notebook


def version(cells: list[NotebookNode], *, instructor: bool) -> list[NotebookNode]:
    """Return the source's cells as the student or the instructor finds them.

    Raises
    ------
    ValueError
        A marker has no partner or is not in a cell tagged `exercise`, an exercise has no solution, a check is
        not one call of `check`, or a blank is not Python; the cell is named.
    """
    found = []
    for cell in cells:
        tags = cell.metadata.get("tags", [])
        if "solution" in tags and not instructor:
            continue
        if cell.cell_type == "code":
            cell.source = _FORMATTER.sub("", _solve_or_blank(cell.source, "exercise" in tags, instructor))
        if "check" in tags:
            _one_check(cell.source)
        if "check" in tags or "folded" in tags:
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
            blank = start.group(1) + (start.group(2) or "...  # your code here") if start else None
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


def text(notebook: NotebookNode) -> str:
    """Return the content of the `.ipynb` file."""
    import nbformat

    return str(nbformat.writes(notebook, version=4)) + "\n"


def stale(directory: Path | None = None) -> list[Path]:
    """List the `.ipynb` files of both kinds that are missing, differ from their source, or have none.

    Parameters
    ----------
    directory : Path, optional
        The folder that holds `source`; default `folder()`.

    Raises
    ------
    ValueError
        A source does not follow the convention.
    """
    directory = directory or folder()
    wanted = _wanted(directory)
    made = [*directory.glob("*.ipynb"), *directory.glob(f"{INSTRUCTOR}/*.ipynb")]
    wrong = [path for path in sorted(made) if path not in wanted]
    return wrong + [path for path, content in wanted.items() if _differs(path, content)]


def build(directory: Path | None = None) -> list[Path]:
    """Write every stale `.ipynb` from its source and list those; one without a source is left alone.

    Parameters
    ----------
    directory : Path, optional
        The folder that holds `source`; default `folder()`.

    Raises
    ------
    FileNotFoundError
        There are no sources: notebooks are built in a clone.
    ValueError
        A source does not follow the convention; nothing is written then.
    """
    directory = directory or folder()
    if not (directory / "source").is_dir():
        raise FileNotFoundError(f"{directory} has no folder `source`: only a clone can build notebooks.")
    changed = {path: content for path, content in _wanted(directory).items() if _differs(path, content)}
    for path, content in changed.items():
        write_text(path, content)
    return list(changed)


def _wanted(directory: Path) -> dict[Path, str]:
    """Map the `.ipynb` files that there should be to what they should hold."""
    return {
        (directory / INSTRUCTOR if instructor else directory) / f"{source.stem}.ipynb": text(
            convert(source, instructor=instructor)
        )
        for source in sorted((directory / "source").glob("*.py"))
        for instructor in (False, True)
    }


def _differs(path: Path, content: str) -> bool:
    return not path.is_file() or path.read_text(encoding="utf-8") != content


def main() -> int:
    """Write what is stale; with `--check` only say so (exit 1)."""
    check = "--check" in sys.argv[1:]
    changed = stale() if check else build()
    for path in changed:
        name = path.relative_to(folder()).as_posix()
        sys.stdout.write(f"{'stale' if check else 'written'}: {name}\n")
    return 1 if check and changed else 0


if __name__ == "__main__":
    raise SystemExit(main())
