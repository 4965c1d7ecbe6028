"""What each stage cost, and the road as a strip of stages with their state."""

from typing import Any

from ...train.stages import STAGES
from ..data import Data


def road(data: Data) -> list[dict[str, Any]]:
    """Every stage in order but the page's own: its state ("finished", "started", "") and its seconds."""
    stops = []
    for name, stage in STAGES.items():
        if name == "report":
            continue
        marker = data.marker(name)
        stops.append({
            "name": name, "title": stage.title, "state": marker.get("state", ""), "seconds": marker.get("seconds"),
        })  # fmt: skip
    return stops


def cost(data: Data) -> dict[str, Any] | None:
    """Wall and CPU seconds of each finished stage; the page's own stage is left out of its own account."""
    rows = []
    for name, stage in STAGES.items():
        marker = data.marker(name)
        if marker.get("state") == "finished" and name != "report":
            rows.append(
                {
                    "name": name,
                    "title": stage.title,
                    "wall": marker["seconds"],
                    "cpu": marker.get("cpu_seconds", 0.0),
                }
            )
    if not rows:
        return None
    most = max(max(row["wall"], row["cpu"]) for row in rows) or 1.0
    return {
        "rows": rows,
        "most": most,
        "wall": sum(row["wall"] for row in rows),
        "cpu": sum(row["cpu"] for row in rows),
        "name": data.run.config.name,
    }
