"""How every notebook begins: the badges that open it elsewhere, and the cell that installs it on Colab."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

if TYPE_CHECKING:
    from nbformat import NotebookNode

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
    project: dict[str, Any] = tomllib.loads(
        (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    )["project"]
    return project["urls"]["Repository"].rstrip("/"), f"v{project['version']}"


def opening(path: str, *, instructor: bool) -> list[NotebookNode]:
    """Return the first two cells of the notebook at `path` in the repository: badges, and Colab's install."""
    from nbformat.v4 import new_code_cell, new_markdown_cell

    address, tag = _release()
    project = urlparse(address).path
    colab = f"{_COLAB}/github{project}/blob/{tag}/{path}"
    binder = f"https://mybinder.org/v2/gh{project}/{tag}?urlpath=lab/tree/{path}"
    badges = (
        f"[![Open in Colab]({_COLAB}/assets/colab-badge.svg)]({colab})\n"
        f"[![Open in Binder](https://mybinder.org/badge_logo.svg)]({binder})"
    )
    if not Path(path).name.startswith("00_"):
        badges += "\n\nA word that you do not know? Notebook 00 has a list, in section 5."
    if instructor:
        badges += "\n\n**Instructor's version**, with the solutions."
    install = new_code_cell(_INSTALL.format(address=address, tag=tag))
    install.metadata["jupyter"] = {"source_hidden": True}
    return [new_markdown_cell(badges), install]
