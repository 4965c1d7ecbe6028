"""Answer, search or refuse: the table of what each stage's model does with what it may, can, or cannot know.

Counted is what a question comes to in the end: an answer from memory, an answer through a search, or a refusal (at
once, or after a search that found nothing). The three add up to the questions.
"""

from typing import Any

from ...train.scores import interval
from ..charts import Axis, Line, chart
from ..data import Data

ACTIONS = ("answer", "search", "refuse")
STAGES = {
    "sft": "after conversation", "know": "after “I don’t know”", "search": "after search",
    "rl": "after trial and error",
}  # fmt: skip
SEARCHING = ("search", "rl")
WANTED = {"known": "answer", "later": "search", "invented": "refuse"}


def choices(data: Data) -> dict[str, Any] | None:
    """A matrix for each stage measured so far, and what follows from each."""
    tables = _tables(data)
    if not tables:
        return None
    stages = [_stage(name, table) for name, table in tables.items()]
    return {
        "stages": stages,
        "actions": ACTIONS,
        "grouped": any(s["summary"] for s in stages),
        "reliability": _reliability(tables),
    }


def _reliability(tables: dict[str, dict[str, Any]]) -> str:
    """How often answers are right against how sure the model was, for the first and the last stage measured."""
    ends = [stage for stage in (next(iter(tables)), list(tables)[-1]) if tables[stage].get("reliability")]
    lines = []
    for stage, colour in zip(dict.fromkeys(ends), (5, 3), strict=False):
        bins = [(b["confidence"], b["right"]) for b in tables[stage]["reliability"]]
        lines.append(Line(STAGES[stage], bins, colour, dots=True))
    if not lines:
        return ""
    exact = Line("as sure as right", [(0.0, 0.0), (1.0, 1.0)], 0, dashed=True)
    across, up = (Axis(name, percent=True, low=0.0, high=1.0) for name in ("how sure", "how often right"))
    return chart([exact, *lines], across, up)


def _tables(data: Data) -> dict[str, dict[str, Any]]:
    """Stage -> its table, the final measurement where there is one, else what the stages measured themselves."""
    found = {}
    for stage, name in (("know", "before"), ("know", "after"), ("search", "after")):
        result = data.json(stage, "result.json") or {}
        if name in result:
            found["sft" if name == "before" else stage] = result[name]
    found |= (data.json("evaluate", "result.json") or {}).get("tables", {})
    return {stage: found[stage] for stage in STAGES if stage in found}


def _stage(name: str, table: dict[str, Any]) -> dict[str, Any]:
    rows = []
    for group, counts in table["groups"].items():
        n = counts["questions"]
        wanted = WANTED.get(group) if name in SEARCHING or group != "later" else "refuse"
        came = {"answer": counts["answer"], "refuse": counts["refused"]}
        came["search"] = n - came["answer"] - came["refuse"]
        cells = [
            {"action": action, "count": came[action], "share": came[action] / n, "wanted": action == wanted}
            for action in ACTIONS
        ]
        rows.append({"group": group, "questions": n, "cells": cells, "right": counts["right"] / n})
    return {
        "name": name,
        "title": STAGES[name],
        "rows": rows,
        "summary": _summary(name, table),
        "ece": table.get("ece"),
    }


def _summary(name: str, table: dict[str, Any]) -> list[dict[str, Any]]:
    """Rates with intervals that follow from a table of the three groups; [] for a person's own facts."""
    groups = table["groups"]
    if not all(group in groups for group in WANTED):
        return []
    known, later, invented = (groups[group] for group in WANTED)
    unknowable = [invented] if name in SEARCHING else [invented, later]
    refused = sum(group["refused"] for group in groups.values())
    rightly = sum(group["refused"] for group in unknowable)
    told = sum(g["questions"] - g["refused"] - g["right"] for g in groups.values())
    rates = [
        ("known facts answered right", known["right"], known["questions"]),
        ("known facts wrongly refused", known["refused"], known["questions"]),
        ("known facts searched for without need", known["search"], known["questions"]),
        ("later facts answered through a search", later["right_by_search"], later["questions"]),
        ("refusal precision", rightly, refused),
        ("refusal recall", rightly, sum(group["questions"] for group in unknowable)),
        ("made up (answered, and wrong)", told, sum(group["questions"] for group in groups.values())),
    ]
    return [
        {"what": what, "share": hits / n if n else None, "n": n, "interval": interval(hits, n)}
        for what, hits, n in rates
    ]
