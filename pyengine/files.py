"""Writing files so that a reader, or a restart after a kill, never sees half of one.

A file is written under a temporary name in the same folder, flushed to disk, and renamed over its final
name; the folder entry is flushed too. Rename is atomic on POSIX file systems, so the final name always
holds either the old content or the new.
"""

import errno
import fcntl
import hashlib
import json
import math
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import UserError


@contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; on leaving without an error it replaces `path`.

    mode: "w" (UTF-8 text) or "wb". On an error the temporary file is removed and `path` is untouched.
    """
    if mode not in ("w", "wb"):
        raise ValueError(f"atomic_write: mode must be 'w' or 'wb', not {mode!r}")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with naming(path), open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """An OSError of the block that names no file, as that of a write to a full disk, names `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = os.fspath(path)
        raise


@contextmanager
def naming_database(path: str | os.PathLike) -> Iterator[None]:
    """An error of SQLite in the block, which names no file, is an OSError that names `path`."""
    try:
        yield
    except sqlite3.Error as error:
        full = "disk is full" in str(error)
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error), os.fspath(path)) from error


def sync_folder(folder: str | os.PathLike) -> None:
    """Flush a folder's entries to disk, so that a rename inside it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """The JSON object in a file; UserError, which names it, where it is damaged or no object."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); fetch or save it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(value).__name__}; fetch or save it again")
    return value


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN and infinity, which JSON does not have, as null."""
    with atomic_write(path) as file:
        json.dump(_finite(value), file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def file_hash(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, as hexadecimal."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class Journal:
    """A file of JSON lines that only grows, written by one process at a time; a context manager.

    A line that a kill left half written is taken away when the file is opened again. An OSError says if another
    process has it open. seconds: a line is on the disk at most so long after it was appended, as far as more follow;
    with 0, when append() returns. A kill loses no line in either case, a power cut does.
    """

    def __init__(self, path: str | os.PathLike, seconds: float = 0.0):
        self.path, self._seconds, self._synced = Path(path), seconds, time.monotonic()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise BlockingIOError(errno.EAGAIN, "another process writes to it", str(self.path)) from None
        self._file.truncate(self._whole())
        sync_folder(self.path.parent)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, row: Any) -> None:
        """Add one line."""
        with naming(self.path):
            self._file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            self._file.flush()
            if time.monotonic() - self._synced >= self._seconds:
                self._sync()

    def rows(self) -> Iterator[tuple[int, Any]]:
        """(where it begins, in bytes; value) of each line."""
        with open(self.path, "rb") as file:
            at = 0
            for line in file:
                yield at, json.loads(line)
                at += len(line)

    def close(self) -> None:
        """Flush to the disk and let others write."""
        if not self._file.closed:
            with self._file:
                self._sync()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def _whole(self) -> int:
        """The bytes up to the end of the last whole line."""
        end = self._file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - (1 << 16))
            self._file.seek(start)
            block = self._file.read(end - start)
            if (found := block.rfind(b"\n")) >= 0:
                return start + found + 1
            end = start
        return 0
