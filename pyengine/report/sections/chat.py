"""Conversation: the fine-tuning curves, and a conversation as the model gets it, with what it is trained on."""

from typing import Any

from ...text import render
from ..charts import Axis, Line, chart, smooth
from ..data import Data


def chat(data: Data) -> dict[str, Any] | None:
    """Curves of the stage sft, and one conversation token by token."""
    train, evaluations = data.metrics("sft", "train"), data.metrics("sft", "eval")
    if not train and not evaluations:
        return None
    losses = [(line["step"], line["loss"]) for line in train if "loss" in line]
    apart = [(line["step"], line["assistant_loss"]) for line in evaluations if "assistant_loss" in line]
    solved = [(line["step"], line["pass_at_1"]) for line in evaluations if "pass_at_1" in line]
    return {
        "summary": data.summary("sft"),
        "loss": chart(
            [
                Line("each step", losses, 1, faint=True), Line("training", smooth(losses), 1),
                Line("held-out conversations", apart, 2, dots=True, value=f"{apart[-1][1]:.3f}" if apart else ""),
            ],
            Axis("step"), Axis("loss (nats a token)", low=0.0),
        ),
        "solved": chart(
            [Line("held-out problems", solved, 3, dots=True)], Axis("step"), Axis("share right", percent=True, low=0.0)
        ),
        "masked": _masked(data),
    }  # fmt: skip


def _masked(data: Data) -> list[tuple[str, bool]]:
    """A conversation, with a search where there is one: its text in pieces, and whether each is trained."""
    talks = data.rows("search", "conversations.jsonl") or data.rows("know", "conversations.jsonl")
    if not talks or not data.finished("tokenizer"):
        return []
    talk = next((row["messages"] for row in talks if len(row["messages"]) > 2), talks[0]["messages"])
    tokenizer = data.run.tokenizer
    ids, mask = render(talk, tokenizer)
    pieces: list[tuple[list[int], bool]] = []
    for i, trained in zip(ids, mask, strict=True):
        if not pieces or pieces[-1][1] != bool(trained):
            pieces.append(([], bool(trained)))
        pieces[-1][0].append(i)
    return [(tokenizer.decode(piece), trained) for piece, trained in pieces]
