"""What the model knows, by asking it: the probe's labels, with an example of each."""

from collections import Counter, defaultdict
from typing import Any

from ..data import Data

LABELS = ("known", "unsure", "unknown")


def know(data: Data) -> dict[str, Any] | None:
    """Labels by group, and questions with the replies that led to each label."""
    rows = data.rows("know", "labels.jsonl")
    if not rows:
        return None
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        counts[row["group"]][row["label"]] += 1
    groups = [
        {"group": group, "total": sum(found.values()), **{label: found[label] for label in LABELS}}
        for group, found in counts.items()
    ]
    examples = []
    for label in LABELS:
        picked = next((row for row in rows if row["label"] == label), None)
        if picked:
            replies = Counter(picked["replies"]).most_common(4)
            examples.append({**picked, "counted": replies, "samples": len(picked["replies"])})
    return {"groups": groups, "examples": examples, "samples": len(rows[0]["replies"]), "probed": len(rows)}
