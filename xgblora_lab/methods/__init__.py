"""How it is tuned: the methods, by name. A new one is a file beside this one and a line in `METHODS`."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from xgblora_lab.methods.base import Method
from xgblora_lab.methods.family.adalora import AdaLoRA
from xgblora_lab.methods.family.adapad import AdaPaD
from xgblora_lab.methods.family.alora import ALoRA
from xgblora_lab.methods.family.beamlora import BeamLoRA
from xgblora_lab.methods.family.cola import COLA
from xgblora_lab.methods.family.dora import DoRA
from xgblora_lab.methods.family.gora import GoRA
from xgblora_lab.methods.family.lora_ga import LoRAGA
from xgblora_lab.methods.family.lora_ggpo import LoRAGGPO, LoRAMGPO
from xgblora_lab.methods.family.lora_plus import LoRAPlus
from xgblora_lab.methods.family.lora_pro import LoRAPro
from xgblora_lab.methods.family.lora_rite import LoRARITE
from xgblora_lab.methods.family.pissa import PiSSA
from xgblora_lab.methods.family.relora import ReLoRA
from xgblora_lab.methods.family.rora import RoRA
from xgblora_lab.methods.family.sora import SoRA
from xgblora_lab.methods.full import Full
from xgblora_lab.methods.lora import LoRA
from xgblora_lab.methods.xgblora import XGBLoRA

METHODS: dict[str, type[Method]] = {
    m.name: m
    for m in (
        XGBLoRA,
        LoRA,
        Full,
        RoRA,
        LoRAGA,
        GoRA,
        LoRAPro,
        LoRARITE,
        BeamLoRA,
        LoRAGGPO,
        LoRAMGPO,
        ALoRA,
        SoRA,
        LoRAPlus,
        DoRA,
        PiSSA,
        AdaLoRA,
        ReLoRA,
        COLA,
        AdaPaD,
    )
}

ALIASES = {"r": "rank", "k": "steps_per_round", "modules": "modules_per_round"}


def make_method(spec: str, **options: Any) -> Method:
    """A method from its name and options, e.g. `make_method("lora:r=8:alpha=16", lr=1e-3)`.

    In the text an option is any field of the method, or r (rank), k (steps_per_round), modules
    (modules_per_round); keyword options are overridden by those in the text. ValueError says what is unknown.
    """
    if not isinstance(spec, str):
        raise ValueError(f"A method is a text such as 'lora:r=8'; got {spec!r}.")
    name, *parts = spec.split(":")
    if name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"Unknown method {name!r}; accepted: {', '.join(METHODS)}.{hint}")
    fields = {f.name: f for f in dataclasses.fields(METHODS[name])}
    said = set()
    for part in parts:
        key, equals, text = part.partition("=")
        key = ALIASES.get(key, key)
        if key in said:
            raise ValueError(f"{spec!r} gives {key} twice; give it once.")
        said.add(key)
        if not equals or key not in fields:
            raise ValueError(
                f"Unknown option {part!r} of {name}; accepted as name=value: {', '.join(fields)}."
            )
        options[key] = _parse(text)
    unknown = [key for key in options if key not in fields]
    if unknown:
        raise ValueError(f"Unknown option {unknown[0]!r} of {name}; accepted: {', '.join(fields)}.")
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    return METHODS[name](**options)


def _parse(text: str) -> Any:
    if text.lower() in ("none", "true", "false"):
        return {"none": None, "true": True, "false": False}[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


__all__ = [
    "COLA",
    "METHODS",
    "ALoRA",
    "AdaLoRA",
    "AdaPaD",
    "BeamLoRA",
    "Full",
    "GoRA",
    "LoRA",
    "LoRAGA",
    "LoRAPlus",
    "LoRAPro",
    "LoRARITE",
    "Method",
    "PiSSA",
    "ReLoRA",
    "RoRA",
    "SoRA",
    "XGBLoRA",
    "make_method",
]
