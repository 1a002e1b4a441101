"""What is said where the hub gives nothing: of a gated, a missing and an unreachable model or data set."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

INSTEAD = {  # by what was asked for: what goes in its place
    "model": 'a local folder or the embedded "lab" model',
    "data set": 'a local file or folder, or "pydocs"',
}
PAGES = {"model": "https://huggingface.co", "data set": "https://huggingface.co/datasets"}


def refusal(what: str, name: str | Path, error: BaseException) -> OSError | None:
    """The one sentence for an error in which the hub's answer is the reason, however deep.

    Parameters
    ----------
    what : str
        "model" or "data set".
    name : str or Path
        What the user calls it: a hub id, a configuration behind a colon included.
    error : BaseException
        Of transformers or datasets. Both turn the hub's own error into others.

    Returns
    -------
    OSError or None
        To be raised: PermissionError where it is gated, FileNotFoundError where there is none,
        ConnectionError where the hub is out of reach and its cache does not hold it. None where the reason is
        another one.
    """
    # By name: the classes live in libraries that need not be loaded, and datasets leaves some in words alone.
    kinds = {kind.__name__ for reason in _reasons(error) for kind in type(reason).__mro__}
    kinds.update(re.findall(r"\b\w+Error\b", str(error)))
    called, page = f"{str(name)!r}", f"{PAGES[what]}/{str(name).partition(':')[0]}"
    if "GatedRepoError" in kinds or "is a gated dataset" in str(error):
        return PermissionError(
            f"The {what} {called} is gated: its owners decide who gets it. Accept their terms on {page}, "
            f"log in with `hf auth login` and try again, or use {INSTEAD[what]}."
        )
    if kinds & {"RepositoryNotFoundError", "DatasetNotFoundError"}:
        return FileNotFoundError(
            f"The hub has no {what} {called}, or it is private: correct the id (owner/name), log in with "
            f"`hf auth login`, or use {INSTEAD[what]}."
        )
    if kinds & {"LocalEntryNotFoundError", "ConnectionError", "ConnectError", "TimeoutException"}:
        return ConnectionError(
            f"The hub could not be reached for {called}, and it is not in the local cache, or not whole; "
            f"use {INSTEAD[what]}."
        )
    return None


def downloaded(repository: str) -> Path | None:
    """The folder of a data set that lies in the hub's cache, as `hf download --repo-type dataset` left it.

    Without a network, datasets itself knows only the data sets that it has prepared before.

    Parameters
    ----------
    repository : str
        The hub id.

    Returns
    -------
    Path or None
        The snapshot; None where there is none, or where it is known to be cut.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, repo_type="dataset", local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def _reasons(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
