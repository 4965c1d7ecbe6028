"""Stage `know`: probe what the model itself knows, and teach "I don't know" exactly where it does not.

Questions with sure answers are put to the model several times. Where it is right (nearly) always, it is taught
to go on answering, with its own most frequent right words; where it is (nearly) never right, to refuse; what
lies between teaches neither. Whether the crawl told a fact is never looked at: the labels are the model's own
knowledge, so that what it learns is to hear its own doubt. The questions measured before and after are about
entities that no conversation named.
"""

import json
from collections import Counter
from typing import Any

import numpy as np

from ..files import atomic_write, write_json
from .dialogue import Dialogue
from .finetune import Messages, finetune, passed_on, start_from
from .knowledge import labels, measure, questions_of, share
from .progress import note
from .run import Run
from .sft import sft_conversations

REFUSALS = (
    "I don't know.",
    "I don't know that.",
    "I'm sorry, I don't know.",
    "I do not know that, I'm sorry.",
)


def know(run: Run) -> dict[str, Any]:
    """Probe, label and fine-tune the SFT model; writes know/."""
    settings, test = run.config.know, questions_of(run, "test")
    if not test:
        return passed_on(run, "sft", "know")
    model, tokenizer = start_from(run, "sft"), run.tokenizer
    dialogue = Dialogue(model, tokenizer)
    before = measure(dialogue, test)

    rows = labels(
        dialogue, questions_of(run, "train", settings.wordings), settings.samples, settings.temperature,
        run.config.seed, (settings.unknown, settings.known),
    )  # fmt: skip
    write_lines(run, "know/labels.jsonl", rows)
    counts = Counter(f"{row['group']}: {row['label']}" for row in rows)
    note("probed: " + ", ".join(f"{name} {count}" for name, count in sorted(counts.items())))

    rng = np.random.default_rng([run.config.seed, 2])
    taught = [
        talk(row["question"], row["own"] if row["label"] == "known" else str(rng.choice(REFUSALS)))
        for row in balanced(rows, settings.balance, rng)
    ]
    conversations = taught + replayed(run, settings.replay)
    write_lines(run, "know/conversations.jsonl", ({"messages": c} for c in conversations))
    summary = finetune(run, model, conversations, settings, "know")

    after = measure(dialogue, test)
    result = {"labels": dict(counts), "before": before, "after": after}
    write_json(run.path("know", "result.json"), result)
    return summary | {
        "labels": dict(counts),
        "ece_before": before["ece"],
        "ece_after": after["ece"],
        "invented_refused": share(after, "invented", "refused"),
        "known_refused": share(after, "known", "refused"),
    }


def balanced(rows: list[dict[str, Any]], ratio: float, rng: np.random.Generator) -> list[dict[str, Any]]:
    """The known rows, and of the unknown ones at most `ratio` times as many: what is met too often is said too
    often. Without known rows all unknown ones."""
    known = [row for row in rows if row["label"] == "known"]
    unknown = [row for row in rows if row["label"] == "unknown"]
    most = int(ratio * len(known)) if known else len(unknown)
    return known + [unknown[i] for i in sorted(rng.permutation(len(unknown))[:most])]


def talk(question: str, answer: str) -> Messages:
    """One question and its answer."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def replayed(run: Run, count: int) -> list[Messages]:
    """Conversations of the SFT stage, trained along so that nothing of it is lost."""
    conversations = sft_conversations(run)
    rng = np.random.default_rng([run.config.seed, 3])
    order = rng.permutation(len(conversations))[:count]
    return [conversations[i].messages for i in order]


def write_lines(run: Run, name: str, rows: Any) -> None:
    """Write rows as JSONL into the run's folder, atomically."""
    with atomic_write(run.path(name)) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
