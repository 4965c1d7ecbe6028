"""Stage `search`: where the model does not know, it looks things up.

The labels of the stage before say what the model knows. Known questions keep their answers; an unknown one is
answered by a search of the run's own index (the crawl and the pages published later), its results put into the
context as forced, plainly encoded tokens, and an answer from them, or a refusal where they do not hold it. The
loss never falls on results.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import UserError
from ..files import write_json
from ..text import SearchTool
from ..text.chat import unspaced
from ..web import SearchIndex
from .dialogue import RESULT_TOKENS, SEARCH_RESULTS, Dialogue
from .finetune import Messages, finetune, passed_on, start_from
from .know import REFUSALS, replayed, talk, write_lines
from .knowledge import Item, measure, questions_of, share
from .run import Run
from .scores import holds_answer


def search(run: Run) -> dict[str, Any]:
    """Teach the look-ups; writes search/."""
    settings, test = run.config.search, questions_of(run, "test")
    if not test:
        return passed_on(run, "know", "search")
    tokenizer, index = run.tokenizer, index_of(run)
    model = start_from(run, "know")
    before = measure(Dialogue(model, tokenizer, index), test)

    tool = SearchTool(index, tokenizer, SEARCH_RESULTS, RESULT_TOKENS)
    rng = np.random.default_rng([run.config.seed, 4])
    items = {item.id: item for item in questions_of(run, "train", run.config.know.wordings)}
    labels = _labels(run)
    known = [talk(row["question"], row["own"]) for row in labels if row["label"] == "known"]
    unknown = [items[row["id"]] for row in labels if row["label"] == "unknown" and row["id"] in items]
    found, missing = look_ups(unknown, tool, rng)
    # as many answers at once as look-ups: what is met too often is done too often
    known *= max(1, round((len(found) + len(missing)) / max(1, len(known))))
    conversations = known + found + missing + replayed(run, settings.replay)
    write_lines(run, "search/conversations.jsonl", ({"messages": c} for c in conversations))
    summary = finetune(run, model, conversations, settings, "search")

    after = measure(Dialogue(model, tokenizer, index), test)
    write_json(run.path("search", "result.json"), {"before": before, "after": after})
    return summary | {
        "later_right_by_search": share(after, "later", "right_by_search"),
        "known_searched": share(after, "known", "search"),
    }


def index_of(run: Run) -> SearchIndex:
    """The index that the stage `clean` built."""
    path = run.path("web", "index.sqlite")
    if not path.exists():
        raise UserError(f"{path} is missing: run the stage `clean` again")
    return SearchIndex(path)


def look_ups(
    items: Sequence[Item], tool: SearchTool, rng: np.random.Generator
) -> tuple[list[Messages], list[Messages]]:
    """A conversation for every question that the index answers, and for half as many (or all there are, if it
    answers none) that it does not: what is found must be read, and what is not found must not be made up."""
    found: list[Messages] = []
    missing: list[Messages] = []
    for i in rng.permutation(len(items)):
        told, messages = looked_up(items[i], tool, rng)
        (found if told else missing).append(messages)
    return found, missing[: len(found) // 2 + 1] if found else missing


def looked_up(item: Item, tool: SearchTool, rng: np.random.Generator) -> tuple[bool, Messages]:
    """Whether the results hold the answer, and a conversation in which the question is looked up: answered if so."""
    text = unspaced(tool(tool.tokenizer.encode(item.query)), tool.tokenizer)
    told = holds_answer(text, item.answers)
    answer = item.response if told else str(rng.choice(REFUSALS))
    call = {"name": "search", "arguments": json.dumps({"query": item.query}, ensure_ascii=False)}
    return told, [
        {"role": "user", "content": item.question},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_0", "type": "function", "function": call}],
        },
        {"role": "tool", "tool_call_id": "call_0", "content": text},
        {"role": "assistant", "content": answer},
    ]


def _labels(run: Run) -> Sequence[dict[str, Any]]:
    path = run.path("know", "labels.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
