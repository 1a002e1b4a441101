"""What a checkpoint may not ask for: code from elsewhere, pickled weights, or a model of absurd size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xgblora_lab.tasks.limits import shown

ATTENTION = (
    "eager",
    "sdpa",
    "flex_attention",
)  # torch's own; others come from the hub
LARGEST = {  # by the name of a setting: far above any model there is
    "num_hidden_layers": 256,
    "num_decoder_layers": 256,
    "num_attention_heads": 10_000,
    "num_key_value_heads": 10_000,
    "hidden_size": 1_000_000,
    "intermediate_size": 10_000_000,
    "max_position_embeddings": 100_000_000,
    "vocab_size": 100_000_000,
    "type_vocab_size": 1_000_000,
}
NUMBERS = 10**13  # parameters of a model, far above any that fits a machine
INDEX, ADAPTER = "model.safetensors.index.json", "adapter_config.json"


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises
    ------
    OSError
        Where it cannot be opened.
    ValueError
        Where it holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is no JSON file: {str(error).splitlines()[0]}; save the model anew."
        ) from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {shown(found)}, and not an object of settings; save the model anew.")
    return found


def check_config(name: str | Path, config: Any) -> None:
    """Refuse a configuration that asks for foreign code or for a model that no machine holds.

    Parameters
    ----------
    name : str or Path
        Of the model, for the message.
    config : PretrainedConfig
        Of transformers. Those inside it are checked too.

    Raises
    ------
    ValueError
        Where a size is no whole number or above `LARGEST`, or the attention is none of `ATTENTION`.
    """
    for key, most in LARGEST.items():
        value = getattr(config, key, None)
        if value is not None and (
            not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most
        ):
            raise ValueError(
                f"The configuration of {name} has {key} {shown(value)}; accepted is a whole number up to "
                f"{most}."
            )
    width, layers = (getattr(config, key, None) or 1 for key in ("hidden_size", "num_hidden_layers"))
    inner, words = (getattr(config, key, None) or 1 for key in ("intermediate_size", "vocab_size"))
    if width * (layers * (width + inner) + words) > NUMBERS:
        raise ValueError(
            f"The configuration of {name} describes a model of more than {NUMBERS:.0e} parameters; correct "
            "hidden_size, intermediate_size, num_hidden_layers or vocab_size."
        )
    asked = getattr(config, "_attn_implementation", None)
    for attention in asked.values() if isinstance(asked, Mapping) else [asked]:
        if attention is not None and attention not in ATTENTION:
            raise ValueError(
                f"The configuration of {name} asks for the attention {shown(attention)}, which would be code "
                f"from elsewhere; accepted are {', '.join(ATTENTION)}. Remove the entry."
            )
    if getattr(config, "transformers_weights", None) is not None:
        raise ValueError(
            f"The configuration of {name} names its weights (transformers_weights); remove the entry and "
            "call them model.safetensors."
        )
    for key in getattr(config, "sub_configs", {}):
        if (inside := getattr(config, key, None)) is not None and not isinstance(inside, Mapping):
            check_config(name, inside)


def check_files(name: str | Path, place: str) -> None:
    """Refuse a checkpoint whose weights are not all safetensors of its own.

    Parameters
    ----------
    name : str or Path
        Of the model, for the message.
    place : str
        The folder, or a hub id.

    Raises
    ------
    ValueError
        Where the index of the weights names another kind of file or another folder, or the checkpoint is a
        PEFT adapter, which may bring pickled weights.
    """
    if file_of(place, ADAPTER) is not None:
        raise ValueError(
            f"{name} is a PEFT adapter and no model; merge it into its base and give the result's folder."
        )
    index = file_of(place, INDEX)
    if index is None:
        return
    shards = read_object(index).get("weight_map")
    if not isinstance(shards, dict):
        raise ValueError(f"{INDEX} of {name} has no weight_map; save the model anew.")
    for file in shards.values():
        if not (isinstance(file, str) and file.endswith(".safetensors") and Path(file).name == file):
            raise ValueError(
                f"{INDEX} of {name} names {shown(file)}; accepted are safetensors files beside it. Save the "
                "model anew."
            )


def file_of(place: str, name: str) -> Path | None:
    """A file of a checkpoint: in its folder, or, for a hub id, in the folder of its newest revision."""
    if Path(place).is_dir():
        path = Path(place) / name
        return path if path.is_file() else None
    from transformers.utils.hub import cached_file

    found = cached_file(
        place,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return Path(found) if found is not None else None
