"""The parameters of a notebook: which it declares, and values of the declared types.

Papermill ignores a misspelt parameter and passes any value on; here both are refused with a sentence.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from xgblora_lab.course.notebooks import read

PROFILES = ("ci", "laptop", "classroom")  # how much a notebook computes, its parameter `profile`


def parameters_of(path: str | Path) -> dict[str, dict[str, str]]:
    """The parameters a notebook declares in its cell tagged `parameters`, in order.

    name -> {"type": declared type or "", "default": source text, "help": the comment behind it}. Read from
    the syntax tree, since `papermill.inspect_notebook` does not see `seed: int | None = None`.
    """
    cells = read(path).cells
    cell = next((c for c in cells if "parameters" in c.metadata.get("tags", [])), None)
    source = cell.source if cell else ""
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign):
            targets: list[ast.expr] = [node.target]
            kind = ast.unparse(node.annotation)
        elif isinstance(node, ast.Assign):
            targets, kind = list(node.targets), ""
        else:
            continue
        default = ast.unparse(node.value) if node.value else ""
        comment = comments.get(node.end_lineno or 0, "")
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        found |= {name: {"type": kind, "default": default, "help": comment} for name in names}
    return found


def check_parameters(path: str | Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """`parameters` as values of the types the notebook declares; text, as from a command line, is read so.

    Raises ValueError, naming the known parameters, for one that the notebook does not have, and for a value
    that is not of its type.
    """
    declared = parameters_of(path)
    name = Path(path).name
    if unknown := [p for p in parameters if p not in declared]:
        known = ", ".join(f"{p} ({d['type'] or 'any'}, default {d['default']})" for p, d in declared.items())
        has = f"it has {known}" if known else "it has none (no cell tagged `parameters`)"
        raise ValueError(f"{name} has no parameter {', '.join(unknown)}; {has}.")
    values = {p: _typed(p, v, declared[p], name) for p, v in parameters.items()}
    if "profile" in values and values["profile"] not in PROFILES:
        raise ValueError(
            f"{values['profile']!r} is no profile of {name}; choose one of {', '.join(PROFILES)}."
        )
    return values


def _typed(parameter: str, value: Any, declared: Mapping[str, Any], notebook: str) -> Any:
    """`value` as the declared type (or the default's type); ValueError in one sentence."""
    kinds = [
        k.strip().split("[")[0]
        for k in declared["type"].replace("Optional[", "None|").split("|")
        if k.strip()
    ]
    if not kinds:
        try:
            default = ast.literal_eval(declared["default"])
        except (ValueError, SyntaxError):
            return value
        if default is None:
            return value
        kinds = [type(default).__name__]
    readers: dict[str, Callable[[str], Any]] = {
        "int": int,
        "float": float,
        "bool": _boolean,
        "str": str,
        "None": _none,
    }
    # str comes last: every text is a str
    for kind in sorted(kinds, key=lambda k: (k == "str", k != "None")):
        if isinstance(value, str) and kind != "str":
            reader = readers.get(kind, ast.literal_eval)
            try:
                read = reader(value)
            except (ValueError, SyntaxError):
                continue
            if kind in readers or type(read).__name__ == kind:
                return read
        elif type(value).__name__ == kind or (value is None and kind == "None"):
            return value
        elif kind == "float" and type(value) is int:
            return float(value)
    raise ValueError(f"The parameter {parameter} of {notebook} is {' or '.join(kinds)}; {value!r} is not.")


def _boolean(value: str) -> bool:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if value.lower() not in words:
        raise ValueError
    return words[value.lower()]


def _none(value: str) -> None:
    if value.lower() not in ("none", "null"):
        raise ValueError
