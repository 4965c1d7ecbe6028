"""The text that writers of answers follow, people and models alike, and its version.

The version stands in a line of its own, "Version 3"; the hash tells apart texts that claim the same version.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError


@dataclass(frozen=True)
class Guideline:
    """A guideline as it was read."""

    text: str

    @property
    def version(self) -> str:
        """What its line says; "" where there is none."""
        found = re.search(r"^\W*version:?\s+([\w.-]+)\W*$", self.text, re.MULTILINE | re.IGNORECASE)
        return found[1] if found else ""

    @property
    def stamp(self) -> dict[str, str]:
        """What is kept beside everything that was written under it."""
        return {"version": self.version, "sha256": hashlib.sha256(self.text.encode()).hexdigest()}


def read_guideline(path: str | os.PathLike) -> Guideline:
    """The guideline in a text file; UserError if there is none."""
    try:
        text = Path(path).read_text("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; save the file as UTF-8") from None
    if not text:
        raise UserError(f"{path}: expected a guideline, the file is empty")
    return Guideline(text)
