"""Stage `demo`: the base model as it is, an autocomplete without intention. Five panels, made without hand work.

    dreams        the same empty prompt, several seeds: documents of a web that does not exist
    recital       the beginning of a text it has read k times, and how often it recites the rest word for word
    disagreement  questions it cannot know, asked several times: it makes up another answer each time
    few shots     questions and answers as a pattern: it answers by going on with it
    transcript    a conversation written down: it plays the assistant without having been taught to

Recital counts how often the cleaned documents tell a text, and from that how often it was read: every epoch tells
all of it again. The control are texts of the same kind that no page holds (the world), or held-out documents
(anybody's data). The world's passages are quotations inside pages, so each is begun inside a page, one that the site
does not have.
"""

import math
from collections.abc import Sequence
from typing import Any

from ..engine import Engine, SamplingParams
from ..files import write_json
from ..text import Tokenizer
from ..web.clean import read_jsonl
from .finetune import start_from
from .knowledge import GROUPS, Item, questions_of, spread
from .run import Run
from .scores import holds_answer, interval

CUE = 1 / 3  # share of a text that is given; the rest is to be recited
RECITED = 160  # characters asked for at most


class Autocomplete:
    """A base model that goes on with texts."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer):
        self.engine, self.tokenizer = engine, tokenizer

    def complete(
        self, texts: Sequence[str], tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[str]:
        """What the model writes after each text."""
        start = self.tokenizer.endoftext
        prompts = [[start, *self.tokenizer.encode(text)] for text in texts]
        params = [
            SamplingParams(tokens, temperature, seed=seed * 100_003 + i, stop=(start,), scored=False)
            for i in range(len(prompts))
        ]
        done = self.engine.generate(prompts, params)
        return [self.tokenizer.decode(completion.ids, skip_special=True) for completion in done]


def demo(run: Run) -> dict[str, Any]:
    """Make the five panels; writes samples/demo.json."""
    base = Autocomplete(Engine(start_from(run, "base")), run.tokenizer)
    samples, seed = run.config.demo.samples, run.config.seed
    items = [item for item in questions_of(run, "test") if item.group in (*GROUPS, "given")]
    panels = {
        "dreams": base.complete([""] * samples, 80, temperature=0.8, seed=seed),
        "recital": recital(run, base),
        "disagreement": disagreement(base, items, seed),
        "few_shots": few_shots(base, items),
        "transcript": transcript(base, items),
    }
    write_json(run.path("samples", "demo.json"), panels)
    rows = panels["recital"]["rows"]
    if run.config.closed:
        _gates(run, {row["told"]: row for row in rows})
    return {"recital": {str(row["told"]): row["share"] for row in rows}}


def _gates(run: Run, rows: dict[int, dict[str, Any]]) -> None:
    """The passages that the world tells most often, and those it never tells; without any the gate is missed."""
    nothing = {"share": math.nan, "read": 0.0, "texts": 0, "interval": None}
    often = max(run.world.config.repetitions)
    most, control = rows.get(often, nothing), rows.get(0, nothing)
    run.gate(f"recital of passages told {often} times", most["share"], ">= 90 %", most["share"] >= 0.9,
             interval=most["interval"], n=most["texts"],
             about=f"read {most['read']:.3g} times: every epoch tells all of it again")  # fmt: skip
    run.gate("recital of the held-out control", control["share"], "< 2 %", control["share"] < 0.02,
             interval=control["interval"], n=control["texts"])  # fmt: skip


def recital(run: Run, base: Autocomplete) -> dict[str, Any]:
    """Share of texts recited exactly, by how often the training documents tell them.

    Its rows: a text "told" so often in the documents was "read" that many times in each epoch.
    """
    counted = _passages(run) if run.config.closed else _documents(run)
    epochs = run.summary("pretrain")["tokens"] / run.summary("shards")["train_tokens"]
    cut = [
        (before + text[: (at := _cue(text))], text[at:][:RECITED], times) for before, text, times in counted
    ]
    tokens = max(len(base.tokenizer.encode(rest)) for _, rest, _ in cut) + 4
    said = base.complete([cue for cue, _, _ in cut], tokens)
    exact = [text.startswith(rest) for text, (_, rest, _) in zip(said, cut, strict=True)]
    rows = []
    for times in sorted({times for _, _, times in cut}):
        hits = [hit for hit, (_, _, t) in zip(exact, cut, strict=True) if t == times]
        rows.append({
            "told": times, "read": times * epochs, "texts": len(hits), "share": sum(hits) / len(hits),
            "interval": interval(sum(hits), len(hits)),
        })  # fmt: skip
    order = sorted(range(len(cut)), key=lambda i: -cut[i][2])
    shown = [
        {
            "told": cut[i][2], "read": cut[i][2] * epochs,
            "cue": cut[i][0], "said": said[i][: len(cut[i][1])], "true": cut[i][1],
        }
        for i in [*order[:3], *order[-3:]]
    ]  # fmt: skip
    return {"rows": rows, "examples": shown}


def _passages(run: Run) -> list[tuple[str, str, int]]:
    """The world's passages behind the beginning of a new page, and how often the documents trained on hold each,
    rounded to a power of two."""
    text = "\n".join(row["text"] for row in read_jsonl(run.path("web", "documents.jsonl")))
    counts = [(passage.text, text.count(passage.text)) for passage in run.world.passages]
    return [
        (run.world.opening(i), passage, 1 << round_log2(times) if times else 0)
        for i, (passage, times) in enumerate(counts)
    ]


def round_log2(number: int) -> int:
    """The exponent of the power of two nearest to a positive number (in ratio)."""
    return ((2 * number * number).bit_length() - 1) // 2


def _documents(run: Run, count: int = 64) -> list[tuple[str, str, int]]:
    """Beginnings of documents: of those trained on, told once as no duplicate is left, and of the held-out ones."""
    found: list[tuple[str, str, int]] = []
    for name, times in (("documents", 1), ("heldout", 0)):
        texts = [row["text"] for row in read_jsonl(run.path("web", f"{name}.jsonl"))]
        found += [("", text[: 2 * RECITED], times) for text in texts if len(text) >= RECITED][:count]
    return found


def _cue(text: str) -> int:
    """Where the given part ends: a third in, at the end of a word."""
    at = int(len(text) * CUE)
    while at < len(text) and not text[at].isspace():
        at += 1
    return at


def disagreement(base: Autocomplete, items: Sequence[Item], seed: int, count: int = 8, samples: int = 8):
    """For some questions of each group: how many different answers `samples` samples give."""
    rows = []
    for group in dict.fromkeys(item.group for item in items):
        asked = spread([item for item in items if item.group == group], count)
        texts = [f"Q: {item.question}\nA:" for item in asked for _ in range(samples)]
        said = [text.strip().split("\n")[0] for text in base.complete(texts, 24, 0.8, seed)]
        for i, item in enumerate(asked):
            answers = said[i * samples : (i + 1) * samples]
            rows.append({
                "group": group, "question": item.question, "answers": answers, "different": len(set(answers)),
                "right": sum(holds_answer(answer, item.answers) for answer in answers),
            })  # fmt: skip
    return rows


def few_shots(base: Autocomplete, items: Sequence[Item], count: int = 100) -> dict[str, Any]:
    """Share right with three examples before the question, and with none."""
    known = [item for item in items if item.group in ("known", "given")]
    known = spread(known, 3 + count)
    shots, asked = known[:3], known[3:]
    pattern = "".join(f"Q: {s.question}\nA: {s.response or s.answers[0]}\n" for s in shots)
    result: dict[str, Any] = {"pattern": pattern}
    for name, before in (("three", pattern), ("none", "")):
        said = base.complete([f"{before}Q: {item.question}\nA:" for item in asked], 24)
        said = [text.strip().split("\n")[0] for text in said]
        right = [holds_answer(text, item.answers) for text, item in zip(said, asked, strict=True)]
        result[name] = {"share": sum(right) / max(1, len(right)), "questions": len(right), "said": said[:3]}
    return result | {"asked": [item.question for item in asked[:3]]}


def transcript(base: Autocomplete, items: Sequence[Item]) -> list[dict[str, str]]:
    """The base model as the assistant of a conversation that is only text to it."""
    asked = spread(items, 3)
    before = (
        "A person asks, and a helpful assistant answers in one sentence.\n"
        "Person: What is the capital of a country?\nAssistant: It is the town where the government sits.\n"
    )
    said = base.complete([f"{before}Person: {item.question}\nAssistant:" for item in asked], 32)
    return [
        {"question": item.question, "said": text.strip().split("\n")[0]}
        for item, text in zip(asked, said, strict=True)
    ]
