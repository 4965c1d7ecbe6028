"""What a run has written so far, read leniently: a file that is missing, or that a writer has not finished, is
no error here but simply nothing to show yet."""

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from ..train.run import Run

SPAN = 2_000_000  # bytes of a long file that are read from each end


class Data:
    """The files of a run, for one drawing of the page."""

    def __init__(self, run: Run):
        self.run = run

    def path(self, *parts: str) -> Path:
        return self.run.path(*parts)

    @property
    def of_world(self) -> bool:
        """Whether the run read the closed world, of which everything is known, and not a person's own pages."""
        return self.run.config.web.source == "world"

    @cached_property
    def _metrics(self) -> list[dict[str, Any]]:
        return self.run.metrics()

    def metrics(self, stage: str, kind: str) -> list[dict[str, Any]]:
        """The run's metric lines of one stage and kind ("train", "eval"), in the order of their steps."""
        found = [line for line in self._metrics if line["stage"] == stage and line["kind"] == kind]
        return sorted(found, key=lambda line: line["step"])

    def marker(self, stage: str) -> dict[str, Any]:
        """The stage's marker: {} before it starts."""
        return self.json("stages", f"{stage}.json") or {}

    def summary(self, stage: str) -> dict[str, Any]:
        """What a finished stage returned: {} before."""
        return self.marker(stage).get("summary") or {}

    def finished(self, stage: str) -> bool:
        """Whether the stage has finished."""
        return self.marker(stage).get("state") == "finished"

    def json(self, *parts: str) -> Any:
        """A JSON file's content, None where there is none yet."""
        try:
            return json.loads(self.path(*parts).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def rows(self, *parts: str, end: bool = False) -> list[dict[str, Any]]:
        """The rows of a JSONL file; of a long one those within 2 MB of its start (or of its end)."""
        return list(_rows(self.path(*parts), end))


def _rows(path: Path, end: bool) -> Iterator[dict[str, Any]]:
    try:
        with open(path, "rb") as file:
            if end and (start := file.seek(0, 2) - SPAN) > 0:
                file.seek(start)
                file.readline()  # the rest of a cut line
            else:
                file.seek(0)
            lines = file.read(SPAN).split(b"\n")
    except OSError:
        return
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:  # empty, cut, or not yet wholly written
            continue
        if isinstance(row, dict):
            yield row
