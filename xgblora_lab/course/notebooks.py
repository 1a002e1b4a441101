"""The notebooks: where they lie, and how the `.ipynb` files are made from their one source.

`notebooks/source/NN_name.py` (jupytext percent format) is what people edit and review; `python -m
xgblora_lab.course.notebooks` writes two from it, the student's `notebooks/NN_name.ipynb` and the instructor's
`notebooks/instructor/NN_name.ipynb`. The result depends on the source and on the address and version in
`pyproject.toml` alone: no outputs, cell ids from the cells' text, one kernelspec.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbformat import NotebookNode

_PACKAGE = Path(__file__).resolve().parents[1]
INSTRUCTOR = "instructor"  # the folder of the versions with solutions, beside the students'
_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def in_clone() -> bool:
    """Whether the package runs from a clone of the repository (rather than from an installed wheel)."""
    return (_PACKAGE.parent / "notebooks" / "source").is_dir()


def folder() -> Path:
    """The folder of the `.ipynb` files: the clone's own, or the copies inside an installed wheel."""
    return _PACKAGE.parent / "notebooks" if in_clone() else _PACKAGE / "_notebooks"


def shipped(*, instructor: bool = False) -> list[Path]:
    """The students' notebooks in order, or the instructor's; FileNotFoundError if there are none."""
    where = folder() / INSTRUCTOR if instructor else folder()
    found = sorted(where.glob("[0-9]*.ipynb"))
    if not found:
        raise FileNotFoundError(
            f"There are no notebooks in {where}: in a clone, run `python -m xgblora_lab.course.notebooks`; "
            "else install the package again."
        )
    return found


def find(name: str | Path) -> Path:
    """A notebook by path, or one of ours by any unambiguous part of its name (`1`, `01`, `one_matrix`)."""
    path = Path(name)
    if path.is_file():
        return path
    key = f"{int(str(name)):02d}_" if str(name).isdigit() else str(name)
    matches = [p for p in shipped() if (p.stem.startswith(key) if str(name).isdigit() else key in p.stem)]
    if len(matches) == 1:
        return matches[0]
    known = ", ".join(p.stem for p in matches or shipped())
    problem = (
        f"{name} fits several notebooks" if matches else f"{name} is neither a file nor one of our notebooks"
    )
    raise FileNotFoundError(f"{problem}: give a path or one of {known}.")


def working_copy(target: Path = Path("xgblora-notebooks")) -> Path:
    """A folder to work in: the clone's own, else `target` with the notebooks it lacks copied into it.

    A file that is there already is the reader's own work and is left alone.
    """
    if in_clone():
        return folder()
    target.mkdir(parents=True, exist_ok=True)
    for notebook in shipped():
        if not (target / notebook.name).exists():
            shutil.copyfile(notebook, target / notebook.name)
    return target


def read(path: str | Path) -> NotebookNode:
    """A Python notebook from its file; FileNotFoundError or ValueError where there is none."""
    import nbformat

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no notebook {path}.")
    try:
        notebook = nbformat.read(path, as_version=4)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(f"{path.name} is not a notebook: give a file that ends in .ipynb.") from None
    kernel = notebook.metadata.get("kernelspec", {})
    language = notebook.metadata.get("language_info", {}).get("name") or kernel.get("language") or "python"
    if language != "python":
        raise ValueError(f"{path.name} is written in {language}; only Python notebooks run here.")
    notebook.metadata["kernelspec"] = dict(_KERNEL)
    return notebook


def convert(source: Path, *, instructor: bool = False) -> NotebookNode:
    """The notebook that a percent-format source file stands for: the student's, or the instructor's.

    ValueError, naming the file and the cell, where an exercise does not follow the convention of `course`.
    """
    import jupytext

    from xgblora_lab.course import sources as course

    notebook = jupytext.read(source, fmt="py:percent")
    path = "/".join(("notebooks", *([INSTRUCTOR] if instructor else []), f"{source.stem}.ipynb"))
    try:
        cells = course.version(notebook.cells, instructor=instructor)
    except ValueError as error:
        raise ValueError(f"{source.name}: {error}") from None
    notebook.cells = course.opening(path, instructor=instructor) + cells
    seen: Counter[str] = Counter()
    for cell in notebook.cells:
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        seen[digest] += 1
        cell["id"] = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
    notebook.metadata = {"kernelspec": dict(_KERNEL), "language_info": {"name": "python"}}
    return notebook


def text(notebook: NotebookNode) -> str:
    """The bytes of the `.ipynb` file, as text."""
    import nbformat

    return str(nbformat.writes(notebook, version=4)) + "\n"


def stale(directory: Path | None = None) -> list[Path]:
    """The `.ipynb` files, of both kinds, that are missing, differ from their source, or have none."""
    directory = directory or folder()
    wanted = _wanted(directory)
    made = [*directory.glob("*.ipynb"), *directory.glob(f"{INSTRUCTOR}/*.ipynb")]
    wrong = [path for path in sorted(made) if path not in wanted]
    return wrong + [path for path, content in wanted.items() if _differs(path, content)]


def build(directory: Path | None = None) -> list[Path]:
    """Write every stale `.ipynb` from its source and return those; one without a source is left alone."""
    directory = directory or folder()
    if not (directory / "source").is_dir():
        raise FileNotFoundError(
            f"{directory} has no folder `source`: notebooks are built in a clone of the repository."
        )
    changed = {path: content for path, content in _wanted(directory).items() if _differs(path, content)}
    for path, content in changed.items():
        path.parent.mkdir(exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(content, encoding="utf-8")
        os.replace(partial, path)
    return list(changed)


def _wanted(directory: Path) -> dict[Path, str]:
    """The `.ipynb` files that there should be → what they should hold."""
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
