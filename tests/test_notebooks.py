"""Every notebook of the repository runs with its CI parameters, offline, and is what its source says."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from xgblora_lab import notebooks
from xgblora_lab.parameters import parameters_of
from xgblora_lab.runner import run_notebook

HOME = Path(__file__).resolve().parent.parent / "notebooks"
MADE = sorted(HOME.glob("*.ipynb"))
by_name = pytest.mark.parametrize("path", MADE, ids=lambda path: path.stem)


def test_the_notebooks_are_current() -> None:
    wrong = [path.name for path in notebooks.stale(HOME)]
    assert not wrong, f"run `python -m xgblora_lab.notebooks`: {', '.join(wrong)}"


@by_name
def test_a_committed_notebook_is_small_and_has_no_outputs(path: Path) -> None:
    assert path.stat().st_size < 100_000
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in notebook.cells)


@by_name
def test_a_notebook_declares_typed_parameters_with_a_profile(path: Path) -> None:
    declared = parameters_of(path)
    assert declared["profile"]["type"] == "str"
    assert declared["profile"]["default"] == "'laptop'"
    assert all(p["type"] for p in declared.values())


@pytest.mark.notebook
@by_name
def test_a_notebook_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline_kernels: None
) -> None:
    monkeypatch.chdir(tmp_path)
    run_notebook(path, {"profile": "ci"}, output=tmp_path / path.name, timeout=120, progress=False)
    assert (tmp_path / path.name).stat().st_size < 2_000_000


SOURCE = "# %% [markdown]\n# # Title\n\n# %%\nx = 1\n\n# %%\nx = 1\n"


def test_building_depends_on_the_source_alone(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    source = tmp_path / "source" / "01_a.py"
    source.write_text(SOURCE)
    made = tmp_path / "01_a.ipynb"
    assert notebooks.stale(tmp_path) == [made]
    assert notebooks.build(tmp_path) == [made]
    first = made.read_bytes()
    assert notebooks.build(tmp_path) == []
    assert notebooks.stale(tmp_path) == []
    cells = nbformat.read(made, as_version=4).cells
    assert len({cell.id for cell in cells}) == 3

    source.write_text(SOURCE.replace("Title", "Other title"))
    assert notebooks.stale(tmp_path) == [made]
    notebooks.build(tmp_path)
    changed = nbformat.read(made, as_version=4).cells
    assert [a.id == b.id for a, b in zip(cells, changed, strict=True)] == [False, True, True]

    source.write_text(SOURCE)
    notebooks.build(tmp_path)
    assert made.read_bytes() == first


def test_a_notebook_without_a_source_is_stale_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    orphan = tmp_path / "09_orphan.ipynb"
    orphan.write_text("mine")
    assert notebooks.stale(tmp_path) == [orphan]
    assert notebooks.build(tmp_path) == []
    assert orphan.read_text() == "mine"


@pytest.mark.parametrize(
    "blocked", ["urllib.request.urlopen('http://192.0.2.1')", "socket.create_connection(('example.org', 80))"]
)
def test_kernels_of_this_suite_have_no_network(tmp_path: Path, offline_kernels: None, blocked: str) -> None:
    cell = f"import socket, urllib.request\ntry:\n    {blocked}\nexcept OSError as error:\n    print(error)"
    path = tmp_path / "n.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)]), path)
    result = run_notebook(path, progress=False)
    assert "no network in a test" in result.notebook.cells[0].outputs[0].text
