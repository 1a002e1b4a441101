"""The hostile inputs of `hostile`, by what they attack: some written down, some grown by hypothesis."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import json
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tiny
from faults.hostile import Input, command, given, link
from hypothesis import HealthCheck, Phase, settings
from hypothesis import given as drawn
from hypothesis import seed as drawn_from
from hypothesis import strategies as st

from xgblora_lab.methods import METHODS, make_method
from xgblora_lab.tasks.models import load, load_model
from xgblora_lab.tasks.text import load_task

LONG = "x" * 300
ROWS = "text,label\n" + "".join(f"sentence {i},{i % 2}\n" for i in range(20))
SMALL = ["--methods", "lora:r=1", "--trials", "1", "--seeds", "1", "--steps", "1", "--batch-size", "2"]
SMALL += ["--limit", "4", "--workers", "1", "--max-length", "16", "--out", "out"]


@functools.cache
def tokenizer() -> Any:
    return tiny.tiny_tokenizer()


@functools.cache
def model_folder() -> Path:
    """A tiny model on disk, which no input may change."""
    import atexit

    folder = Path(tempfile.mkdtemp(prefix="hostile-model-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return tiny.save_tiny(tiny.tiny_llama(), folder / "model")


def race(*arguments: str, data: str | None = None) -> None:
    if data is None:
        data = str(given("rows.csv", ROWS))
    command("race", "--model", str(model_folder()), "--data", data, *SMALL, *arguments)


def inputs(*makers: str) -> list[Input]:
    """All of them, or those that some of the functions below make; always the same."""
    every = (numbers, words, options, contents, names, cells, memory, grown, models, arguments, saved)
    return [case for make in every if make.__name__ in makers or not makers for case in make()]


# ---------------------------------------------------------------- the command line


def numbers() -> Iterator[Input]:
    flags = ("trials", "seeds", "steps", "steps-per-round", "warmup", "batch-size", "limit", "max-length")
    values = ("abc", "", "-1", "0", "1e3", "nan", "inf", "1.5", "0x10", "9" * 21, "9" * 400)
    for flag, value in itertools.product((*flags, "workers"), values):
        if (flag, value) != ("warmup", "0"):
            yield Input(
                "command line", f"race --{flag}={value[:25]}", lambda f=flag, v=value: race(f"--{f}={v}")
            )


def words() -> Iterator[Input]:
    refused = {
        "lrs": ("", ",", "abc", "-1", "0", "nan", "inf", "1e-3,,1e-2", "1e-3;1e-2", "1e999"),
        "methods": (
            *("", ",", "nope", "lora,lora", "lora:", "lora:r", "lora:=1", "lora:r=1:r=2", "lora:r=1:rank=1"),
            *("lora:r=true", "lora:r=1000000000", "xgblora:modules=inf", "lora:betas=0.9", "lora:r=1e3"),
            *(
                "lora:alpha=true",
                "xgblora:alpha=0",
                "lora:max_grad_norm=-1",
                "LORA",
                "lora r=8",
                "lora:r=" + LONG,
            ),
        ),
        "targets": ("", ",", "nowhere", "[", "../x", "lm_head.weight"),
        "kind": ("", "poetry", "regression"[:5], "prompt-answer", LONG),
        "schedule": ("", "wild", "LINEAR"),
        "precision": ("", "fp4", "yes"),
        "metric": ("bleu", "mse", LONG),
        "text": ("nothing", "labels", LONG),
        "label": ("nothing", "Text", LONG),
        "text-b": ("nothing",),
        "spectrum": ("1/i", "flat"),  # of a file, which has none
        "model": (
            *(".", "/", "nope", "a/b", "a/b/c", "~nobody", LONG, "x" * 5000, "/dev/null", "/dev/zero", "*"),
            *(
                "$HOME",
                "http://localhost/model",
                "a b",
                "ü",
                "-",
                "lab/",
                "a\nb",
                "rows.csv",
                "model.safetensors",
            ),
        ),
        "data": (
            *(
                "nope",
                "a/b",
                "a/b/c",
                "~nobody",
                LONG,
                "x" * 5000,
                "/dev/null",
                "/dev/zero",
                "*",
                "csv",
                "json",
            ),
            *(
                "parquet",
                "text",
                "pandas",
                "imagefolder",
                "http://localhost/a.csv",
                "a b",
                "a\nb",
                "..",
                "s3://a/b",
            ),
            *("a::b.csv", "file://rows.csv", "x.csv", "pickle", "rows"),
        ),
        "out": ("/dev/null", "/dev/null/race", "rows.csv", "rows.csv/race", "y" * 300),
    }
    for flag, values in refused.items():
        for value in values:
            made = lambda f=flag, v=value: race(f"--{f}={v}")  # noqa: E731
            yield Input("command line", f"race --{flag}={value[:40]!r}", made)
    planted = ("--metric=loss", "--kind=poetry", "--text=text", "--spectrum=wild", "--max-length=8")
    for argument in planted:
        yield Input("command line", f"planted {argument}", lambda a=argument: race(a, data="planted"))
    for value in ("null", "[]", '"x"', "{}", "{", "", "\0", "[1]", '{"model": 1}'):
        yield Input("command line", f"race into settings {value!r}", lambda v=value: _into(v))
    calls = (
        *((), ("nope",), ("race", "more"), ("race", "--nope"), ("--nope",), ("race", "--steps"), ("report",)),
        *(
            ("report", "nope"),
            ("report", LONG),
            ("report", "/dev/null"),
            ("report", "."),
            ("run",),
            ("run", "nope"),
        ),
        *(
            ("run", LONG),
            ("run", "x" * 5000),
            ("open", "nope"),
            ("run", "1", "-p", "="),
            ("run", "1", "-p", "a"),
        ),
        *(("run", "1", "-p", "1=2"), ("run", "1", "--timeout", "abc"), ("open", "--port", "abc")),
        *(("gallery", "--profile", "x"), ("run", "1", "--profile", "x"), ("report", ".", "--format", "gif")),
    )
    for call in calls:
        if call:  # alone it prints its help
            yield Input("command line", " ".join(part[:20] for part in call), lambda c=call: command(*c))
    yield Input("command line", "a race as it should be", lambda: race(), accepted=True)


def _into(settings_: str) -> None:
    given("out/settings.json", settings_)
    race()


# ---------------------------------------------------------------- options of methods


def options() -> Iterator[Input]:
    seen = set()
    for name, method in METHODS.items():
        for field in dataclasses.fields(method):
            owner = next(c for c in method.mro() if field.name in inspect.get_annotations(c))
            if (owner, field.name) in seen:
                continue
            seen.add((owner, field.name))
            values = ["nan", "inf", "-inf", "-1e-9", "1e999", "9" * 30, "[]", "1_0", "0x1", LONG, ""]
            if field.type != "bool":
                values += ["true", "False"]
            if "None" not in str(field.type):
                values.append("none")
            if "int" in str(field.type):
                values += ["1.0", "1e3", "-1"]
            for value in values:
                made = lambda n=name, f=field.name, v=value: make_method(f"{n}:{f}={v}")  # noqa: E731
                loose = value in ("1_0", "9" * 30)
                yield Input("options", f"{name}:{field.name}={value[:20]}", made, None if loose else False)
            twice = lambda n=name, f=field.name: make_method(f"{n}:{f}=1:{f}=1")  # noqa: E731
            yield Input("options", f"{name}:{field.name} twice", twice)


# ---------------------------------------------------------------- data files

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt")
CONTENTS: dict[str, bytes] = {
    "nothing": b"",
    "spaces": b"   \n \n",
    "null": b"null",
    "null and rows": b'null\n{"text": "a", "label": 1}\n',
    "a list of null": b"[null]",
    "an empty list": b"[]",
    "an empty object": b"{}",
    "a word": b'"x"',
    "a number": b"1",
    "true": b"true",
    "NaN": b"NaN",
    "a list of numbers": b"[1, 2]",
    "a list of lists": b"[[1], [2]]",
    "one object": b'{"text": "a", "label": 1}',
    "columns of two lengths": b'{"text": ["a", "b"], "label": [1]}',
    "a key twice": b'[{"text": "a", "text": "b"}]',
    "cut": b'[{"text": "a", "label": 1}, {"te',
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 50_000,
    "a long number": b"9" * 5000,
    "a zero byte": b"text,label\na\0b,1\n",
    "UTF-16": "text,label\na,1\n".encode("utf-16"),
    "Latin-1": "text,label\nä,1\n".encode("latin-1"),
    "a ZIP": b"PK\x03\x04" + bytes(200),
    "a gzip": b"\x1f\x8b\x08" + bytes(200),
    "Parquet's letters": b"PAR1" + bytes(200) + b"PAR1",
    "a pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.",
    "an open quote": b'text,label\n"a,1\n',
    "more cells than names": b"text,label\na,1,2\n",
    "two equal names": b"text,text,label\na,b,1\nc,d,0\n",
    "two equal names by tab": b"text\ttext\tlabel\na\tb\t1\n",
    "a header": b"text,label\n",
    "a page": b"<html><body>404</body></html>",
    "a bell": b"\x07" * 50,
    "infinite labels": b"text,label\n" + b"a,inf\nb,-inf\nc,1.5\n" * 10,
    "lines of infinite labels": b'{"text": "a", "label": Infinity}\n{"text": "b", "label": 0.5}\n' * 10,
    "nested text": b'{"text": {"a": 1}, "label": 1}\n{"text": [1], "label": 0}\n' * 10,
    "nested labels": b'{"text": "a", "label": [1]}\n{"text": "b", "label": {"c": 2}}\n' * 10,
}


def contents() -> Iterator[Input]:
    for suffix, (name, content) in itertools.product(SUFFIXES, CONTENTS.items()):
        text = suffix == ".txt"  # whatever is text is a text
        made = lambda s=suffix, c=content: load_task(given("rows" + s, c), tokenizer())  # noqa: E731
        yield Input("data", f"{suffix} with {name}", made, None if text else False)


FORMS: dict[str, Callable[[list[tuple[str, str]]], str]] = {
    ".csv": lambda rows: (
        "text,label\n" + "".join(f'"{a.replace(chr(34), chr(34) * 2)}",{b}\n' for a, b in rows)
    ),
    ".tsv": lambda rows: "text\tlabel\n" + "".join(f"{a}\t{b}\n" for a, b in rows),
    ".jsonl": lambda rows: "".join(json.dumps({"text": a, "label": b}) + "\n" for a, b in rows),
    ".json": lambda rows: json.dumps([{"text": a, "label": b} for a, b in rows]),
}


def read_back(name: str, text: str) -> None:
    """A file of this name and text gives this text, and not that of a file that the name would fit."""
    suffix = Path(name).suffix.lower()
    rows = [(text, "ab"[i % 2]) for i in range(20)]
    for other in ("p1", "HOME", "a", "b", "x"):
        if not Path(other + suffix).exists():
            given(other + suffix, FORMS[suffix]([("other", b) for _, b in rows]))
    path = given(name, FORMS[suffix](rows))
    task = load_task(path, tokenizer())
    expected = tokenizer()(text).input_ids[:128]
    if any(example.ids != expected for split in task.splits.values() for example in split):
        found = tokenizer().decode(task.splits["train"][0].ids)
        raise AssertionError(f"{text!r} was read as {found!r}")


def names() -> Iterator[Input]:
    stems = (
        "p[1]",
        "*",
        "?",
        "[ab]",
        "{a,b}",
        "$HOME",
        "${HOME}",
        "a::b",
        "zip:::a",
        "~x",
        "%41",
        "a b",
        "ü",
    )
    stems += (
        "-x",
        "file:x",
        "s3:x",
        "'q'",
        '"q"',
        "!x",
        "#x",
        "a\nb",
        "a\\b",
        "*.csv",
        "**",
        "@x",
        "&",
        ";ls",
        "x.gz",
    )
    for stem, suffix in itertools.product(stems, FORMS):
        made = lambda n=stem + suffix: read_back(n, "mine")  # noqa: E731
        yield Input("data", f"the name {stem + suffix!r}", made, accepted=True)
    yield Input("data", "a link to itself", lambda: (link("loop.csv", "loop.csv"), load_task("loop.csv"))[1])
    yield Input("data", "a link to nothing", lambda: (link("gone.csv", "nothing"), load_task("gone.csv"))[1])
    yield Input("data", "a folder called train.csv", lambda: (given("d/train.csv/x"), load_task("d"))[1])
    yield Input(
        "data", "two train files", lambda: [given("d/train.csv"), given("d/train.tsv"), load_task("d")]
    )
    yield Input("data", "a pipe", lambda: _pipe())


def _pipe() -> None:
    os.mkfifo("rows.csv")
    try:
        load_task("rows.csv", tokenizer())
    finally:
        os.unlink("rows.csv")


def cells() -> Iterator[Input]:
    texts = (
        "007",
        "1e5",
        "1_000",
        "+5",
        "0x10",
        "1.50",
        "-0",
        "٣",
        "inf",
        "NaN",
        "nan",
        "NA",
        "None",
        "null",
        "N/A",
    )
    texts += (
        "TRUE",
        "1.0",
        "1e400",
        "123456789012345678901234567890",
        "=1+1",
        "2020-01-01",
        "#N/A",
        "1,5",
        "0",
    )
    texts += (
        "-1",
        "1e-05",
        "a, b",
        "é",
        "\u202e",
        "😀",
        "12:30",
        "1.",
        ".5",
        "Infinity",
        "00",
        "1e16",
        "0.1",
        "5",
    )
    for text, suffix in itertools.product(texts, FORMS):
        made = lambda t=text, s=suffix: read_back("rows" + s, t)  # noqa: E731
        yield Input("data", f"the text {text!r} in {suffix}", made, accepted=True)


def memory() -> Iterator[Input]:
    two = {"text": ["a b", "b c"], "label": [0, 1]}
    wrong: tuple[Any, ...] = ({}, {"dev": two}, {"train": None}, {"train": []}, {"train": {}}, {"train": "x"})
    wrong += (
        {"train": {"text": []}},
        {"train": {"text": "ab", "label": [0, 1]}},
        {1: two},
        {"train": two, "x": two},
    )
    wrong += (
        {"train": {"text": ["a"], "label": [0, 1]}},
        {"train": two, "dev": {"text": ["a"]}},
        {"train": 5},
    )
    wrong += (
        {"train": {"text": [None, "b"], "label": [0, 1]}},
        {"train": {"text": [{}, "b"], "label": [0, 1]}},
    )
    wrong += (
        {"train": {"text": ["a", "b"], "label": [[], 1]}},
        {"train": {"text": [b"a", "b"], "label": [0, 1]}},
    )
    wrong += ({"train": {"text": ["a", "b"], "label": [float("inf"), 0.5]}},)
    for data in wrong:
        yield Input("data", f"in memory {str(data)[:60]}", lambda d=data: load_task(d, tokenizer()))
    half = {"train": {"text": ["a\ud800", "b c"], "label": [0, 1]}}
    yield Input("data", "half a character", lambda: load_task(half, tokenizer()), accepted=True)


# ---------------------------------------------------------------- grown by hypothesis


def grow(strategy: st.SearchStrategy[Any], count: int) -> list[Any]:
    """`count` values of a strategy, the same every time."""
    found: list[Any] = []

    @drawn_from(12)
    @settings(
        max_examples=count, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @drawn(strategy)
    def keep(value: Any) -> None:
        found.append(value)

    keep()
    return found


def grown() -> Iterator[Input]:
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    values = st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    )
    row = st.fixed_dictionaries({"text": values, "label": values})
    for (i, content), suffix in itertools.product(enumerate(grow(st.binary(max_size=60), 30)), SUFFIXES):
        made = lambda s=suffix, c=content: load_task(given("rows" + s, c), tokenizer())  # noqa: E731
        yield Input("grown", f"bytes {i} as {suffix}", made, None)
    for i, value in enumerate(grow(values, 50)):
        made = lambda v=value: load_task(given("rows.json", json.dumps(v)), tokenizer())  # noqa: E731
        yield Input("grown", f"a JSON value {i}", made, None)
    every = grow(row, 60)
    for i in range(0, len(every) - 10, 2):  # ten rows each, in windows that overlap
        some = json.dumps(every[i : i + 10])
        yield Input("grown", f"rows {i}", lambda v=some: load_task(given("rows.json", v), tokenizer()), None)
    letters = st.text(st.characters(codec="utf-8", exclude_characters="\t\r\n\0"), min_size=1, max_size=12)
    plain = letters.filter(lambda text: text.strip() and "\x85" not in text and text[0] != "\ufeff")
    for i, text in enumerate(grow(plain, 40)):
        suffix = list(FORMS)[i % len(FORMS)]
        made = lambda t=text, s=suffix: read_back("rows" + s, t)  # noqa: E731
        yield Input("grown", f"text {i} {text!r} in {suffix}", made, accepted=True)
    for i, spec in enumerate(
        grow(st.from_regex(r"(lora|full)(:[a-z_]{0,5}=?[-0-9a-z.]{0,5}){0,3}", fullmatch=True), 40)
    ):
        yield Input("grown", f"the method {spec!r} ({i})", lambda s=spec: make_method(s), None)


# ---------------------------------------------------------------- models


def copied(name: str = "model") -> Path:
    for file in model_folder().iterdir():
        given(f"{name}/{file.name}", file.read_bytes())
    return Path(name)


def changed(file: str, content: bytes | str | None, call: Callable[[Path], Any]) -> None:
    folder = copied()
    if content is None:
        (folder / file).unlink()
    else:
        given(f"model/{file}", content)
    call(folder)


def configured(name: str, value: Any) -> None:
    values = json.loads((model_folder() / "config.json").read_text())
    changed("config.json", json.dumps({**values, name: value}), load_model)


def models() -> Iterator[Input]:
    whole = ("num_hidden_layers", "hidden_size", "vocab_size", "intermediate_size", "num_attention_heads")
    for name in (*whole, "max_position_embeddings", "num_key_value_heads"):
        for value in (-1, "x", [], {}, 1.5, 10**9, 10**18, True):
            loose = name in ("max_position_embeddings", "num_key_value_heads")
            made = lambda n=name, v=value: configured(n, v)  # noqa: E731
            yield Input("models", f"config {name}={value}", made, None if loose else False)
    for layers in (1, 3, 256, 257, 100_000):  # two are there
        yield Input(
            "models", f"config with {layers} layers", lambda n=layers: configured("num_hidden_layers", n)
        )
    strange: dict[str, tuple[Any, ...]] = {
        "model_type": (None, 5, "abacus", [], "bert"),
        "architectures": (5, "x", [None]),
        "hidden_act": ("evil", 5, None),
        "_attn_implementation": ("evil/evil", "flash_attention_2", "kernels-community/x"),
        "attn_implementation": ("evil/evil", "a/b:c"),
        "transformers_weights": ("pytorch_model.bin", "adapter_model.bin", "../x.safetensors"),
        "dtype": ("evil", 5),
        "rope_parameters": ("x", 5, []),
        "quantization_config": ("x", {"quant_method": "evil"}),
        "rms_norm_eps": ("x", []),
        "auto_map": ({"AutoModelForCausalLM": "evil.Evil"}, "x", 5),
        "pad_token_id": ("x", -5, 10**9),
        "eos_token_id": ("x", {}),
        "tie_word_embeddings": ("x",),
    }
    never = ("_attn_implementation", "attn_implementation", "transformers_weights")
    for name, values in strange.items():
        for value in values:
            made = lambda n=name, v=value: configured(n, v)  # noqa: E731
            yield Input("models", f"config {name}={value}", made, False if name in never else None)
    broken = (None, b"", b"null", b"[]", b'"x"', b"{", b"5", b"\xff\xfe", b"[" * 100_000, b"{}")
    for content in broken:
        shown = "missing" if content is None else content[:10]
        made = lambda c=content: changed("config.json", c, load_model)  # noqa: E731
        yield Input("models", f"config.json {shown!r}", made)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            made = lambda f=file, c=content: changed(f, c, lambda folder: load(folder, _rows()))  # noqa: E731
            yield Input("models", f"{file} {shown!r}", made, False if file == "tokenizer.json" else None)
    for name, content in _weights():
        made = lambda c=content: changed("model.safetensors", c, load_model)  # noqa: E731
        yield Input("models", f"weights {name}", made)
    index = "model.safetensors.index.json"
    for shard in (
        "pytorch_model.bin",
        "../model.safetensors",
        "/etc/passwd",
        5,
        None,
        "model.pt",
        "gone.safetensors",
    ):
        content = json.dumps({"metadata": {}, "weight_map": {"model.embed_tokens.weight": shard}})
        yield Input("models", f"an index that names {shard}", lambda c=content: _indexed(index, c))
    for content in ("null", "[]", "{}", '{"weight_map": null}', '{"weight_map": []}', "{", ""):
        yield Input("models", f"the index {content!r}", lambda c=content: _indexed(index, c))
    adapter = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "evil/evil"})
    yield Input("models", "an adapter", lambda: changed("adapter_config.json", adapter, load_model))
    yield Input("models", "pickled weights", lambda: (_unpicklable(), None)[1])


def _rows() -> dict[str, Any]:
    return {"train": {"text": ["a b", "b c"], "label": [0, 1]}}


def _weights() -> Iterator[tuple[str, bytes]]:
    good = (model_folder() / "model.safetensors").read_bytes()
    head = struct.unpack("<Q", good[:8])[0]
    for cut in (0, 4, 8, 20, 8 + head, 8 + head + 5, len(good) // 2, len(good) - 1):
        yield f"cut at {cut}", good[:cut]
    yield "longer", good + bytes(100)
    yield "of random bytes", zlib.compress(good)[:5000]
    for length in (0, 1, head - 1, head + 1, 2**40, 2**64 - 1):
        yield f"with a header of {length}", struct.pack("<Q", length) + good[8:]
    for header in (
        b"null",
        b"[]",
        b"{}",
        b'{"a": 1}',
        b'{"a": {"dtype": "F32", "shape": [10], "data_offsets": [0, 4]}}',
    ):
        yield f"with the header {header!r}", struct.pack("<Q", len(header)) + header + bytes(40)
    huge = b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4]}}'
    yield "of absurd size", struct.pack("<Q", len(huge)) + huge + bytes(4)


def _indexed(index: str, content: str) -> None:
    folder = copied()
    (folder / "model.safetensors").unlink()
    given(f"model/{index}", content)
    given("model/pytorch_model.bin", b"\x80\x04N.")
    load_model(folder)


def _unpicklable() -> None:
    folder = copied()
    (folder / "model.safetensors").unlink()
    given("model/pytorch_model.bin", b"\x80\x04N.")
    load_model(folder)


def arguments() -> Iterator[Input]:
    values = (-1, 0, 1.5, "x", True, 10**18, float("nan"), [])
    for name, value in itertools.product(("limit", "max_length", "seed"), values):
        if (name, value) in (("seed", 0), ("limit", True), ("seed", 10**18)) and value is not True:
            continue
        made = lambda n=name, v=value: load_task(_rows(), tokenizer(), **{n: v})  # noqa: E731
        yield Input("arguments", f"load_task({name}={value})", made)
    for name, value in itertools.product(
        ("seed", "num_labels", "dtype", "kind"), (-1, 1.5, "x", True, 10**30, [])
    ):
        made = lambda n=name, v=value: load_model(  # noqa: E731
            model_folder(), **{"kind": "classification", n: v}
        )
        yield Input(
            "arguments", f"load_model({name}={value})", made, None if (name, value) == ("kind", []) else False
        )
    for name, value in itertools.product(
        ("rank", "sequences", "length", "strength"), (-1, 0, "x", 10**18, float("nan"))
    ):
        made = lambda n=name, v=value: load(model_folder(), "planted", **{n: v})  # noqa: E731
        loose = (name, value) == ("strength", 10**18)
        yield Input("arguments", f"planted({name}={value})", made, None if loose else False)
    for column in ("text", "label", "text_b", "prompt", "answer"):
        for value in ("nothing", 5, []):
            made = lambda c=column, v=value: load_task(_rows(), tokenizer(), **{c: v})  # noqa: E731
            yield Input("arguments", f"load_task({column}={value})", made)


# ---------------------------------------------------------------- saved files


@functools.cache
def a_race() -> tuple[dict[str, Any], str, Any]:
    """A finished race's file, one of its cells' files, and that cell."""
    from xgblora_lab.methods import LoRA
    from xgblora_lab.racing.cells import Cell
    from xgblora_lab.racing.race import race as race_
    from xgblora_lab.racing.tuning import Trial

    with tempfile.TemporaryDirectory() as folder:
        from toy import ToyTask

        given_options: dict[str, Any] = {"lrs": [1e-3], "seeds": 1, "steps": 4, "batch_size": 2}
        race_(tiny.tiny_llama(), ToyTask(), ["lora:r=1"], out=folder, progress=False, **given_options)
        (kept,) = (Path(folder) / "runs").iterdir()
        method = make_method("lora:r=1", lr=1e-3)
        assert isinstance(method, LoRA)
        cell = Cell("", "", {}, {"steps": 4}, tuple, Trial("lora:rank=1", method), 0)
        return json.loads((Path(folder) / "race.json").read_text()), kept.read_text(), cell


WRONG: tuple[Any, ...] = (None, "x", -1, [], {}, 1e999, [None], True)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a JSON value: every key, and the first of every list."""
    items = (
        value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    )
    for key, inner in items:
        yield (*path, key)
        yield from _paths(inner, (*path, key))


def _with(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    made = dict(value) if isinstance(value, dict) else list(value)
    made[path[0]] = _with(made[path[0]], path[1:], new)
    return made


def saved() -> Iterator[Input]:
    from xgblora_lab.racing.result import Race

    whole, line, cell = a_race()
    for i, path in enumerate(_paths(whole)):
        new = WRONG[i % len(WRONG)]
        text = json.dumps(_with(whole, path, new))
        made = lambda t=text: (given("race.json", t), Race.load("."))[1]  # noqa: E731
        yield Input("saved files", f"race.json {'.'.join(map(str, path))}={new}", made, None)
    for content in (
        "",
        "null",
        "[]",
        "5",
        "{}",
        "{",
        "[" * 100_000,
        "\0",
        '{"trials": 1}',
        '{"histories": []}',
    ):
        made = lambda c=content: (given("race.json", c), Race.load("."))[1]  # noqa: E731
        yield Input("saved files", f"race.json {content[:10]!r}", made)
    for cut in range(0, len(line), len(line) // 40):
        yield Input("saved files", f"a cell cut at {cut}", lambda c=cut: _cell(cell, line[:c]), accepted=True)
    first, *rest = line.splitlines()
    head = json.loads(first)
    for i, path in enumerate(
        _paths({k: v for k, v in head.items() if k in ("method", "scores", "settings")})
    ):
        if path[0] == "settings" and path[-1] not in ("settings", "lr", "seed", "label", "options"):
            continue
        new = WRONG[i % len(WRONG)]
        text = "\n".join([json.dumps(_with(head, path, new)), *rest, ""])
        again = path[-1] not in ("rank",) and path[0] != "scores" and len(path) < 3
        made = lambda t=text, a=again: _cell(cell, t, a)  # noqa: E731
        yield Input("saved files", f"a cell's {'.'.join(map(str, path))}={new}", made, accepted=True)


def _cell(cell: Any, text: str, again: bool = True) -> None:
    """A damaged file of a cell is read as if it were not there."""
    from xgblora_lab.racing.cells import Cells

    given(f"out/runs/{cell.name}.json", text)
    if Cells(Path("out"), {}, None)._read(cell) is not None and again:
        raise AssertionError("a damaged cell was taken for a whole one")
