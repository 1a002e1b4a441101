"""What every page of ours carries: plotly.js, packed, and a policy by which no other script runs.

plotly.js comes from the installed plotly, which has it whole: 4.7 MB, in a page 2.0 MB. A browser unpacks it
in a moment.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources

# a spectrum that falls, on the colour of a booster
_ICON = (
    "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'><rect width='16' height='16' rx='3' "
    "fill='#D55E00'/><path d='M3 13V3h2v10zM7 13V7h2v6zM11 13v-3h2v3z' fill='#fff'/></svg>"
)
ICON = "data:image/svg+xml;base64," + base64.b64encode(_ICON.encode()).decode()


@dataclass(frozen=True)
class Packed:
    """A script to carry in a page and to unpack there."""

    base64: str  # of its gzip
    hash: str  # of the script itself, for the policy


@cache
def plotly_js() -> Packed:
    """Return plotly.js."""
    from plotly.offline import get_plotlyjs

    script = get_plotlyjs().encode()
    return Packed(base64.b64encode(gzip.compress(script, mtime=0)).decode(), _hash(script))


def template(name: str) -> bytes:
    """Read a file of `templates`."""
    return (resources.files("xgblora_lab.report") / "templates" / name).read_bytes()


def script(*names: str) -> str:
    """Join scripts from `templates`, in order, `unpack.js` first."""
    return "\n".join(template(name).decode() for name in ("unpack.js", *names))


def policy(scripts: Iterable[str], packed: Packed | None = None) -> str:
    """Return a content-security policy: these inline scripts run, nothing else does, and nothing is fetched.

    Parameters
    ----------
    scripts : iterable of str
        The text between the tags, character by character.
    packed : Packed, optional
        A script that one of them unpacks.
    """
    hashes = [_hash(text.encode()) for text in scripts] + ([packed.hash] if packed else [])
    run = " ".join(f"'sha256-{found}'" for found in hashes) or "'none'"
    return (
        f"default-src 'none'; script-src {run}; style-src 'unsafe-inline'; img-src data: blob:; "
        "font-src data:; base-uri 'none'; form-action 'none'"
    )


def _hash(script: bytes) -> str:
    return base64.b64encode(hashlib.sha256(script).digest()).decode()
