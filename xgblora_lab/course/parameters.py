"""The parameters of a notebook: which it declares, and values of the declared types.

Papermill ignores a misspelt parameter and passes any value on; here both are refused with a sentence.
"""

from __future__ import annotations

import ast
import io
import tokenize
import typing
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from xgblora_lab.course.sources import read

PROFILES = ("ci", "laptop", "classroom")  # how much a notebook computes, its parameter `profile`


def parameters_of(path: str | Path) -> dict[str, dict[str, str]]:
    """List the parameters that a notebook declares in its cell tagged `parameters`.

    They are read from the syntax tree, since `papermill.inspect_notebook` does not see
    `seed: int | None = None`.

    Parameters
    ----------
    path : str or Path
        The `.ipynb` file.

    Returns
    -------
    dict
        In order: name -> {"type": the declared type or "", "default": its source text, "help": the comment
        behind it}.

    Raises
    ------
    FileNotFoundError, ValueError
        There is no such file, it is not a Python notebook, or its cell of parameters is not Python.
    """
    cells = read(path).cells
    cell = next((c for c in cells if "parameters" in c.metadata.get("tags", [])), None)
    tree, comments = _parsed(cell.source if cell else "", Path(path).name)
    found: dict[str, dict[str, str]] = {}
    for node in tree.body:
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


def _parsed(source: str, notebook: str) -> tuple[ast.Module, dict[int, str]]:
    """Return the syntax tree of the cell of parameters, its magics as calls, and its comments by line."""
    from IPython.core.inputtransformer2 import TransformerManager

    try:
        python = TransformerManager().transform_cell(source)
        tree = ast.parse(python)
        tokens = list(tokenize.generate_tokens(io.StringIO(python).readline))
    except (SyntaxError, ValueError, tokenize.TokenError) as error:
        what = f"The cell tagged `parameters` of {notebook} is not Python ({error})"
        raise ValueError(f"{what}; mend it, or take the tag off.") from None
    return tree, {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}


def check_parameters(path: str | Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Read parameters as values of the types that the notebook declares.

    Parameters
    ----------
    path : str or Path
        The `.ipynb` file.
    parameters : mapping
        Name -> value. Text, as from a command line, is read as the declared type: "9", "1e-3", "true",
        "none", "['a', 'b']". Any other value must have the type already; an `int` will do for a `float`.

    Returns
    -------
    dict
        Name -> value, for `papermill.execute_notebook`.

    Raises
    ------
    FileNotFoundError
        There is no such notebook.
    ValueError
        The notebook does not have a parameter (the sentence names those it has), a value is not of the
        declared type, or `profile` is none of `PROFILES`.
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


def _typed(parameter: str, value: Any, declared: Mapping[str, str], notebook: str) -> Any:
    """Return `value` as the declared type, or as the default's type; ValueError in one sentence."""
    from pydantic import PydanticUserError, TypeAdapter, ValidationError

    kind = declared["type"] or _type_of(declared["default"])
    if not kind:
        return value
    # a type that is neither built in nor of `typing` fits no value from outside
    with suppress(AttributeError, NameError, TypeError, PydanticUserError):
        adapter = TypeAdapter(eval(kind, vars(typing).copy()))
        for reading in _readings(value):
            with suppress(ValidationError):
                return adapter.validate_python(reading, strict=True)
        if isinstance(value, str):  # words of truth, infinity, and text itself
            with suppress(ValidationError):
                return adapter.validate_strings(value)
    raise ValueError(
        f"The parameter {parameter} of {notebook} is {kind.replace('|', 'or')}; {value!r} is not."
    )


def _type_of(default: str) -> str:
    """Name the type of a default's source text; empty where it is None or not a literal."""
    try:
        value = ast.literal_eval(default)
    except (ValueError, SyntaxError):
        return ""
    return "" if value is None else type(value).__name__


def _readings(value: Any) -> list[Any]:
    """List what a value may mean: itself, or for text the Python literal that it spells, unless a string."""
    if not isinstance(value, str):
        return [value]
    if value.lower() in ("none", "null"):
        return [None]
    with suppress(ValueError, SyntaxError):
        literal = ast.literal_eval(value)
        return [] if isinstance(literal, str) else [literal]
    return []
