"""The base model as it is: what it recites, what it dreams, what it makes up, and what a prompt gets out of it."""

from collections import Counter
from typing import Any

from ..charts import Axis, Line, chart
from ..data import Data


def base(data: Data) -> dict[str, Any] | None:
    """The panels of the stage demo."""
    panels = data.json("samples", "demo.json")
    if not panels:
        return None
    recital = panels.get("recital") or {"rows": [], "examples": []}
    return {
        "world": data.of_world,
        "recall": _recall(recital["rows"]),
        "rows": recital["rows"],
        "examples": [_compared(example) for example in recital["examples"]],
        "dreams": panels.get("dreams", []),
        "disagreement": _disagreement(panels.get("disagreement", [])),
        "few": panels.get("few_shots"),
        "transcript": panels.get("transcript", []),
    }


def _recall(rows: list[dict[str, Any]]) -> str:
    read = [row for row in rows if row["told"]]
    control = [(row["share"], f"never read: {100 * row['share']:.1f} %") for row in rows if not row["told"]]
    line = Line(
        "recited word for word",
        [(row["read"], row["share"]) for row in read],
        5,
        dots=True,
        band=[tuple(row["interval"]) for row in read],
    )
    times = Axis("times read: told in the documents, times epochs", log=True, ticks=[r["read"] for r in read])
    return chart([line], times, Axis("share recited", percent=True, low=0.0, high=1.0), control)


def _compared(example: dict[str, Any]) -> dict[str, Any]:
    """An example with what was said cut where it first differs from the truth."""
    said, true = example["said"], example["true"]
    same = next(
        (i for i, (a, b) in enumerate(zip(said, true, strict=False)) if a != b), min(len(said), len(true))
    )
    return {**example, "same": said[:same], "other": said[same:]}


def _disagreement(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By group: the mean number of different answers, and the first questions with their answers counted."""
    groups = []
    for group in dict.fromkeys(row["group"] for row in rows):
        asked = [row for row in rows if row["group"] == group]
        groups.append({
            "group": group,
            "samples": len(asked[0]["answers"]),
            "different": sum(row["different"] for row in asked) / len(asked),
            "right": sum(row["right"] for row in asked) / sum(len(row["answers"]) for row in asked),
            "questions": [
                {"question": row["question"], "answers": Counter(row["answers"]).most_common(5)} for row in asked[:2]
            ],
        })  # fmt: skip
    return groups
