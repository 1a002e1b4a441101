"""A folder of tensor files named by a log of JSON lines, which is the one place where its state changes.

A file of tensors gets a name that holds a part of its digest, so that nothing named by the log is ever
overwritten. Then the log names it: by one more line, or, where earlier lines change, by a new log that is
renamed into its place. Files that the log no longer names are deleted afterwards. Whatever comes between, a
reader of the log's whole lines finds the old state or the new one.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from xgblora_lab.disk import digest_of, make_folders, place, sync
from xgblora_lab.files import (
    load_tensors,
    manifest_of,
    plain,
    read_lines,
    write_json,
    write_tensors,
    write_text,
)

if TYPE_CHECKING:
    from filelock import BaseFileLock
    from torch import Tensor

LOG, LOCK, NEW = "history.jsonl", ".lock", ".new-"
INDEX, FORMAT, ROUND = "ensemble.json", 1, "rounds/{:05d}.safetensors"  # of an ensemble that is saved at once
_NAME = re.compile(r"(?:rounds/|state-)[0-9]{5,}-([0-9a-f]{16})\.safetensors")

Tensors = Mapping[str, tuple[str, Mapping[str, "Tensor"]]]  # kind: (beginning of the file's name, by name)
_STORES: WeakKeyDictionary[Any, dict[Path, Store]] = WeakKeyDictionary()  # by run


@dataclass(frozen=True)
class Entry:
    """What a line of the log says, and the tensors that belong to it.

    Attributes
    ----------
    record : Any
        With a method `to_dict`. Another object is another record.
    mark : Any
        What changes with the tensors where the record stays.
    files : mapping of str to str
        Names of the files, by kind; empty before they are written.
    """

    record: Any
    mark: Any
    files: dict[str, str]

    def line(self) -> str:
        """The line of the log."""
        return json.dumps({**self.record.to_dict(), "files": self.files}, allow_nan=False) + "\n"


class Store:
    """One run's folder, as one process writes or reads it.

    Parameters
    ----------
    folder : Path
        New, empty, or left by a process that was killed before its first save was whole.

    Attributes
    ----------
    files : list of dict of str to str
        What `read` found: names of the files of each record, by kind.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.files = folder, list[dict[str, str]]()
        self._lock: BaseFileLock | None = None
        self._seen: tuple[int, ...] | None = None  # the log as this process wrote or read it
        self._entries: list[Entry] = []  # its lines
        self._version: Any = None  # what they are the lines of; None: they must be written anew

    # Writing

    def open(self) -> None:
        """Keep others from writing until `close`; may be called again before that.

        Raises
        ------
        FileExistsError
            Another process writes here, or the folder does not hold what this object wrote or read.
        NotADirectoryError, PermissionError
            There can be no such folder.
        """
        from filelock import FileLock, Timeout

        place(self.folder / LOG)
        make_folders(self.folder)
        lock = self._lock or FileLock(self.folder / LOCK, timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Timeout as error:
            raise FileExistsError(
                f"{self.folder} is being written by another run; let it end, or choose another folder."
            ) from error
        try:
            self._claim()
        except BaseException:
            lock.release()
            raise
        self._lock = lock

    def _claim(self) -> None:
        found = _signature(self.folder / LOG)
        if found is not None and found != self._seen:
            raise FileExistsError(
                f"{self.folder} holds a run already, or one that went on elsewhere: go on with "
                f"resume({str(self.folder)!r}, model, task), or choose another folder."
            )
        if found is None:
            inside = [p for p in sorted(self.folder.rglob("*")) if not p.is_dir()]
            names = [p.relative_to(self.folder).as_posix() for p in inside]
            strange = [n for n in names if not n.startswith(".") and not _NAME.fullmatch(n)]
            if strange:
                raise FileExistsError(
                    f"{self.folder} holds something else ({strange[0]}); choose a new or an empty folder."
                )
            self._seen, self._entries, self._version = None, [], None

    def close(self) -> None:
        """Let others write; to be called as often as `open`, and without effect where that failed."""
        if self._lock is not None:
            self._lock.release()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """`open` and `close` around a block."""
        self.open()
        try:
            yield
        finally:
            self.close()

    def save(
        self,
        version: Any,
        records: Sequence[Any],
        mark: Callable[[int], Any],
        tensors: Callable[[int], Tensors],
        head: Callable[[], Mapping[str, Any]],
        last_only: str = "",
    ) -> None:
        """Make the folder hold these records; what it holds already is not written again.

        It does nothing where this object may not write, and where there is neither a record nor a log.

        Parameters
        ----------
        version : Any
            Another value where records before the newest may have changed.
        records : sequence
            One for each line, see `Entry`.
        mark : callable
            Of a record's index, see `Entry`.
        tensors : callable
            Of a record's index; a kind without tensors gets no file.
        head : callable
            What the log's first line says.
        last_only : str
            A kind of which only the last record's file is kept.

        Raises
        ------
        OSError
            The disk is full or cannot be written. The folder then holds what it held, and the next call
            saves everything that is missing.
        """
        if self._lock is None or not self._lock.is_locked or (not records and self._seen is None):
            return
        again = version != self._version
        first = 0 if again else len(self._entries)
        if not again and first == len(records):
            return
        self._version = None
        new = []
        for index in range(first, len(records)):
            old = self._entries[index] if index < len(self._entries) else None
            if old is None or old.record is not records[index] or old.mark != mark(index):
                files = {kind: self._put(*what) for kind, what in tensors(index).items() if what[1]}
                old = Entry(records[index], mark(index), files)
            new.append(old)
        lines = "".join(entry.line() for entry in new)
        try:
            if again:
                write_text(self.folder / LOG, json.dumps(plain(head()), allow_nan=False) + "\n" + lines)
            else:
                with (self.folder / LOG).open("a", encoding="utf-8") as file:
                    file.write(lines)
                    file.flush()
                    os.fsync(file.fileno())
        finally:
            self._seen = _signature(self.folder / LOG)
        before = [entry.files.get(last_only, "") for entry in self._entries[-1:]]
        self._entries[first:] = new
        self._version = version
        self._sweep(last_only, None if again else [name for name in before if name])

    def _put(self, start: str, tensors: Mapping[str, Tensor]) -> str:
        """Write tensors to a file of a name that no other content has."""
        descriptor, partial = tempfile.mkstemp(prefix=NEW, dir=self.folder)
        os.close(descriptor)
        try:
            write_tensors(Path(partial), tensors)
            sync(Path(partial))
            name = f"{start}-{digest_of(Path(partial))[:16]}.safetensors"
            path = self.folder / name
            make_folders(path.parent)
            os.replace(partial, path)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
        sync(path.parent)
        return name

    def _sweep(self, last_only: str, names: list[str] | None) -> None:
        """Delete these files, or every one that the log does not name."""
        if names is None:
            kept = {n for e in self._entries[:-1] for kind, n in e.files.items() if kind != last_only}
            kept |= {n for e in self._entries[-1:] for n in e.files.values()}
            paths = [*self.folder.glob("*"), *self.folder.glob("rounds/*")]
            found = [p.relative_to(self.folder).as_posix() for p in paths]
            names = [n for n in found if n not in kept and (n.startswith(NEW) or _NAME.fullmatch(n))]
        for name in names:
            (self.folder / name).unlink(missing_ok=True)

    # Reading

    def read(self) -> dict[str, Any]:
        """The log's first line; the names of every further line's files go to `files`.

        Raises
        ------
        FileNotFoundError
            There is no log.
        ValueError
            It was written by something else.
        """
        path = self.folder / LOG
        if not path.is_file():
            raise FileNotFoundError(f"No run to resume in {self.folder}: {LOG} is missing.")
        self._seen = _signature(path)
        head, *lines = read_lines(path)
        try:
            self.files = [dict(line["files"]) for line in lines]
            return head
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} names no files of its rounds: Checkpoint did not write it, or an older version did. "
                "Read it with the version of xgblora_lab that wrote it."
            ) from error

    def load(self, name: str | None) -> dict[str, Tensor]:
        """The tensors of a file that the log names, bit for bit as they were written; none without a name.

        Raises
        ------
        FileNotFoundError, ValueError
            The file is missing, or it has been changed.
        """
        if name is None:
            return {}
        known = _NAME.fullmatch(name)
        if known is None:
            raise ValueError(
                f"{self.folder / LOG} names {name!r}, which is no file of a run; restore the log."
            )
        return load_tensors(self.folder / name, known[1])

    def adopt(self, owner: Any, records: Sequence[Any], mark: Callable[[int], Any]) -> None:
        """Make `owner` go on from what `read` found; the next `save` writes the log anew.

        Raises
        ------
        FileExistsError
            Another process has written since.
        """
        if _signature(self.folder / LOG) != self._seen:
            raise FileExistsError(f"{self.folder} is being written by another run; let it end, then resume.")
        self._entries = [Entry(r, mark(i), self.files[i]) for i, r in enumerate(records)]
        _STORES[owner] = {self.folder.resolve(): self}


def store_of(owner: Any, folder: Path) -> Store:
    """The store by which a run writes a folder: always the same one, which knows what it has written."""
    return _STORES.setdefault(owner, {}).setdefault(folder.resolve(), Store(folder))


def write_ensemble(folder: Path, common: Mapping[str, Any], rounds: Sequence[Mapping[str, Tensor]]) -> None:
    """Write an ensemble into an empty folder: what is common to all rounds, and the tensors of each."""
    (folder / "rounds").mkdir()
    for index, tensors in enumerate(rounds):
        write_tensors(folder / ROUND.format(index), tensors)
    write_json(folder / INDEX, {"format": FORMAT, **common, "rounds": len(rounds)})


def read_ensemble(folder: Path) -> tuple[dict[str, Any], list[dict[str, Tensor]]]:
    """What `write_ensemble`, or a run that is saved after every round, wrote.

    Raises
    ------
    FileNotFoundError
        The folder holds neither, or a round's file is missing.
    ValueError, KeyError, TypeError
        A file was written by something else, or has been changed since.
    """
    if not (folder / INDEX).is_file():
        if not (folder / LOG).is_file():
            raise FileNotFoundError(
                f"No ensemble in {folder}: {INDEX} is missing; give a folder that save() wrote."
            )
        store = Store(folder)
        head = store.read()
        return head["ensemble"], [store.load(names.get("boosters")) for names in store.files]
    meta, known = json.loads((folder / INDEX).read_bytes()), manifest_of(folder)
    if meta["format"] != FORMAT:
        raise ValueError(f"it has format {meta['format']}; this version reads format {FORMAT}.")
    names = [ROUND.format(index) for index in range(meta["rounds"])]
    return meta, [load_tensors(folder / name, known.get(name, [0, ""])[1]) for name in names]


def _signature(path: Path) -> tuple[int, ...] | None:
    """What tells one state of a file from another; None where there is no file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
