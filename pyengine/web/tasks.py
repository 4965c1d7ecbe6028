"""Long work cut into tasks: one file a task, which appears when it is whole and is found again by a later
run.

A task's name is a hash of its input and the settings, so that a run after a kill repeats only what is
missing, and a run with other input or settings never takes a stale file for its own.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ..files import atomic_write
from ..sandbox import Sandbox

Item = TypeVar("Item")


class Tasks:
    """A folder of task files. `settings` is everything but the items that results depend on."""

    def __init__(
        self, folder: Path, sandbox: Sandbox, settings: str, size: int, progress: Callable[[str, int], None]
    ) -> None:
        self.folder, self.sandbox, self.settings = folder, sandbox, settings
        self.size, self.progress = size, progress
        self._files: dict[str, list[Path]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def map(
        self, function: str, items: Iterable[Item], digest: Callable[[Item], str],
        lost: Callable[[Item, str], dict],
    ) -> Iterator[dict[str, Any]]:  # fmt: skip
        """The dict that `function` ("module:name") gives for each item, in order; `lost(item, reason)` for
        an item
        that its worker did not survive. digest: a text that tells items apart."""
        count = 0
        step = function.rpartition(":")[2]
        files = self._files[step] = []
        for batch in self._batches(items):
            key = hashlib.sha256(
                "\0".join([self.settings, function, *map(digest, batch)]).encode("utf-8", "replace")
            )
            path = self.folder / f"{step}-{key.hexdigest()[:24]}.jsonl"
            if not path.exists():
                with atomic_write(path) as file:
                    for item, outcome in zip(batch, self.sandbox.map(function, batch), strict=True):
                        row = lost(item, outcome.reason) if outcome.reason else outcome.value
                        file.write(json.dumps(row) + "\n")
            files.append(path)
            for row in _rows(path):
                count += 1
                yield row
            self.progress(step, count)

    def again(self, step: str) -> Iterator[dict[str, Any]]:
        """The results of a step that has run, once more."""
        for path in self._files[step]:
            yield from _rows(path)

    def remove(self) -> None:
        """Drop all task files."""
        shutil.rmtree(self.folder)

    def _batches(self, items: Iterable[Item]) -> Iterator[list[Item]]:
        batch: list[Item] = []
        for item in items:
            batch.append(item)
            if len(batch) >= self.size:
                yield batch
                batch = []
        if batch:
            yield batch


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
