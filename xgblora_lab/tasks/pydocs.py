"""`pydocs`: real English from the running interpreter's own documentation, as rows for a text task.

Docstrings of the standard library are parsed out of its sources (nothing is imported or executed) and joined
with the language topics that `pydoc` shows. The rows depend on the Python version alone. Parsing takes
seconds, so what was found is kept in the user's cache folder.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import inspect
import json
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from xgblora_lab.files import replaced
from xgblora_lab.tasks.rows import Source
from xgblora_lab.tasks.tables import Table

# The label of a passage is the area of the module that it documents. A cheat would be to look for the
# module's own name; as whole modules lie in one split, the names met in train are not those of dev and test.
AREAS = {
    "concurrency": "asyncio concurrent multiprocessing sched selectors signal subprocess threading",
    "files": "_pyio bz2 chunk dbm filecmp fileinput genericpath glob gzip io linecache lzma ntpath "
    "nturl2path os pathlib posixpath pty shutil sqlite3 stat tarfile tempfile tty zipapp zipfile",
    "language": "__future__ abc ast code codeop copyreg dis importlib keyword opcode pkgutil runpy symtable "
    "token tokenize typing zipimport",  # and pydoc's topics
    "network": "cgi cgitb email ftplib html http imaplib ipaddress mailbox mailcap mimetypes netrc nntplib "
    "poplib smtpd smtplib socket socketserver ssl telnetlib urllib webbrowser wsgiref xmlrpc",
    "numbers": "_collections_abc _pydatetime _pydecimal _strptime bisect calendar collections colorsys "
    "datetime fractions graphlib heapq numbers operator queue random secrets statistics zoneinfo",
    "testing": "bdb cProfile cmd doctest inspect logging pdb profile pstats rlcompleter timeit trace "
    "traceback tracemalloc unittest warnings",
}
SHARES = {"dev": 0.15, "test": 0.15}  # of every area's rows, in whole modules; train has the rest
WORDS = (8, 40)  # of a passage
WORD = re.compile(r"[(\"'`]*[A-Za-z][a-z]*[-'a-z]*[)\"'`.,;:]*")
ROWS = 600  # train rows per area at most, so that no area rules


def read(kind: str = "classification") -> Source:
    """Read the splits for `load_task`.

    Parameters
    ----------
    kind : str, default "classification"
        "classification" gives the columns `text` (a passage of 8 to 40 words) and `label` (its area; none has
        more than 1.5 times the rows of another). "causal-lm" gives `text` (whole docstrings) of the same
        modules in the same splits.

    Returns
    -------
    Source
        Splits "train", "dev" and "test", the same in every process with this Python version.

    Raises
    ------
    FileNotFoundError
        Where the interpreter has no library sources.
    ValueError
        For another kind.
    """
    if kind not in ("classification", "causal-lm"):
        raise ValueError(f"pydocs is a task of kind 'classification' or 'causal-lm', not {kind!r}.")
    splits: dict[str, Table] = {}
    for split, documents in _documents().items():
        table: Table = {"text": [], "label": []}
        areas = {
            area: _passages(texts) if kind == "classification" else texts for area, texts in documents.items()
        }
        if kind == "classification":
            smallest = min(len(texts) for texts in areas.values())
            areas = {area: _fewest(texts, min(round(1.5 * smallest), ROWS)) for area, texts in areas.items()}
        rows = [(text, area) for area, texts in areas.items() for text in texts]
        # mixed, so that the first rows of a split, which a probe or a limit takes, are of all areas
        for text, area in sorted(rows, key=lambda row: _digest(row[0])):
            table["text"].append(text)
            table["label"].append(area)
        splits[split] = table if kind == "classification" else {"text": table["text"]}
    return Source(splits)


@functools.lru_cache(maxsize=1)
def _documents() -> dict[str, dict[str, list[str]]]:
    """What `_parsed` gives, from the user's cache where this Python and this file were there before."""
    library = Path(sysconfig.get_path("stdlib"))
    key = _digest("\n".join([sys.version, str(library), Path(__file__).read_text(encoding="utf-8")]))
    kept = Path(platformdirs.user_cache_dir("xgblora-lab")) / f"pydocs-{key[:16]}.json"
    with contextlib.suppress(OSError, ValueError):
        splits: dict[str, dict[str, list[str]]] = json.loads(kept.read_text(encoding="utf-8"))
        if isinstance(splits, dict) and splits.keys() == {"train", *SHARES}:
            return splits
    splits = _parsed()
    with contextlib.suppress(OSError), replaced(kept) as new:  # without a cache it is parsed again
        new.write_text(json.dumps(splits), encoding="utf-8")
    return splits


def _parsed() -> dict[str, dict[str, list[str]]]:
    """By split and area, docstrings; a module (a source file) or a topic lies in one split as a whole."""
    splits: dict[str, dict[str, list[str]]] = {split: {} for split in ("train", "dev", "test")}
    seen: set[str] = set()
    for area, names in AREAS.items():
        documents = {key: texts for name in sorted(names.split()) for key, texts in _modules(name)}
        if area == "language":
            documents |= {f"topic {name}": [text] for name, text in sorted(_topics().items())}
        documents = {key: list(_fresh(texts, seen)) for key, texts in documents.items()}
        sizes = {key: len(_passages(texts)) for key, texts in documents.items()}
        taken: set[str] = set()
        for split, share in SHARES.items():
            splits[split][area] = []
            room = share * sum(sizes.values())
            for key in sorted(set(documents) - taken, key=_digest):
                if 0 < sizes[key] <= room:
                    room -= sizes[key]
                    taken.add(key)
                    splits[split][area] += documents[key]
        splits["train"][area] = [
            text for key, texts in documents.items() if key not in taken for text in texts
        ]
    if not all(all(areas.values()) for areas in splits.values()):
        raise FileNotFoundError(
            f"Python's documentation is not here: {sysconfig.get_path('stdlib')} holds no library sources. "
            "Use a Python with its .py files, or give a data set of your own."
        )
    return splits


def _modules(name: str) -> Iterator[tuple[str, list[str]]]:
    """(path, docstrings) of a module, or of every module of a package, in the order of the sources."""
    library = Path(sysconfig.get_path("stdlib"))
    root = library / name
    for file in sorted(root.rglob("*.py")) if root.is_dir() else [root.with_suffix(".py")]:
        path = file.relative_to(library)
        if file.is_file() and not {"test", "tests"} & set(path.parts):
            yield path.as_posix(), list(_docstrings(ast.parse(file.read_bytes())))


def _docstrings(tree: ast.Module) -> Iterator[str]:
    pending: list[ast.AST] = [tree]
    while pending:  # definitions in definitions; expressions are not entered
        node = pending.pop(0)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text
        pending += [child for child in getattr(node, "body", []) if isinstance(child, ast.stmt)]


def _topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return {}
    # The topics are reStructuredText rendered as text, some with emphasis marks left in.
    return {
        name: inspect.cleandoc(text.replace("*", "").replace("‘", "'").replace("’", "'"))
        for name, text in topics.items()
    }


def _fresh(texts: Iterator[str] | list[str], seen: set[str]) -> Iterator[str]:
    """The texts without paragraphs that occurred before (docstrings are often copied between classes)."""
    for text in texts:
        kept = []
        for paragraph in text.split("\n\n"):
            key = " ".join(re.findall(r"[a-z]+", paragraph.lower()))
            if key and key not in seen:
                seen.add(key)
                kept.append(paragraph)
        if kept:
            yield "\n\n".join(kept)


def _passages(texts: list[str]) -> list[str]:
    """English prose in passages of 8 to 40 words.

    Paragraphs of a docstring that are no doctest, table or listing; neighbours are joined while they fit.
    """
    found = []
    for text in texts:
        passage: list[str] = []
        for paragraph in [*text.split("\n\n"), ""]:
            words = paragraph.split()
            plain = sum(bool(WORD.fullmatch(word)) for word in words)
            prose = bool(words) and plain >= 0.7 * len(words) and ">>>" not in paragraph
            if not prose or len(passage) + len(words) > WORDS[1]:
                if WORDS[0] <= len(passage) <= WORDS[1]:
                    found.append(" ".join(passage))
                passage = []
            if prose:
                passage += words
    return found


def _fewest(texts: list[str], count: int) -> list[str]:
    """`count` of the texts, chosen by their digest, in their order."""
    chosen = set(sorted(texts, key=_digest)[:count])
    return [text for text in texts if text in chosen]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
