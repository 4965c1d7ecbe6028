"""Reinforcement: the curves, the exam before and after with its controls, the ledger of attempts, move 37."""

from collections import defaultdict
from typing import Any

from markupsafe import Markup

from ...train.scores import interval
from ..charts import Axis, Line, chart, smooth
from ..data import Data

COMPARED = 3  # problems whose kept and discarded attempts are shown
ATTEMPTS = 3  # of each kind


def rl(data: Data) -> dict[str, Any] | None:
    """Everything about trial and error that has been written so far."""
    train = data.metrics("rl", "train")
    result = data.json("rl", "result.json") or {}
    if not train and not result:
        return None
    before, after = result.get("before"), result.get("after")
    return {
        "curves": _curves(data, train, result),
        "pass_at_k": _pass_at_k(before, after),
        "exam": _exam(before, after, result.get("controls") or {}),
        "grades": _grades(before, after),
        "difference": result.get("largest_logprob_difference"),
        "seconds": result.get("seconds"),
        "control_seconds": result.get("control_seconds"),
        "pairs": _pairs(data.rows("rl", "rollouts.jsonl", end=True)),
        "unlikely": (data.json("rl", "move37.json") or [])[:8],
        "steps": train[-1]["step"] if train else 0,
        "name": data.run.config.name,
    }


def _curves(data: Data, train: list[dict], result: dict[str, Any]) -> list[tuple[str, str, Markup]]:
    def line(name: str, key: str, colour: int) -> list[Line]:
        points = [(row["step"], row[key]) for row in train if key in row]
        smoothed = smooth(points, 0.05)
        return [Line(name, points, colour, faint=True), Line(name if smoothed else "", smoothed, colour)]

    evaluations = data.metrics("rl", "eval")
    exam = [(row["step"], row["pass_at_1"]) for row in evaluations if "pass_at_1" in row]
    economy = [(row["step"], row["tokens_per_right"]) for row in evaluations if "tokens_per_right" in row]
    controls = [
        Line(
            "more imitation, as much work", _along(data.metrics("rl/imitation", "eval"), exam), 2, dots=True
        ),
        Line("paid for form alone", _along(data.metrics("rl/format", "eval"), exam), 0, dots=True),
    ]
    ceiling = [c["pass_at_1"] for c in [(result.get("controls") or {}).get("imitation")] if c]
    levels = [(share, f"imitation ceiling: {100 * share:.0f} %") for share in ceiling]
    step, share = Axis("step"), Axis("share right", percent=True, low=0.0, high=1.0)
    return [
        (
            "Right answers",
            "Held-out problems, and those it practises on. Two controls start from the same model: as much work "
            "spent on imitating more solutions (its end is the ceiling), and the same trial and error paid for form.",
            chart(
                [*line("practice", "pass_at_1", 1), Line("held-out", exam, 3, dots=True), *controls],
                step,
                share,
                levels,
            ),
        ),
        (
            "Reward",
            "What the attempts earn on average: a right one nearly 1, a little less the longer it is; a wrong one 0.",
            chart(line("reward", "reward", 1), step, Axis("reward", low=0.0)),
        ),
        (
            "Length of an attempt",
            "Tokens it writes, right or wrong. Short right reasonings earn more, so it learns to be brief.",
            chart(line("tokens", "length", 4), step, Axis("tokens", low=0.0)),
        ),
        (
            "Tokens per right answer",
            "All tokens written on held-out problems, divided by the right answers they bought.",
            chart([Line("tokens per right answer", economy, 4, dots=True)], step, Axis("tokens", low=0.0)),
        ),
        (
            "Entropy",
            "How undecided it is at each token. Trial and error needs some doubt: at 0 it would try one thing only.",
            chart(line("entropy", "entropy", 2), step, Axis("nats a token", low=0.0)),
        ),
        (
            "Distance from the start",
            "Kullback-Leibler divergence from the model before: how far it has moved away from imitation.",
            chart(line("divergence", "kl", 6), step, Axis("nats a token", low=0.0)),
        ),
    ]


def _along(evaluations: list[dict], exam: list[tuple]) -> list[tuple]:
    """A control's share right, its steps laid over those of the reinforcement: the same place is the same work."""
    points = [(row["step"], row["pass_at_1"]) for row in evaluations if "pass_at_1" in row]
    if not points or not exam:
        return points
    stretch = exam[-1][0] / max(1, points[-1][0])
    return [(step * stretch, share) for step, share in points]


def _pass_at_k(before: dict | None, after: dict | None) -> Markup:
    lines = []
    for name, exam, colour in (("before", before, 0), ("after", after, 3)):
        points = [(int(k), share) for k, share in (exam or {}).get("pass_at_k", {}).items()]
        lines.append(Line(name, sorted(points), colour, dots=True))
    ticks = [k for k, _ in max((line.points for line in lines), key=len)]
    return chart(
        lines,
        Axis("attempts k", log=True, ticks=ticks),
        Axis("solved by one of k", percent=True, low=0.0, high=1.0),
    )


def _exam(before: dict | None, after: dict | None, controls: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the table of exams, with the gain over the start."""
    rows = []
    named = (
        ("before (imitation to its plateau)", before), ("after trial and error", after),
        ("control: imitation with the same work", controls.get("imitation")),
        ("control: paid for form alone", controls.get("format")),
    )  # fmt: skip
    for name, exam in named:
        if exam:
            gain = exam["pass_at_1"] - before["pass_at_1"] if before and exam is not before else None
            rows.append({"name": name, "gain": gain, "interval": None, **exam})
    return rows


def _grades(before: dict | None, after: dict | None) -> list[dict[str, Any]]:
    """Share right by grade, before and after."""
    old, new = ((exam or {}).get("by_grade", {}) for exam in (before, after))
    return [{"grade": name, "before": old.get(name), "after": new.get(name)} for name in sorted({*old, *new})]


def _pairs(rollouts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Problems of the latest steps where attempts differ most, with those encouraged and those discouraged."""
    groups: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rollouts:
        groups[row["step"], row["problem"]].append(row)
    mixed = [
        group
        for group in groups.values()
        if any(r["right"] for r in group) and not all(r["right"] for r in group)
    ]
    mixed.sort(key=lambda group: (-group[0]["step"], -len({r["reply"] for r in group})))
    pairs = []
    for group in mixed[:COMPARED]:
        ranked = sorted({r["reply"]: r for r in group}.values(), key=lambda r: -r["reward"])
        right = sum(r["right"] for r in group)
        pairs.append({
            "problem": group[0]["problem"], "answer": group[0]["answer"], "step": group[0]["step"], "right": right,
            "attempts": len(group), "interval": interval(right, len(group)),
            "kept": [r for r in ranked if r["advantage"] > 0][:ATTEMPTS],
            "discarded": [r for r in ranked if r["advantage"] <= 0][::-1][:ATTEMPTS],
        })  # fmt: skip
    return pairs
