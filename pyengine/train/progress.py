"""What a person sees while stages run: a live bar on a terminal, plain lines elsewhere.

    with Progress("pretrain", total=600) as progress:
        progress.update(step, "loss 2.31, 25,000 tok/s")

Plain lines come at most every few seconds, so that a log stays readable; `note` is always printed.
"""

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from ..data.rows import Skipped

console = Console(highlight=False, soft_wrap=True)
PLAIN_SECONDS = 10.0
SHOWN = 3  # rows left out that are told one by one


class Progress:
    """Progress of one piece of work with `total` steps; a context manager."""

    def __init__(self, title: str, total: int):
        self.title, self.total = title, total
        self._printed = time.monotonic()
        self._bar: Bar | None = None
        if console.is_terminal:
            times = (TimeElapsedColumn(), TimeRemainingColumn())
            left, right = TextColumn("{task.description}"), TextColumn("{task.fields[text]}")
            columns = (left, BarColumn(), MofNCompleteColumn(), *times, right)
            self._bar = Bar(*columns, console=console, transient=True)
            self._task = self._bar.add_task(title, total=total, text="")

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, done: int, text: str = "") -> None:
        """Show that `done` of `total` steps are finished, with a few words beside it."""
        if self._bar:
            self._bar.update(self._task, completed=done, text=text)
        elif time.monotonic() - self._printed >= PLAIN_SECONDS or done == self.total:
            self._printed = time.monotonic()
            console.print(f"  {self.title} {done}/{self.total} {text}", markup=False)


def note(text: str) -> None:
    """Print one line, above the bar where there is one."""
    console.print(f"  {text}", markup=False)


def note_left_out(rows: Sequence[Skipped], more: str = "") -> None:
    """Tell the first rows left out one by one. more: what is said behind the number of the others; "": nothing."""
    for row in rows[:SHOWN]:
        note(f"left out: {row.where}: {row.reason}")
    if more and len(rows) > SHOWN:
        note(f"left out: {len(rows) - SHOWN} {more}")
