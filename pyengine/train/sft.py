"""Stage `sft`: from a base model that goes on with any text to one that converses.

Conversations are a person's file or the world's, written under world/guidelines.md. The stage runs to its
plateau: the held-out loss and the share of problems solved are told along the way, so that what RL adds later
is not what a few more steps of imitation would have given.
"""

from typing import Any

from ..data import Conversation, read_conversations
from .attempts import Exam
from .dialogue import Dialogue
from .finetune import finetune, start_from
from .run import Run


def sft(run: Run) -> dict[str, Any]:
    """Fine-tune the base model; writes sft/."""
    model = start_from(run, "base")
    exam, dialogue = Exam.of(run), Dialogue(model, run.tokenizer)

    def evaluate(step: int) -> dict[str, Any]:
        return exam.quick(dialogue)

    return finetune(run, model, sft_conversations(run), run.config.sft, "sft", evaluate)


def sft_conversations(run: Run) -> list[Conversation]:
    """The conversations of the stage: the file of the settings, else the world's, without its facts where it is
    not the world that was read."""
    settings = run.config.sft
    if settings.conversations is None:
        rows = run.world.conversations("train", settings.count)
        return [
            Conversation(row["messages"], f"conversation {number}")
            for number, row in enumerate(rows, 1)
            if run.config.closed or row["kind"] != "answer"
        ]
    return read_conversations(settings.conversations)[0]
