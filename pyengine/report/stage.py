"""Stage `report`: the page as it stays."""

from typing import Any

from ..train.progress import note
from ..train.run import Run
from .page import write


def report(run: Run) -> dict[str, Any]:
    """Write the finished page; returns its size and the sections it holds."""
    summary = write(run, live=False)
    note(f"the report: {run.path('report.html')}")
    return summary
