"""Looking things up: conversations in which the model searched, with what it found."""

from typing import Any

from ..data import Data
from .talks import verdict

SHOWN = 6


def search(data: Data) -> dict[str, Any] | None:
    """The stage's training and, once the end is measured, real searches with their results."""
    taught = data.rows("search", "conversations.jsonl")
    if not taught:
        return None
    searches = [talk["messages"] for talk in taught if any(m.get("tool_calls") for m in talk["messages"])]
    talks = (data.json("evaluate", "result.json") or {}).get("conversations", [])
    used = [
        (talk, talk["replies"]["rl"])
        for talk in talks
        if talk["replies"].get("rl", {}).get("query") is not None
    ]
    return {
        "world": data.of_world,
        "conversations": len(taught),
        "searches": len(searches),
        "used": [
            {"group": talk["group"], "question": talk["question"], "verdict": verdict(reply), **reply}
            for talk, reply in used[:SHOWN]
        ],
        "passages": (data.json("web", "stats.json") or {}).get("passages"),
    }
