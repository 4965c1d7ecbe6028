"""Stage `report`: the page as it stays."""

from typing import Any

from ..train.progress import note
from ..train.run import Run
from ..train.stages import STAGES
from .page import write
from .words import duration


def report(run: Run) -> dict[str, Any]:
    """Record the time of the whole road and write the finished page; returns its size and the sections it holds."""
    markers = [run.marker(name) for name in STAGES if name != "report"]
    wall, cpu = (sum(marker.get(key, 0.0) for marker in markers) for key in ("seconds", "cpu_seconds"))
    apart = run.summary("rl").get("format_seconds", 0.0)
    wall -= apart
    run.gate(
        "time of all stages", wall, "<= 10 min", wall <= 600, cpu_seconds=cpu, apart=apart,
        command=f"python -m pyengine.train --name {run.config.name} --seed {run.config.seed}",
        about=f"{duration(cpu)} of CPU; the format-only control's {duration(apart)} counted apart",
    )  # fmt: skip
    summary = write(run, live=False)
    note(f"the report: {run.path('report.html')}")
    return summary
