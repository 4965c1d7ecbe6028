"""Rows of JSONL files: each with where it stands, bad ones counted and kept aside, never the end of a run."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import UserError

Row = TypeVar("Row")


@dataclass(frozen=True)
class Skipped:
    """A row that could not be used: "file:line", why, and its text (its first 1000 characters)."""

    where: str
    reason: str
    text: str


def read_rows(
    path: str | os.PathLike, convert: Callable[[dict[str, Any], str], Row]
) -> tuple[list[Row], list[Skipped]]:
    """(rows, skipped) of a JSONL file. `convert` gets each object and its "file:line", and raises UserError for
    a row that cannot be used. A file without one usable row is a UserError."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected JSONL, one JSON object a line")
    rows, skipped = [], []
    for where, line in _lines(path):
        try:
            rows.append(convert(_object(line, where), where))
        except UserError as error:
            reason = str(error).removeprefix(where).removeprefix(": ").removeprefix(", ")
            skipped.append(Skipped(where, reason, line[:1000].decode("utf-8", "replace")))
    if not rows:
        example = f"; the first: {skipped[0].where}: {skipped[0].reason}" if skipped else ""
        raise UserError(f"{path}: none of {len(skipped)} rows can be used{example}")
    return rows, skipped


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}:{number}", line


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        text = line.decode("utf-8-sig")  # from bytes, json.loads would guess UTF-16 by the first ones
    except UnicodeDecodeError as error:
        bad = f"byte 0x{line[error.start]:02x} at {error.start + 1}"
        raise UserError(f"{where}: not UTF-8 text ({bad}); save the file as UTF-8") from None
    try:
        row = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a JSON object, got {type(row).__name__}")
    return row


def field(row: Mapping[str, Any], names: tuple[str, ...], where: str) -> str:
    """The first of the named fields as non-empty text (numbers are spelled out); UserError if there is none."""
    for name in names:
        value = row.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = str(value)
        if isinstance(value, str) and value.strip():
            return value
    raise UserError(f"{where}: no field {names[0]!r} with text (also looked for {', '.join(names[1:])})")
