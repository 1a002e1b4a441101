"""The notebooks: where they lie, and how the `.ipynb` files are made from their one source.

`notebooks/source/NN_name.py` (jupytext percent format) is what people edit and review; `python -m
xgblora_lab.notebooks` writes `notebooks/NN_name.ipynb` from it. The result depends on the source alone: no
outputs, cell ids from the cells' text, one kernelspec.
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

_PACKAGE = Path(__file__).resolve().parent
_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def in_clone() -> bool:
    """Whether the package runs from a clone of the repository (rather than from an installed wheel)."""
    return (_PACKAGE.parent / "notebooks" / "source").is_dir()


def folder() -> Path:
    """The folder of the `.ipynb` files: the clone's own, or the copies inside an installed wheel."""
    return _PACKAGE.parent / "notebooks" if in_clone() else _PACKAGE / "_notebooks"


def shipped() -> list[Path]:
    """The notebooks in order; FileNotFoundError if there are none."""
    found = sorted(folder().glob("[0-9]*.ipynb"))
    if not found:
        raise FileNotFoundError(
            f"There are no notebooks in {folder()}: in a clone, run `python -m xgblora_lab.notebooks`; "
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


def convert(source: Path) -> NotebookNode:
    """The notebook that a percent-format source file stands for."""
    import jupytext

    notebook = jupytext.read(source, fmt="py:percent")
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
    """The `.ipynb` files that are missing, differ from their source, or have none."""
    directory = directory or folder()
    sources = {source.stem: source for source in sorted((directory / "source").glob("*.py"))}
    made = {path.stem: path for path in directory.glob("*.ipynb")}
    wrong = [path for stem, path in sorted(made.items()) if stem not in sources]
    for stem, source in sources.items():
        path = directory / f"{stem}.ipynb"
        if not path.is_file() or path.read_text(encoding="utf-8") != text(convert(source)):
            wrong.append(path)
    return wrong


def build(directory: Path | None = None) -> list[Path]:
    """Write every stale `.ipynb` from its source and return those; one without a source is left alone."""
    directory = directory or folder()
    if not (directory / "source").is_dir():
        raise FileNotFoundError(
            f"{directory} has no folder `source`: notebooks are built in a clone of the repository."
        )
    written = []
    for path in stale(directory):
        source = directory / "source" / f"{path.stem}.py"
        if source.is_file():
            partial = path.with_name(path.name + ".partial")
            partial.write_text(text(convert(source)), encoding="utf-8")
            os.replace(partial, path)
            written.append(path)
    return written


def main() -> int:
    """`python -m xgblora_lab.notebooks` writes what is stale; with `--check` it only says so (exit 1)."""
    check = "--check" in sys.argv[1:]
    changed = stale() if check else build()
    for path in changed:
        sys.stdout.write(f"{'stale' if check else 'written'}: {path.name}\n")
    return 1 if check and changed else 0


if __name__ == "__main__":
    raise SystemExit(main())
