"""The API reference: a page for every public part of the library, from its docstrings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xgblora_lab.report.offline import ICON

# The face of the library, and what notebooks and CONTRIBUTING send a reader to besides.
MODULES = (
    "xgblora_lab",
    "xgblora_lab.methods",
    "xgblora_lab.report",
    "xgblora_lab.lowrank.spectra",
    "xgblora_lab.course.check",
)


def reference(out: str | Path, modules: Sequence[str] = MODULES) -> Path:
    """Write the reference as static pages, with a search that needs no server and no network.

    Parameters
    ----------
    out : str or Path
        The folder of the pages, made where it is missing.
    modules : sequence of str
        What is documented, as pdoc takes it; default the public names of the library.

    Returns
    -------
    Path
        The first page, `out/index.html`.

    Raises
    ------
    ImportError
        pdoc is not installed.
    """
    try:
        import pdoc.render
    except ImportError as error:
        raise ImportError("The API reference needs pdoc: pip install 'xgblora-lab[lab]'.") from error
    templates = Path(__file__).parent / "templates" / "reference"
    pdoc.render.configure(
        docformat="numpy", show_source=False, favicon=ICON, template_directory=templates, search=True
    )
    pdoc.pdoc(*modules, output_directory=Path(out))
    return Path(out) / "index.html"
