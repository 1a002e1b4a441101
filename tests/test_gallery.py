"""The gallery: pages whose plots show, an index of what each notebook asks, and no link into nothing."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

from xgblora_lab.course import sources
from xgblora_lab.course.execute import NotebookError
from xgblora_lab.course.gallery import broken_links, gallery
from xgblora_lab.course.lesson import Lesson, lesson
from xgblora_lab.course.site import Part

pytestmark = pytest.mark.usefixtures("offline_kernels")

HEAD = """\
# One & one

*What is one
and one?*

It is *not* three.

**Time.** About 5 minutes. **You need.** Fingers.
"""
PARAMETERS = 'profile: str = "laptop"  # how much'
FIGURE = "import plotly.graph_objects as go\ngo.Figure(go.Scatter(y=[1, 3, 2]))"


def write(path: Path, *markdown: str, code: str = "profile") -> Path:
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_markdown_cell(text) for text in markdown]
    parameters = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    notebook.cells += [parameters, nbformat.v4.new_code_cell(code)]
    nbformat.write(notebook, path)
    return path


def test_a_notebook_tells_its_title_question_and_time(tmp_path: Path) -> None:
    full = write(tmp_path / "a.ipynb", "[badge](https://example.org)", HEAD)
    assert lesson(sources.read(full)) == Lesson("One & one", "What is one and one?", "About 5 minutes")
    assert lesson(sources.read(write(tmp_path / "b.ipynb", "# Bare\n\n**Not** a *question*"))) == Lesson(
        "Bare", "", ""
    )
    assert lesson(sources.read(write(tmp_path / "c.ipynb", "no heading"))) == Lesson("", "", "")


def test_a_gallery_of_two_notebooks(tmp_path: Path) -> None:
    one = write(
        tmp_path / "01_one.ipynb", HEAD, "Go on with [the next](02_two.ipynb#What-is-left).", code=FIGURE
    )
    back = "Back to [the first](01_one.ipynb), or to [a lesson](00_start_here.ipynb) that is not here."
    two = write(tmp_path / "02_two.ipynb", "# Two\n\n## What is left", back)
    part = Part("play", "Play & learn", "It moves.", lambda out: write(out.with_suffix(".html"), "# Play"))
    index = gallery(tmp_path / "site", [one, two], profile="ci", progress=False, parts=[part])
    assert sorted(path.name for path in index.parent.iterdir()) == [
        "01_one.html",
        "02_two.html",
        "index.html",
        "play.html",
        "plotly.min.js",
    ]
    page = index.read_text(encoding="utf-8")
    assert (
        '<a href="01_one.html">One &amp; one</a></td><td>What is one and one?</td><td>About 5 minutes' in page
    )
    assert '<a href="play.html">Play &amp; learn</a></dt><dd>It moves.' in page
    assert page.index("01_one.html") < page.index("02_two.html")
    first = (index.parent / "01_one.html").read_text(encoding="utf-8")
    assert 'class="plot plotly-graph-div"' in first
    assert first.count('<script src="plotly.min.js">') == 1
    assert len(first) < 1_000_000  # one plotly.js for all pages
    assert 'href="02_two.html#What-is-left"' in first
    second = (index.parent / "02_two.html").read_text(encoding="utf-8")
    assert "<pre>'ci'</pre>" in second
    assert '<a href="01_one.html">the first</a>, or to a lesson that is not here.' in second


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[a](missing.png)", "01_one.html: there is no file missing.png"),
        ("![a](missing%20one.png)", "01_one.html: there is no file missing one.png"),
        ("[a](#No-such-part)", "01_one.html: 01_one.html has no part #No-such-part"),
        ("[a](03_three.ipynb)", "01_one.html: there is no file 03_three.ipynb"),
        ("[a](http://)", "01_one.html: http:// is no address"),
        ('<a href="https://exa mple.org">a</a>', "is no address"),
    ],
)
def test_a_broken_link_is_caught(tmp_path: Path, text: str, why: str) -> None:
    path = write(tmp_path / "01_one.ipynb", "# One", text)
    with pytest.raises(ValueError, match=f"Broken links in the gallery .+{why}"):
        gallery(tmp_path / "site", [path], profile="ci", progress=False)
    assert (tmp_path / "site" / "index.html").is_file()  # to be looked at


def test_links_that_lead_somewhere_are_not_broken(tmp_path: Path) -> None:
    (tmp_path / "a b.html").write_text('<h1 id="über">x</h1><a name="old"></a>', encoding="utf-8")
    links = [
        "a%20b.html",
        "a%20b.html#%C3%BCber",
        "a%20b.html#old",
        "#here",
        "#",
        "#top",
        "./",
        "mailto:a@b.c",
    ]
    links += [
        "https://example.org/x?y#z",
        "//example.org/a",
        "data:text/plain,x",
        "http://127.0.0.1:8888/lab",
    ]
    page = tmp_path / "page.html"
    page.write_text("<p id=here>" + "".join(f'<a href="{link}">x</a>' for link in links), encoding="utf-8")
    assert broken_links([page]) == []
    page.write_text(
        '<script>s = \'<a href="nowhere">\'</script><img src="nowhere.png"><a href="a%20b.html#new">'
    )
    assert broken_links([page]) == [
        "page.html: there is no file nowhere.png",
        "page.html: a b.html has no part #new",
    ]


def test_what_a_gallery_cannot_be_made_of(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    one, same = write(tmp_path / "01.ipynb", "# 1"), write(tmp_path / "other" / "01.ipynb", "# 1")
    with pytest.raises(ValueError, match="a name of its own"):
        gallery(tmp_path / "site", [one, same], progress=False)
    with pytest.raises(ValueError, match="choose one of ci"):
        gallery(tmp_path / "site", [one], profile="huge", progress=False)
    with pytest.raises(NotebookError, match=r"01.ipynb, cell `1 / 0`: ZeroDivisionError"):
        gallery(tmp_path / "site", [write(one, "# 1", code="1 / 0")], progress=False)
    assert not (tmp_path / "site").exists()


def test_the_gallery_takes_the_instructors_notebooks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sources, "folder", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no notebooks in .+instructor"):
        gallery(tmp_path / "site", progress=False)
    (tmp_path / "instructor").mkdir()
    write(tmp_path / "instructor" / "01_one.ipynb", "# Solved")
    write(tmp_path / "01_one.ipynb", "# Blank")
    assert ">Solved<" in gallery(tmp_path / "site", profile="ci", progress=False).read_text(encoding="utf-8")


def test_a_page_shows_where_a_bar_ended_a_sentence_for_a_widget_and_nothing_collapsed(tmp_path: Path) -> None:
    code = """\
import sys
import ipywidgets
from IPython.display import display
for i in range(3):
    print(f"\\rstep {i}", end="", file=sys.stderr, flush=True)
display(ipywidgets.IntSlider(description="rounds"))"""
    path = write(tmp_path / "01_one.ipynb", "# One", "## 1 · Plus, or *minus*?", code=code)
    notebook = nbformat.read(path, as_version=4)
    notebook.cells += [
        nbformat.v4.new_code_cell("'collapsed'.upper()", metadata={"jupyter": {"source_hidden": True}})
    ]
    nbformat.write(notebook, path)
    gallery(tmp_path / "site", [path], profile="ci", progress=False)
    page = (tmp_path / "site" / "01_one.html").read_text(encoding="utf-8").split("</style>")[-1]
    outputs = page[page.index("application/vnd.jupyter.stderr") :]
    assert "step 2" in outputs
    assert "step 1" not in outputs
    assert "An interactive piece stands here" in outputs
    assert "IntSlider" not in outputs
    assert "COLLAPSED" in page
    assert "collapsed" not in page


def test_binder_has_what_the_package_and_the_notebooks_need() -> None:
    root = Path(__file__).resolve().parent.parent
    project = (root / "pyproject.toml").read_text(encoding="utf-8")
    lists = re.findall(r"^(?:dependencies|lab) = \[\n(.*?)^\]", project, flags=re.MULTILINE | re.DOTALL)
    needed = {line.strip(' ",') for text in lists for line in text.splitlines()}
    conda = (root / "binder" / "environment.yml").read_text(encoding="utf-8").replace("pytorch-cpu", "torch")
    assert len(lists) == 2
    assert needed | {"pip", "python=3.12"} == set(
        re.findall(r"^  - (\S+[=\w.]*)$", conda, flags=re.MULTILINE)
    ) - {"conda-forge"}
