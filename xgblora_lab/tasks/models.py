"""What is tuned: the lab model, a local folder or a hub id, loaded with the head that a task needs."""

from __future__ import annotations

import contextlib
import inspect
import re
import warnings
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from xgblora_lab.stored import keep_stored
from xgblora_lab.tasks.checkpoint import PRETRAIN, first_line, load_config, load_tokenizer, location
from xgblora_lab.tasks.hub import refusal
from xgblora_lab.tasks.limits import whole
from xgblora_lab.tasks.planted import planted
from xgblora_lab.tasks.safe import check_files
from xgblora_lab.tasks.text import TextTask, load_task

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from xgblora_lab.tasks.tables import Table
    from xgblora_lab.tasks.task import Task

AUTO_CLASSES = {
    "classification": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
    "causal-lm": "AutoModelForCausalLM",
    "prompt-answer": "AutoModelForCausalLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "masked-lm": "AutoModelForMaskedLM",
}
_DIGITS = re.compile(r"\d+")
DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
PACKED: dict[str, dict[str, Any]] = {  # settings of bitsandbytes
    "4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "8bit": {"load_in_8bit": True},
}


def load_model(
    name: str | Path = "lab",
    task: Any = None,
    *,
    kind: str | None = None,
    num_labels: int | None = None,
    dtype: str | torch.dtype = "float32",
    seed: int = 0,
) -> PreTrainedModel:
    """Load a model in evaluation mode, with the head that the task needs.

    Weights are read from safetensors only, and no code of the checkpoint is run. A head that the checkpoint
    lacks is new and not reported, as that is the point of it. The global random state is left as it was.

    Parameters
    ----------
    name : str or Path, default "lab"
        "lab" (the embedded model), a `from_pretrained` folder, or a hub id.
    task : Task, optional
        Gives `kind`, the labels and the pad token.
    kind : str, optional
        "classification", "regression", "causal-lm", "prompt-answer", "seq2seq-lm" or "masked-lm"; default:
        the task's, else the checkpoint's own language-model kind (`language_model_kind`).
    num_labels : int, optional
        Outputs of a classification head; default: the task's labels, else 2. Regression has one.
    dtype : str or torch.dtype, default "float32"
        Of the weights, whatever the checkpoint holds ("auto" keeps the checkpoint's). "4bit" (NF4) and "8bit"
        pack the weights of all linear maps but the head with bitsandbytes; everything else is float32.
    seed : int, default 0
        Decides a head that the checkpoint does not hold.

    Returns
    -------
    PreTrainedModel
        Of transformers, on the CPU.

    Raises
    ------
    FileNotFoundError
        Where there is no model at `name`.
    OSError
        Where the hub cannot be reached and its cache does not hold the model, the model is gated, or it has
        no weights in safetensors files.
    ValueError
        Where the kind, the dtype, the seed or the number of labels cannot be used, the model cannot do this
        kind, the checkpoint is damaged, lacks weights other than a head's, has more layers than its
        configuration, or is one that `safe` refuses.

    Warns
    -----
    UserWarning
        Where the head of a language model is new.
    """
    import transformers

    whole("seed", seed, 0, 2**63 - 1)
    config = load_config(name)
    kind = kind or getattr(task, "kind", None) or language_model_kind(config)
    if not isinstance(kind, str) or kind not in AUTO_CLASSES:
        raise ValueError(f"Unknown kind of model {kind!r}; accepted are {', '.join(AUTO_CLASSES)}.")
    if kind in ("classification", "regression"):
        _set_labels(config, kind, num_labels, getattr(task, "labels", None))
    elif {"prompt-answer": "causal-lm"}.get(kind, kind) != language_model_kind(config):
        # An encoder would load as a causal LM and see the tokens it is to predict.
        raise ValueError(
            f"{name} ({config.model_type}) is a {language_model_kind(config)} model and cannot do {kind}; "
            "give a model of that kind, or a task that this one fits."
        )
    _require_lab_weights(name)
    check_files(name, location(name))
    stored = _stored(dtype)

    # Only the CPU's generator is forked and seeded: models are built on the CPU.
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.default_generator.manual_seed(seed)
        try:
            model, report = getattr(transformers, AUTO_CLASSES[kind]).from_pretrained(
                location(name),
                config=config,
                **stored,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # a head for another number of labels; judged in _check_report
                output_loading_info=True,
            )
        except Exception as error:  # of many classes: damaged files, sizes that do not fit each other
            if (refused := refusal("model", name, error)) is not None:
                raise refused from error
            raise (OSError if isinstance(error, OSError) else ValueError)(
                f"{name} could not be loaded for {kind}: it needs weights in safetensors files and an "
                f"architecture that transformers knows for it. transformers says: {first_line(error)}"
            ) from error
    _check_report(name, kind, model, report)
    keep_stored(model)
    pad = getattr(task, "pad_token_id", None)
    model.config.pad_token_id = _pad_token_id(config) if pad is None else pad
    return model.eval()


def load(
    model: str | Path = "lab",
    data: str | Path | Mapping[str, Table] = "pydocs",
    *,
    kind: str | None = None,
    seed: int = 0,
    dtype: str | torch.dtype = "float32",
    **options: Any,
) -> tuple[PreTrainedModel, Task]:
    """Load a model and a task that fit each other.

    Parameters
    ----------
    model : str or Path, default "lab"
        As in `load_model`.
    data : str, Path or mapping, default "pydocs"
        As in `load_task`, or "planted" (an update planted in the language model, see `planted`).
    kind : str, optional
        Of the task; default: guessed from the data's columns.
    seed : int, default 0
        Of a new head and of the planted update. The data's split never depends on it.
    dtype : str or torch.dtype, default "float32"
        Of the weights, as in `load_model`.
    **options
        Those of `load_task` or of `planted`.

    Returns
    -------
    model : PreTrainedModel
        In evaluation mode.
    task : Task
        For this model.

    Raises
    ------
    FileNotFoundError, OSError, ValueError, TypeError
        As `load_model`, `load_tokenizer`, and `load_task` or `planted` raise them.
    """
    own = set(inspect.signature(planted).parameters)
    if data == "planted":
        base = load_model(model, kind=kind, dtype=dtype, seed=seed)
        unknown = sorted(set(options) - own)
        if unknown:
            raise ValueError(
                f"The planted task has no option {unknown[0]!r}; it has modules, spectrum, rank, strength, "
                "sequences and length."
            )
        return base, planted(base, seed=seed, **options)
    foreign = sorted((own - set(inspect.signature(load_task).parameters)).intersection(options))
    if foreign:
        raise ValueError(
            f"{foreign[0]} is an option of planted data, which this is not; leave it out, or give the data "
            '"planted".'
        )
    config = load_config(model)
    positions = getattr(config, "max_position_embeddings", None)
    if positions:
        options["max_length"] = min(whole("max_length", options.get("max_length", 128), 2), positions)
    encoder_decoder = bool(config.is_encoder_decoder)
    task = load_task(data, load_tokenizer(model), kind=kind, encoder_decoder=encoder_decoder, **options)
    loaded = load_model(model, task, dtype=dtype, seed=seed)
    _require_room(model, loaded, task)
    return loaded, task


def language_model_kind(config: PretrainedConfig) -> str:
    """What kind of language model a configuration describes.

    Parameters
    ----------
    config : PretrainedConfig
        Of transformers.

    Returns
    -------
    str
        "seq2seq-lm" for encoder-decoders, "masked-lm" for encoders, "causal-lm" for decoders.
    """
    from transformers import MODEL_FOR_MASKED_LM_MAPPING

    if config.is_encoder_decoder:
        return "seq2seq-lm"
    masked = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    return "masked-lm" if masked else "causal-lm"


def _require_lab_weights(name: str | Path) -> None:
    if name == "lab" and not (Path(location(name)) / "model.safetensors").exists():
        raise FileNotFoundError(
            f"The lab model has no weights here (model.safetensors); train it with `{PRETRAIN}`."
        )


def _require_room(name: str | Path, model: PreTrainedModel, task: TextTask) -> None:
    """Refuse a tokenizer whose numbers the model has no embedding for."""
    embedding: Any = model.get_input_embeddings()
    room = len(embedding.weight)
    rows = (example.ids for examples in task.splits.values() for example in examples)
    last = max((max(ids) for ids in rows if ids), default=0)
    if max(last, task.pad_token_id) >= room:
        raise ValueError(
            f"The tokenizer of {name} gives token {max(last, task.pad_token_id)}, and the model knows {room} "
            "tokens; config.json, weights and tokenizer do not belong together."
        )


def _stored(dtype: str | torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` is told of the weights."""
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return {"dtype": dtype}
    if isinstance(dtype, str) and dtype in PACKED:
        from transformers import BitsAndBytesConfig

        if find_spec("bitsandbytes") is None:
            raise ValueError(f"{dtype} needs bitsandbytes; install it with `pip install bitsandbytes`.")
        return {"dtype": torch.float32, "quantization_config": BitsAndBytesConfig(**PACKED[dtype])}
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"Unknown dtype {dtype!r}; accepted are {', '.join((*DTYPES, *PACKED))} and auto.")
    return {"dtype": DTYPES[dtype]}


def _set_labels(config: PretrainedConfig, kind: str, num_labels: int | None, labels: Any) -> None:
    if kind == "regression":
        config.num_labels, config.problem_type = 1, "regression"
        return
    if labels and num_labels not in (None, len(labels)):
        raise ValueError(
            f"num_labels is {num_labels}, but the task has {len(labels)} labels; leave num_labels out."
        )
    asked = 2 if num_labels is None else whole("num_labels", num_labels, 2, 1_000_000)
    config.num_labels = len(labels) if labels else asked
    config.problem_type = "single_label_classification"
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: i for i, label in enumerate(labels)}


def _check_report(name: str | Path, kind: str, model: PreTrainedModel, report: dict[str, Any]) -> None:
    """Refuse a checkpoint with fewer weights or more layers than the body; warn where a head is new."""
    body = model.base_model_prefix + "."
    mismatched = {entry[0] for entry in report["mismatched_keys"]}
    missing = sorted(set(report["missing_keys"]) | mismatched)
    lost = [key for key in missing if key.startswith(body) and "pooler" not in key]  # poolers belong to heads
    if lost:
        raise ValueError(
            f"{name} lacks {len(lost)} weights of {type(model).__name__} (or holds them in another shape), "
            f"the first being {lost[0]}; config.json and weights do not belong together."
        )
    known = {_DIGITS.sub("#", key) for key in model.state_dict()}
    forms = known | {key.removeprefix(body) for key in known}
    extra = sorted(key for key in report["unexpected_keys"] if _DIGITS.sub("#", key) in forms)
    if extra:
        raise ValueError(
            f"{name} holds {len(extra)} weights of further layers, the first being {extra[0]}; config.json "
            f"has too few layers ({model.config.num_hidden_layers}) for them."
        )
    if missing and kind not in ("classification", "regression"):
        warnings.warn(f"{name} has no {kind} head; {', '.join(missing)} are new and random.", stacklevel=3)


def _pad_token_id(config: PretrainedConfig) -> int:
    if config.pad_token_id is not None:
        return int(config.pad_token_id)
    end = config.eos_token_id
    return int(end[0] if isinstance(end, list) else end or 0)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' loading report and bars; what matters of them is judged in `_check_report`."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
