"""Every notebook, student's and instructor's, is what its source says and runs as a class would run it."""

from __future__ import annotations

import copy
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest

from xgblora_lab.course import sources
from xgblora_lab.course.execute import Executed, run_notebook
from xgblora_lab.course.gallery import lesson
from xgblora_lab.course.parameters import parameters_of

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "notebooks"
STUDENTS = sorted(HOME.glob("*.ipynb"))
INSTRUCTORS = sorted(HOME.glob("instructor/*.ipynb"))


def by_name(*paths: Path) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "path", paths, ids=lambda path: path.relative_to(HOME).with_suffix("").as_posix()
    )


def cells(path: Path, tag: str) -> list[nbformat.NotebookNode]:
    found = nbformat.read(path, as_version=4).cells
    return [cell for cell in found if tag in cell.metadata.get("tags", [])]


def test_the_notebooks_are_current() -> None:
    wrong = [path.relative_to(HOME).as_posix() for path in sources.stale(HOME)]
    assert not wrong, f"run `python -m xgblora_lab.course.sources`: {', '.join(wrong)}"
    assert [path.name for path in STUDENTS] == [path.name for path in INSTRUCTORS]


@by_name(*STUDENTS, *INSTRUCTORS)
def test_a_committed_notebook_is_small_and_has_no_outputs(path: Path) -> None:
    assert path.stat().st_size < 100_000
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in notebook.cells)


@by_name(*STUDENTS)
def test_a_notebook_declares_parameters_with_types_and_help_and_a_profile(path: Path) -> None:
    declared = parameters_of(path)
    assert declared["profile"]["type"] == "str"
    assert declared["profile"]["default"] == "'laptop'"
    assert all(p["type"] and p["help"] for p in declared.values())


@by_name(*STUDENTS)
def test_a_notebook_says_what_it_asks_what_it_needs_and_what_to_take_away(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    about = lesson(notebook)
    assert about.title
    assert about.question.endswith("?")
    assert about.time
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for part in ("**You need.**", "be able to**", "## What to take away", "## References"):
        assert part in prose, part


@by_name(*STUDENTS)
def test_a_notebook_has_three_to_five_exercises_whose_solutions_are_the_instructors(path: Path) -> None:
    instructors = path.parent / "instructor" / path.name
    numbers = [re.findall(r'check\.\w+\(\s*"([\d.]+)"', cell.source) for cell in cells(path, "check")]
    assert path.name.startswith("00_") or 3 <= len(numbers) <= 5
    assert len({number for (number,) in numbers}) == len(numbers)
    prose = path.read_text(encoding="utf-8")
    assert all(f"### Exercise {number} · " in prose for (number,) in numbers)
    assert len(cells(path, "exercise")) == len(numbers)
    assert not cells(path, "solution")
    assert len(cells(instructors, "solution")) >= len(numbers)
    blank, solved = cells(path, "exercise"), cells(instructors, "exercise")
    assert all(
        "# solution" not in a.source and "# solution" in b.source for a, b in zip(blank, solved, strict=True)
    )
    assert [c.source for c in cells(path, "check")] == [c.source for c in cells(instructors, "check")]
    assert all(cell.metadata.jupyter.source_hidden for cell in cells(path, "check"))


@by_name(*STUDENTS, *INSTRUCTORS)
def test_no_cell_shows_more_than_twenty_lines_or_a_word_to_the_formatter(path: Path) -> None:
    seen = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    shown = [c.source for c in seen if not c.metadata.get("jupyter", {}).get("source_hidden")]
    long = [f"{s.count(chr(10)) + 1} lines: {s.splitlines()[0]}" for s in shown if s.count("\n") >= 20]
    assert not long, f"fold what teaches nothing, split the rest: {long}"
    assert not [c.source for c in seen if "# fmt:" in c.source]


@by_name(*STUDENTS)
def test_an_exercise_says_its_minutes_and_its_check_says_why(path: Path) -> None:
    prose = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown")
    headings = re.findall(r"^### Exercise .+$", prose, flags=re.MULTILINE)
    assert all(re.search(r" \(\d+ minutes, (easy|medium|hard)\)$", heading) for heading in headings)
    assert all("because=" in cell.source for cell in cells(path, "check"))
    assert re.search(r"\*\*Time\.\*\* About \d+ minutes: \d+ to read", prose)


def stumbles(run: Executed) -> list[str]:
    """What a reader would find on stderr, progress bars aside."""
    streams = [
        out for cell in run.notebook.cells for out in cell.get("outputs", []) if out.output_type == "stream"
    ]
    lines = [line for out in streams if out.name == "stderr" for line in re.split(r"[\r\n]", out.text)]
    progress = re.compile(r"\d+%\|.*\||\d+(it|B)? \[\d\d:\d\d")
    return [line for line in lines if line.strip() and not progress.search(line)]


def with_both(student: Path, instructors: Path) -> nbformat.NotebookNode:
    """The instructor's notebook with the student's blank exercise and its check before every solved one."""
    notebook = nbformat.read(instructors, as_version=4)
    blank = iter(cells(student, "exercise"))
    found: list[nbformat.NotebookNode] = []
    solved: list[nbformat.NotebookNode] | None = None  # an exercise's cells so far, to its check
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "exercise" in tags:
            solved = []
        if solved is None:
            found.append(cell)
            continue
        solved.append(cell)
        if "check" in tags:
            again = [next(blank), *copy.deepcopy(solved[1:])]
            for other in again:
                other.id = f"blank-{other.id}"
            found += [*again, *solved]
            solved = None
    notebook.cells = found
    return notebook


def and_again(notebook: nbformat.NotebookNode, student: Path) -> nbformat.NotebookNode:
    """The notebook with a student's behind it, for the same kernel, with the same parameters."""
    again = nbformat.read(student, as_version=4).cells
    for cell in again:
        cell.id = f"again-{cell.id}"
        if "parameters" in cell.metadata.get("tags", []):
            cell.metadata.tags.remove("parameters")
            cell.source += '\nprofile = "ci"'
    notebook.cells += again
    return notebook


AGAIN = ("00_", "10_")  # also run again in the same kernel: what every reader runs, and what writes files


@pytest.mark.notebook
@pytest.mark.timeout(600)
@by_name(*STUDENTS)
def test_a_notebook_runs_for_the_student_and_with_the_solutions(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline_kernels: None
) -> None:
    monkeypatch.chdir(tmp_path)
    both = with_both(path, path.parent / "instructor" / path.name)
    expected = len(cells(path, "check")) * ["unanswered", "right"]
    if path.name.startswith(AGAIN):
        both = and_again(both, path)
        expected += len(cells(path, "check")) * ["unanswered"]
    nbformat.write(both, tmp_path / path.name)
    out = tmp_path / "out.ipynb"
    run = run_notebook(tmp_path / path.name, {"profile": "ci"}, output=out, timeout=120, progress=False)
    assert stumbles(run) == []
    assert [verdict["status"] for verdict in run.checks] == expected
    checks = [cell for cell in run.notebook.cells if "check" in cell.metadata.get("tags", [])]
    for cell, status in zip(checks, expected, strict=True):
        if status == "unanswered":
            assert re.search(r"not answered yet\. .{10,}", cell.outputs[0].data["text/plain"])
    assert out.stat().st_size < 4_000_000
    if sys.platform == "linux":
        assert run.cpu_seconds is not None
        assert run.cpu_seconds < 90  # the processor's seconds: a busy machine does not fail this
        assert run.peak_bytes is not None
        assert 50e6 < run.peak_bytes < 2e9


def test_the_peak_is_the_kernels_own_and_outlives_what_was_freed(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("this system does not say how much memory a process held")
    mine = bytearray(600_000_000)  # of this process, and not of the kernels that it starts
    mine[::4096] = b"x" * len(mine[::4096])
    peaks = []
    for cell in ("1", "x = bytearray(300_000_000)\nx[::4096] = b'x' * len(x[::4096])\ndel x"):
        path = tmp_path / "n.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)]), path)
        peaks.append(run_notebook(path, progress=False).peak_bytes or 0)
    assert peaks[0] < 300e6 < peaks[1] < 600e6


def test_a_warning_is_found_and_a_progress_bar_is_not(tmp_path: Path, offline_kernels: None) -> None:
    path = tmp_path / "n.ipynb"
    for cell, found in (
        (
            "import tqdm\nfor _ in tqdm.tqdm(range(3), 'fit'): pass\nfor _ in tqdm.tqdm(iter('ab')): pass",
            False,
        ),
        ("import warnings\nwarnings.warn('look out')", True),
        ("import sys\nprint('some weights were not used', file=sys.stderr)", True),
    ):
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)]), path)
        assert bool(stumbles(run_notebook(path, progress=False))) == found


def test_a_notebook_that_runs_only_once_is_found(tmp_path: Path, offline_kernels: None) -> None:
    once = [nbformat.v4.new_code_cell("x = [1]"), nbformat.v4.new_code_cell("del once")]
    once.insert(
        0, nbformat.v4.new_code_cell("once = globals().get('once', True) and 1 / ('x' not in globals())")
    )
    path = tmp_path / "n.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=once), path)
    run_notebook(path, progress=False)
    nbformat.write(and_again(nbformat.read(path, as_version=4), path), tmp_path / "twice.ipynb")
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        run_notebook(tmp_path / "twice.ipynb", progress=False)


def test_what_is_quoted_from_the_races_stands_in_their_tables() -> None:
    quoted = (HOME / "source" / "11_take_a_decision.py").read_text(encoding="utf-8")
    tables = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^# \| (?:ten books|planted).+$", quoted, flags=re.MULTILINE)
    numbers = [number for row in rows for number in re.findall(r"[−+]?\d\.\d{3}", row)]
    assert len(rows) == 3
    assert len(numbers) == 15
    assert [number for number in numbers if number not in tables] == []


def test_the_list_of_words_is_where_the_others_say_it_is() -> None:
    words = ("booster", "round", "effective rank", "α", "probe", "nat")
    (table,) = [c.source for c in nbformat.read(STUDENTS[0], 4).cells if c.source.startswith("## 5 · Words")]
    assert all(f"**{word}**" in table for word in words)
    assert "`o_proj`" in table


ADDRESS = "https://github.com/xgblora/xgblora_lab"


@by_name(*STUDENTS, *INSTRUCTORS)
def test_badges_lead_to_this_notebook_at_the_one_address(path: Path) -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nRepository = "{ADDRESS}"\n' in pyproject
    tag = "v" + re.findall(r'^version = "(.+)"$', pyproject, flags=re.MULTILINE)[0]
    first, install = nbformat.read(path, as_version=4).cells[:2]
    where = path.relative_to(ROOT).as_posix()
    project = ADDRESS.removeprefix("https://github.com")
    assert f"(https://colab.research.google.com/github{project}/blob/{tag}/{where})" in first.source
    assert f"(https://mybinder.org/v2/gh{project}/{tag}?urlpath=lab/tree/{where})" in first.source
    assert ("Instructor's version" in first.source) == ("instructor" in where)
    assert ("Notebook 00 has a list" in first.source) != path.name.startswith("00_")
    assert f"git+{ADDRESS}@{tag}" in install.source
    source = HOME / "source" / f"{path.stem}.py"
    assert project not in source.read_text(encoding="utf-8")  # the build alone knows it


@pytest.mark.parametrize(("colab", "there"), [(True, False), (True, True), (False, False), (False, True)])
def test_the_first_code_cell_installs_on_colab_alone_and_once(
    colab: bool, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: calls.append((args, options)))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if there else None)
    if colab:
        monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    exec(sources.opening("notebooks/01_a.ipynb", instructor=False)[1].source, {})
    assert bool(calls) == (colab and not there)
    if calls:
        (command,), options = calls[0]
        assert command[:4] == [sys.executable, "-m", "pip", "install"]
        assert command[-1].startswith(f"xgblora-lab @ git+{ADDRESS}@v")
        assert "--upgrade" not in command  # what Colab has stays as it is
        assert options == {"check": True}


SOURCE = '''\
# %% [markdown]
# # Title

# %%
x = 1

# %%
x = 1

# %% tags=["exercise"]
def f(x):
    """Twice x."""
    # solution: return None  # your answer
    y = 2 * x
    return y
    # end


# solution: answer = None  # your answer: a number
answer = f(x)
# end

# %% tags=["check"]
check.number("1.1", answer, 2 * x)

# %% [markdown] tags=["solution"]
# Twice one is two.
'''


def folder(root: Path, source: str = SOURCE) -> tuple[Path, Path, Path]:
    """A source, and where the student's and the instructor's notebook made from it will lie."""
    (root / "source").mkdir(exist_ok=True)
    path = root / "source" / "01_a.py"
    path.write_text(source, encoding="utf-8")
    return path, root / "01_a.ipynb", root / "instructor" / "01_a.ipynb"


def test_building_depends_on_the_source_alone(tmp_path: Path) -> None:
    source, student, instructor = folder(tmp_path)
    assert sources.stale(tmp_path) == [student, instructor]
    assert sources.build(tmp_path) == [student, instructor]
    first = student.read_bytes(), instructor.read_bytes()
    assert sources.build(tmp_path) == []
    assert sources.stale(tmp_path) == []
    before = nbformat.read(student, as_version=4).cells
    assert len({cell.id for cell in before}) == len(before) == 7

    source.write_text(SOURCE.replace("Title", "Other title"), encoding="utf-8")
    assert sources.stale(tmp_path) == [student, instructor]
    sources.build(tmp_path)
    changed = nbformat.read(student, as_version=4).cells
    same = [a.id == b.id for a, b in zip(before, changed, strict=True)]
    assert same == [True, True, False, True, True, True, True]

    source.write_text(SOURCE.replace("y = 2 * x", "y = x + x"), encoding="utf-8")
    sources.build(tmp_path)
    assert student.read_bytes() == first[0]  # a solution is no business of the student's
    assert instructor.read_bytes() != first[1]

    source.write_text(SOURCE, encoding="utf-8")
    sources.build(tmp_path)
    assert (student.read_bytes(), instructor.read_bytes()) == first


def test_one_source_makes_the_students_and_the_instructors_notebook(tmp_path: Path) -> None:
    _, student, instructor = folder(tmp_path)
    sources.build(tmp_path)
    (blank,), (solved,) = cells(student, "exercise"), cells(instructor, "exercise")
    head = 'def f(x):\n    """Twice x."""\n    '
    assert blank.source == head + "return None  # your answer\n\n\nanswer = None  # your answer: a number"
    assert solved.source == head + "# solution\n    y = 2 * x\n    return y\n\n\n# solution\nanswer = f(x)"
    assert not cells(student, "solution")
    assert [cell.source for cell in cells(instructor, "solution")] == ["Twice one is two."]
    for path in (student, instructor):
        assert [cell.metadata.jupyter.source_hidden for cell in cells(path, "check")] == [True]
    namespace: dict[str, Any] = {"x": 1}
    exec(blank.source, namespace)
    assert namespace["answer"] is None
    exec(solved.source, namespace)
    assert namespace["answer"] == 2


def test_a_folded_cell_is_collapsed_and_the_formatter_is_not_spoken_to(tmp_path: Path) -> None:
    text = '# %% tags=["folded"]\nx = [1,\n     2]  # fmt: skip\n\n# %%\ny = 1  # fmt: of no account\n'
    _, student, instructor = folder(tmp_path, text)
    sources.build(tmp_path)
    for path in (student, instructor):
        hidden, shown = nbformat.read(path, as_version=4).cells[2:]
        assert hidden.source == "x = [1,\n     2]"
        assert hidden.metadata.jupyter.source_hidden
        assert shown.source == "y = 1  # fmt: of no account"
        assert "jupyter" not in shown.metadata


def test_the_head_says_how_long_it_takes_to_read_to_do_and_to_compute(tmp_path: Path) -> None:
    exercise = "# ### Exercise 1.1 · Add (7 minutes, easy)\n#\n# " + "word " * 351
    text = f"# %% [markdown]\n# **Time.** {{time}}.\n\n# %% [markdown]\n{exercise}\n\n"
    aside = '# %% tags=["folded"]\n' + "x = 1\n" * 900 + '\n# %% [markdown] tags=["solution"]\n# '
    _, student, instructor = folder(tmp_path, text + aside + "word " * 900 + "\n")
    sources.build(tmp_path)
    said = [nbformat.read(path, as_version=4).cells[2].source for path in (student, instructor)]
    assert said == ["**Time.** About 10 minutes: 2 to read, 7 for the exercises."] * 2
    (tmp_path / "source" / "seconds.json").write_text('{"01_a": 400}', encoding="utf-8")
    assert sources.build(tmp_path) == [student, instructor]
    head = nbformat.read(student, as_version=4).cells[2].source
    assert head == (
        "**Time.** About 20 minutes: 2 to read, 7 for the exercises, 7 for computing on a laptop."
    )


CELL = '# %% tags=["exercise"]\n'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("# %%\n# solution\nx = 1\n# end", "`# solution` stands alone; in a cell tagged `exercise`"),
        (CELL + "x = 1", "no line `# solution: …` with its `# end`"),
        (CELL + "# solution: x = None\nx = 1", "no line `# end`"),
        (CELL + "x = 1\n# end", "`# end` stands alone"),
        (CELL + "# solution\n# solution\nx = 1\n# end", "`# solution` stands alone"),
        (CELL + "# solution: x =\nx = 1\n# end", "what the student finds is not Python"),
        (CELL + "# solution\nx =\n# end", "what the instructor finds is not Python"),
        ('# %% tags=["check"]\nprint(1)', "is one call such as check.number"),
        ('# %% tags=["check"]\ncheck.number("1", 1, 1)\ncheck.number("2", 1, 1)', "is one call such as"),
    ],
)
def test_a_broken_exercise_is_refused_with_the_file_and_the_cell(tmp_path: Path, text: str, why: str) -> None:
    source, _, _ = folder(tmp_path, text + "\n")
    with pytest.raises(ValueError, match=rf"01_a\.py: The cell `.+{re.escape(why)}"):
        sources.convert(source, instructor="instructor finds" in why)
    with pytest.raises(ValueError, match=r"01_a\.py"):
        sources.build(tmp_path)
    assert not list(tmp_path.rglob("*.ipynb"))


@pytest.mark.parametrize("where", [".", "instructor"])
def test_a_notebook_without_a_source_is_stale_and_left_alone(tmp_path: Path, where: str) -> None:
    (tmp_path / "source").mkdir()
    orphan = tmp_path / where / "09_orphan.ipynb"
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_text("mine")
    assert sources.stale(tmp_path) == [orphan]
    assert sources.build(tmp_path) == []
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
