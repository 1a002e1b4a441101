"""The gallery: every notebook executed to a page with visible plots, an index of them, and no broken link."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from xgblora_lab.course import sources
from xgblora_lab.course.execute import check_timeout, run_notebook
from xgblora_lab.course.lesson import lesson
from xgblora_lab.course.pages import to_html
from xgblora_lab.course.parameters import parameters_of
from xgblora_lab.course.site import Part
from xgblora_lab.files import write_text
from xgblora_lab.report.offline import ICON, beside, policy


def gallery(
    out: str | Path,
    paths: Iterable[str | Path] | None = None,
    *,
    profile: str = "laptop",
    timeout: float = 600,
    progress: bool = True,
    parts: Sequence[Part] = (),
) -> Path:
    """Execute notebooks, write a page for each and an index of them, and check every link.

    Parameters
    ----------
    out : str or Path
        The folder of the pages, made where it is missing. Pages of the same names are replaced. The pages
        share one copy of plotly.js beside them.
    paths : iterable of str or Path, optional
        The notebooks, each with a name of its own; default the instructor's, with the solutions.
    profile : str, default "laptop"
        How much those notebooks compute that declare a parameter `profile`.
    timeout : float, default 600
        Seconds that each cell may take.
    progress : bool, default True
        Show a bar over each notebook's cells.
    parts : sequence of Part
        What else stands on the site, each in a folder of its own.

    Returns
    -------
    Path
        The index, `out/index.html`.

    Raises
    ------
    FileNotFoundError
        A notebook is missing.
    FileExistsError
        `out` is a file.
    NotebookError
        A notebook does not run.
    ValueError
        Two notebooks have the same name, `profile` is not the name of a profile, or a link is broken. After a
        broken link, the pages are in `out` and can be looked at.
    """
    from jinja2 import Environment, PackageLoader

    out = Path(out)
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; a gallery needs a folder.")
    check_timeout(timeout)
    found = [Path(path) for path in paths] if paths is not None else sources.shipped(instructor=True)
    names = [path.stem for path in found]
    if len(set(names)) < len(names) or "index" in names:
        raise ValueError("Each notebook of a gallery needs a name of its own, and none may be called index.")
    lessons = [lesson(sources.read(path)) for path in found]
    plotly, rows = None, []
    for path, about in zip(found, lessons, strict=True):
        values = {"profile": profile} if "profile" in parameters_of(path) else {}
        page = out / f"{path.stem}.html"
        run = run_notebook(path, values, timeout=timeout, progress=progress)
        plotly = plotly or beside(out)
        write_text(page, _linked(to_html(run.notebook, about.title or path.stem, plotly), names))
        rows.append((page.name, about, run.seconds))
    made = [(part, part.make(out / part.name).relative_to(out).as_posix()) for part in parts]
    index = out / "index.html"
    templates = Environment(loader=PackageLoader("xgblora_lab.course"), autoescape=True)
    first = templates.get_template("gallery.html").render(rows=rows, parts=made, icon=ICON, policy=policy([]))
    write_text(index, first)
    pages = [index, *(out / f"{name}.html" for name in names), *(out / page for _, page in made)]
    if broken := broken_links(pages):
        raise ValueError(f"Broken links in the gallery {out}: {'; '.join(broken)}.")
    return index


def solved(name: str) -> Path:
    """Find a notebook as `sources.find` does; of ours, take the instructor's version."""
    path = sources.find(name)
    return path.parent / sources.INSTRUCTOR / path.name if path.parent == sources.folder() else path


def broken_links(pages: Iterable[str | Path]) -> list[str]:
    """List the links (`href` and `src`) of HTML files that lead nowhere, in one sentence each.

    A link to a file must find the file, and where it names a part of an HTML file, that part. Only the form
    of a network address is checked: nothing is fetched.
    """
    read: dict[Path, _Page] = {}

    def parsed(path: Path) -> _Page:
        if path not in read:
            read[path] = _Page()
            read[path].feed(path.read_text(encoding="utf-8"))
        return read[path]

    broken = []
    for page in map(Path, pages):
        for link in dict.fromkeys(parsed(page).links):
            try:
                parts = urlsplit(link)
            except ValueError:
                broken.append(f"{page.name}: {link} is no address")
                continue
            if parts.scheme or parts.netloc:
                if parts.scheme in ("", "http", "https") and not re.fullmatch(
                    r"[\w.-]+(:\d+)?", parts.netloc
                ):
                    broken.append(f"{page.name}: {link} is no address")
                continue
            target = page.parent / unquote(parts.path) if parts.path else page
            part = parts.fragment
            if not target.exists():
                broken.append(f"{page.name}: there is no file {unquote(parts.path)}")
            elif part and target.suffix == ".html" and not parsed(target).has(part):
                broken.append(f"{page.name}: {target.name} has no part #{unquote(part)}")
    return broken


@dataclass
class _Page(HTMLParser):
    """The links of an HTML file, and the parts of it that a link can name."""

    links: list[str] = field(default_factory=list)
    parts: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def has(self, part: str) -> bool:
        """Whether a browser finds the part: by its name as it is written, or decoded."""
        return not {part, unquote(part)}.isdisjoint(self.parts | {"top"})

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value and tag != "base":
                self.links.append(value)
            elif (name == "id" or (name == "name" and tag == "a")) and value:
                self.parts.add(value)


def _linked(page: str, names: list[str]) -> str:
    """The page with its links to the gallery's notebooks leading to their pages, and none to our others."""
    known = "|".join(map(re.escape, names))
    page = re.sub(rf'(<a [^>]*href="(?:\./)?(?:{known}))\.ipynb(?=["#])', r"\1.html", page)
    others = "|".join(re.escape(path.stem) for path in sources.shipped() if path.stem not in names)
    link = rf'<a [^>]*href="(?:\./)?(?:{others})\.ipynb["#][^>]*>(.*?)</a>'
    return re.sub(link, r"\1", page, flags=re.DOTALL) if others else page
