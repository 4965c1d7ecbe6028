"""What people like: the reward model, reinforcement against it, and where the gold reward turns from the score."""

import math
from collections import defaultdict
from typing import Any

from markupsafe import Markup

from ..charts import Axis, Line, chart
from ..data import Data

TICKS = (0, 1, 2, 5, 10, 20, 40, 80, 160, 320)  # nats
REQUESTS = 2  # of which answers are shown
ROWS = (("start", "start"), ("within the budget, kept in rlhf/", "kept"), ("pushed on, the end", "end"))


def rlhf(data: Data) -> dict[str, Any] | None:
    """Both stages, as far as they have come; None for a run without rankings."""
    judged, result = data.json("reward", "result.json") or {}, data.json("rlhf", "result.json") or {}
    learning, curve = data.metrics("reward", "eval"), data.metrics("rlhf", "eval")
    if not learning and not curve:
        return None
    ends = dict(result) | ({"end": curve[-1]} if result and curve else {})
    return {
        "judged": judged,
        "learning": _learning(learning, judged),
        "curves": _curves(curve, result) if curve else [],
        "rows": [{"name": name, **ends[key]} for name, key in ROWS if key in ends],
        "gold": bool(curve) and "gold" in curve[0],
        "turning": result.get("turning"),
        "stopped": result.get("stopped"),
        "budget": result.get("budget"),
        "steps": curve[-1]["step"] if curve else 0,
        "answers": _answers(data),
        "name": data.run.config.name,
    }


def _learning(rows: list[dict], judged: dict[str, Any]) -> Markup:
    points = [(row["step"], row["accuracy"]) for row in rows]
    ceiling = judged.get("ceiling")
    levels = [(ceiling, f"the raters' own ceiling: {100 * ceiling:.0f} %")] if ceiling else []
    line = Line("held-out rankings", points, 3, dots=True)
    return chart([line], Axis("step"), Axis("pairs found as ranked", percent=True, low=0.5), levels)


def _curves(curve: list[dict], result: dict[str, Any]) -> list[tuple[str, str, Markup]]:
    turning, kept = result.get("turning"), result.get("kept")
    lines = [_risen(curve, "proxy", "reward model's score", 1)]
    if "gold" in curve[0]:
        lines.append(_risen(curve, "gold", "gold reward", 3))
    heights = [height for line in lines for _, height in line.points]
    ends = [min(heights), max(heights)]
    if kept:
        lines.append(Line("kept within the budget", [(kept["kl"], end) for end in ends], 0, dashed=True))
    if turning and turning["turned"]:
        lines.append(Line("turning point", [(turning["kl"], end) for end in ends], 2, dashed=True))
    nats = Axis("nats from the start (root scale)", root=True, low=0.0, ticks=TICKS)
    steps = Axis("step")
    distance = [(row["step"], row["kl"]) for row in curve]
    budget = [(result["budget"], f"budget: {result['budget']:g} nats")] if result else []
    return [
        (
            "The score and what it stands for",
            "Both in standard deviations of the answers at the start, above their mean, on held-out requests. Where "
            "the two part, the model has learnt to please its judge.",
            chart(lines, nats, Axis("standard deviations"), about="score and gold reward against divergence"),
        ),
        (
            "Distance from the start",
            "Kullback-Leibler divergence of an answer from the model at the start. Up to the budget the training is "
            "for use, after it for this page alone.",
            chart(
                [Line("divergence", distance, 6, dots=True)], steps, Axis("nats an answer", low=0.0), budget
            ),
        ),
    ]


def _risen(curve: list[dict], key: str, name: str, colour: int) -> Line:
    """A measure over the distance: how far above the start, in the start's standard deviations, with 95 % bands."""
    first = curve[0]
    deviation = first[f"{key}_error"] * math.sqrt(first["answers"]) or 1.0
    rows = sorted(curve, key=lambda row: row["kl"])
    points = [(max(0.0, row["kl"]), (row[key] - first[key]) / deviation) for row in rows]
    halves = [1.96 * row[f"{key}_error"] / deviation for row in rows]
    band = [(rise - half, rise + half) for (_, rise), half in zip(points, halves, strict=True)]
    return Line(name, points, colour, dots=True, band=band)


def _answers(data: Data) -> list[dict[str, Any]]:
    """Requests that came up again and again, each with the best scored answer of each time."""
    rows = data.rows("rlhf", "rollouts.jsonl") + data.rows("rlhf", "rollouts.jsonl", end=True)
    asked: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        times = asked[row["messages"][-1]["content"]]
        best = times.get(row["step"])
        if best is None or row["reward"] > best["reward"]:
            times[row["step"]] = row
    often = sorted(asked.items(), key=lambda item: (-len(item[1]), min(item[1])))
    return [
        {"request": request, "times": [times[step] for step in sorted(times)]}
        for request, times in often[:REQUESTS]
    ]
