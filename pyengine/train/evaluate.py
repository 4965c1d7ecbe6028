"""Stage `evaluate`: the final model measured, and every stage before it in the same table.

    table      known / later / invented x answer / search / refuse, after each stage, on entities that no
               conversation named, with the index at hand where the stage knows how to search
    problems   held-out problems of the grades trained, and of kinds and sizes never trained
    conversations   the same few questions put to the model of every stage, the base model's included
    forgetting validation bits per byte of each stage's model, beside the base model's

Everything is asked through the engine, greedily except for problems, which are sampled at temperature 1.
"""

from typing import Any

from ..data import Problem, TokenShards
from ..files import write_json
from ..model import Transformer
from .attempts import Exam
from .dialogue import Dialogue
from .finetune import start_from
from .knowledge import Item, measure, questions_of, share, spread
from .pretrain import validation
from .run import Run
from .search import index_of

STAGES = ("sft", "know", "search", "rl")
SEARCHING = ("search", "rl")


def evaluate(run: Run) -> dict[str, Any]:
    """Measure; writes evaluate/result.json and the gates of the road's end."""
    items = questions_of(run, "test")
    models = {stage: start_from(run, stage) for stage in STAGES}
    tables = {stage: _table(run, stage, model, items) for stage, model in models.items()}
    final = models["rl"]
    result: dict[str, Any] = {
        "tables": tables,
        "bits_per_byte": {"base": _bits(run, start_from(run, "base"))}
        | {stage: _bits(run, model) for stage, model in models.items()},
        "unseen_kinds": unseen_kinds(run, final),
        "guesses": guesses(items),
        "conversations": conversations(run, {"base": start_from(run, "base"), **models}, items),
    }
    write_json(run.path("evaluate", "result.json"), result)
    _gates(run, tables)
    told = {name: round(share(tables["rl"], *key), 4) for name, key in _FINAL.items()}
    return told | {"bits_per_byte": result["bits_per_byte"]}


_FINAL = {
    "known_right": ("known", "right"),
    "known_refused": ("known", "refused"),
    "known_searched": ("known", "search"),
    "later_right_by_search": ("later", "right_by_search"),
    "invented_refused": ("invented", "refused"),
}


def _table(run: Run, stage: str, model: Transformer, items: list[Item]) -> dict[str, Any]:
    index = index_of(run) if stage in SEARCHING else None
    return measure(Dialogue(model, run.tokenizer, index), items)


def conversations(
    run: Run, models: dict[str, Transformer], items: list[Item], each: int = 3
) -> list[dict[str, Any]]:
    """`each` questions of every group with the reply of every model: what it said, did, searched for and found."""
    groups = dict.fromkeys(item.group for item in items)
    asked = [item for group in groups for item in spread([i for i in items if i.group == group], each)]
    rows: list[dict[str, Any]] = [
        {"group": i.group, "question": i.question, "answers": list(i.answers), "replies": {}} for i in asked
    ]
    for stage, model in models.items():
        dialogue = Dialogue(model, run.tokenizer, index_of(run) if stage in SEARCHING else None)
        replies = dialogue.ask([item.question for item in asked], max_tokens=48)
        for row, item, (reply,) in zip(rows, asked, replies, strict=True):
            row["replies"][stage] = {
                "text": reply.text, "action": reply.action, "right": item.is_right(reply), "query": reply.query,
                "found": reply.found,
            }  # fmt: skip
    return rows


def _bits(run: Run, model: Transformer) -> float:
    settings = run.config.pretrain
    shards = TokenShards(run.path("shards", "val"), run.tokenizer)
    measured = validation(model, shards, run.tokenizer, settings.context, settings.batch_tokens)
    return measured["bits_per_byte"]


def unseen_kinds(run: Run, model: Transformer, count: int = 200) -> dict[str, Any]:
    """Problems of kinds and sizes that no stage trained (the world has some)."""
    from ..world.problems import HELD_OUT

    if run.config.rl.problems is not None:
        return {}
    found, dialogue = {}, Dialogue(model, run.tokenizer)
    for kind in HELD_OUT:
        drawn = run.world.problems.take(count, kind, "test", "unseen")
        problems = [Problem(p.text, str(p.answer), p.grade) for p in drawn]
        exam = Exam(problems, run.config.rl.max_tokens, run.config.seed)
        found[kind] = exam.quick(dialogue, count)
    return found


def guesses(items: list[Item]) -> dict[str, float]:
    """Share right if every question of a group got the group's most frequent answer: what knowing nothing gives."""
    found = {}
    for group in dict.fromkeys(item.group for item in items):
        answers = [item.answers[0] for item in items if item.group == group]
        found[group] = max(map(answers.count, set(answers))) / len(answers)
    return found


def _gates(run: Run, tables: dict[str, Any]) -> None:
    final = tables["rl"]
    if "known" not in final["groups"]:  # a person's own facts: which of them are known is not known to us
        return
    value = {name: share(final, *key) for name, key in _FINAL.items()}
    right = value["known_right"]
    run.gate("known facts answered right", right, ">= 85 %", right >= 0.85)
    refused = value["known_refused"]
    run.gate("known facts wrongly refused", refused, "< 10 %", refused < 0.1)
    refused = value["invented_refused"]
    run.gate("invented entities refused", refused, ">= 90 %", refused >= 0.9)
    searched = value["later_right_by_search"]
    run.gate("later facts answered through search", searched, ">= 80 %", searched >= 0.8)
    needless = value["known_searched"]
    run.gate("needless searches on known facts", needless, "< 10 %", needless < 0.1)
    before, after = tables["sft"]["ece"], final["ece"]
    run.gate("calibration error of answers, before and after", after, "lower than before", after < before,
             before=before)  # fmt: skip
