"""The same questions put to the model of every stage."""

from typing import Any

from ...train.scores import refuses
from ..data import Data

STAGES = {
    "base": "base model",
    "sft": "conversation",
    "know": "“I don’t know”",
    "search": "search",
    "rl": "trial and error",
}


def verdict(reply: dict[str, Any]) -> str:
    """What a reply came to in the end."""
    return "right" if reply["right"] else "refuses" if refuses(reply["text"]) else "wrong"


def talks(data: Data) -> dict[str, Any] | None:
    """The conversations that the stage evaluate kept, one table for each question; forgetting along the road."""
    result = data.json("evaluate", "result.json") or {}
    if not result.get("conversations"):
        return None
    rows = [
        {
            **talk,
            "replies": [
                (STAGES[stage], talk["replies"][stage], verdict(talk["replies"][stage]))
                for stage in STAGES
                if stage in talk["replies"]
            ],
        }
        for talk in result["conversations"]
    ]
    return {
        "talks": rows,
        "bits": [
            (STAGES.get(stage, stage), value) for stage, value in result.get("bits_per_byte", {}).items()
        ],
        "unseen": result.get("unseen_kinds") or {},
    }
