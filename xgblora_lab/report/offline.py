"""What every page of ours has: plotly.js, and a policy by which no other script runs.

plotly.js comes from the installed plotly, which has it whole: 4.7 MB. A page that stands alone carries it
packed, 2.0 MB, and the browser unpacks it in a moment; the pages of one site share a file.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from xgblora_lab.files import write_text

# a spectrum that falls, on the colour of a booster
_ICON = (
    "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'><rect width='16' height='16' rx='3' "
    "fill='#D55E00'/><path d='M3 13V3h2v10zM7 13V7h2v6zM11 13v-3h2v3z' fill='#fff'/></svg>"
)
_SHARED = "plotly.min.js"
ICON = "data:image/svg+xml;base64," + base64.b64encode(_ICON.encode()).decode()


@dataclass(frozen=True)
class Plotly:
    """How a page comes by plotly.js."""

    tag: str  # HTML for the end of its body
    source: str  # what its policy lets run


@cache
def packed() -> Plotly:
    """In the page itself, which then stands alone."""
    from plotly.offline import get_plotlyjs

    text = get_plotlyjs().encode()
    carried = base64.b64encode(gzip.compress(text, mtime=0)).decode()
    return Plotly(f'<script type="application/gzip" id="plotlyjs">{carried}</script>', _hash(text))


def beside(folder: Path) -> Plotly:
    """In a file that the pages of a folder share, which is written."""
    from plotly.offline import get_plotlyjs

    write_text(folder / _SHARED, get_plotlyjs())
    return Plotly(f'<script src="{_SHARED}"></script>', "'self'")


def template(name: str) -> bytes:
    """Read a file of `templates`."""
    return (resources.files("xgblora_lab.report") / "templates" / name).read_bytes()


def script(*names: str) -> str:
    """Join scripts from `templates`, in order, `unpack.js` first."""
    return "\n".join(template(name).decode() for name in ("unpack.js", *names))


def policy(scripts: Iterable[str], plotly: Plotly | None = None) -> str:
    """Return a content-security policy: these inline scripts run, nothing else does, and nothing is fetched.

    Parameters
    ----------
    scripts : iterable of str
        The text between the tags, character by character.
    plotly : Plotly, optional
        What they draw with.
    """
    allowed = [_hash(text.encode()) for text in scripts] + ([plotly.source] if plotly else [])
    run = " ".join(allowed) or "'none'"
    return (
        f"default-src 'none'; script-src {run}; style-src 'unsafe-inline'; img-src data: blob:; "
        "font-src data:; base-uri 'none'; form-action 'none'"
    )


def _hash(script: bytes) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'"
