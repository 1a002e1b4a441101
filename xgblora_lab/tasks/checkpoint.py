"""Where a model lies (the lab model, a folder or a hub id), its configuration and its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from xgblora_lab.tasks.hub import refusal
from xgblora_lab.tasks.limits import shown
from xgblora_lab.tasks.rows import HUB_ID, local_path
from xgblora_lab.tasks.safe import check_config, read_object

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

LAB = Path(__file__).parents[1] / "lab_model"
PRETRAIN = "python -m xgblora_lab.lab_model.pretrain"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.txt", "vocab.json")


def load_config(name: str | Path) -> PretrainedConfig:
    """Load the configuration of a model.

    Parameters
    ----------
    name : str or Path
        "lab" (the embedded model), a `from_pretrained` folder, or a hub id.

    Returns
    -------
    PretrainedConfig
        Of transformers. No code of the checkpoint is run.

    Raises
    ------
    FileNotFoundError
        Where there is no such folder, it holds no config.json, or the hub has no such model.
    OSError
        Where the hub cannot be reached and its cache does not hold the model, or the model is gated.
    ValueError
        Where what is found is no configuration that transformers knows, or one that `safe` refuses.
    """
    from transformers import AutoConfig

    place = location(name)
    if Path(place).is_dir() and not (Path(place) / "config.json").is_file():
        if name == "lab":
            raise FileNotFoundError(f"The lab model is not here; train it with `{PRETRAIN}`.")
        raise FileNotFoundError(
            f"{name} is no model folder: it holds no config.json. Give a from_pretrained folder."
        )
    if Path(place).is_dir():
        read_object(Path(place) / "config.json")
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    except Exception as error:  # of many classes, where a value has another type than transformers expects
        if (refused := refusal("model", name, error)) is not None:
            raise refused from error
        raise ValueError(f"{name!r} gives no model configuration: {first_line(error)}") from error
    check_config(name, config)
    return config


def load_tokenizer(name: str | Path = "lab") -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model; its end-of-text token stands in for a missing pad token.

    Parameters
    ----------
    name : str or Path, default "lab"
        "lab" (the embedded model), a `from_pretrained` folder, or a hub id.

    Returns
    -------
    PreTrainedTokenizerBase
        Of transformers, with a pad token.

    Raises
    ------
    FileNotFoundError
        Where there is no such folder, or no configuration or tokenizer in it; or the hub has no such model.
    OSError
        Where the hub cannot be reached and its cache does not hold the model, or the model is gated.
    ValueError
        Where the tokenizer cannot be read, or has neither a pad nor an end-of-text token.
    """
    from transformers import AutoTokenizer

    load_config(name)  # says clearly what is wrong with a folder or a hub id
    place = location(name)
    if Path(place).is_dir() and not any((Path(place) / file).exists() for file in TOKENIZER_FILES):
        hint = f"train it with `{PRETRAIN}`." if name == "lab" else "save the model's tokenizer into it."
        raise FileNotFoundError(f"{name} holds no tokenizer ({', '.join(TOKENIZER_FILES)}); {hint}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        tokenizer("a")
    except Exception as error:  # of many classes, the reader's own among them
        if (refused := refusal("model", name, error)) is not None:
            raise refused from error
        raise ValueError(
            f"The tokenizer of {name} could not be read; save the model's tokenizer into the folder anew. "
            f"transformers says: {first_line(error)}"
        ) from error
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(
                f"The tokenizer of {name} has neither a pad nor an end-of-text token; give it one."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def location(name: str | Path) -> str:
    """The folder or hub id that transformers is asked for.

    Parameters
    ----------
    name : str or Path
        "lab", a folder, or a hub id.

    Returns
    -------
    str
        A folder that exists, or a hub id, which is not looked up.

    Raises
    ------
    FileNotFoundError
        Where `name` can only be a path and no folder is there.
    """
    if name == "lab":
        return str(LAB)
    path = local_path(name)
    if path.is_dir():
        return str(path)
    text = str(name)
    if isinstance(name, Path) or path.exists() or HUB_ID.fullmatch(text) is None or len(text) > 96:
        raise FileNotFoundError(f'There is no folder {shown(text)}; give a model folder, a hub id, or "lab".')
    return text


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
