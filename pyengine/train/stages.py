"""The stages of the road, in order: the table of what runs, what each reads and writes.

To add a stage, write a function that takes the Run and returns a summary (a dict), and give it a row here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Stage:
    """One stage: a function of a Run, and what it reads and writes."""

    name: str
    title: str
    function: str  # "module:function" below pyengine, imported when it runs; takes the Run, returns a summary
    needs: tuple[str, ...] = ()  # stages whose outputs it reads
    # What it reads of the configuration: sections, "section.field", or "site", the world's settings where the
    # world is what is crawled.
    settings: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()  # glob patterns in the run's folder; a fresh start removes them first
    scratch: tuple[str, ...] = ()  # likewise, but no other stage reads them
    precious: bool = False  # what it fetched from other people's sites is not removed unless --force says so

    def load(self) -> Callable[[Any], dict[str, Any] | None]:
        """The stage's function."""
        module, _, name = self.function.partition(":")
        return getattr(import_module(f"pyengine.{module}"), name)


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "crawl", "fetch the site into WARC files", "train.prepare:crawl",
            settings=("site", "web.source", "web.max_pages", "web.allow_private"), precious=True,
            outputs=("web/*.warc.gz", "web/later/*.warc.gz"),
            scratch=("web/frontier.sqlite*", "web/later/frontier.sqlite*", "web/manifest.json"),
        ),
        Stage(
            "clean", "extract, filter, deduplicate, hold out", "train.prepare:clean",
            needs=("crawl",), settings=("site", "web.source", "web.heldout"),
            outputs=("web/*.jsonl", "web/later/*.jsonl", "web/stats.json", "web/truth.json", "web/index.sqlite"),
            scratch=("web/tasks", "web/later/tasks"),
        ),
        Stage(
            "tokenizer", "train the vocabulary", "train.prepare:tokenizer",
            needs=("clean",), settings=("tokenizer",),
            outputs=("tokenizer/*",),
        ),
        Stage(
            "shards", "encode the documents", "train.prepare:shards",
            needs=("clean", "tokenizer"),
            outputs=("shards/*/*",),
        ),
        Stage(
            "pretrain", "predict the next token, from random weights", "train.pretrain:pretrain",
            needs=("tokenizer", "shards"), settings=("model", "pretrain"),
            outputs=("base/*",), scratch=("base/checkpoints", "samples/pretrain.jsonl"),
        ),
        Stage(
            "demo", "the base model recites and dreams", "train.demo:demo",
            needs=("clean", "pretrain"), settings=("world", "demo", "know.facts"),
            outputs=("samples/demo*",),
        ),
        Stage(
            "sft", "learn to converse", "train.sft:sft",
            needs=("tokenizer", "pretrain"),
            settings=("world", "sft", "rl.problems", "rl.grades", "rl.exam", "rl.max_tokens"),
            outputs=("sft/*",), scratch=("sft/checkpoints",),
        ),
        Stage(
            "know", "probe what it knows, teach I don't know", "train.know:know",
            needs=("tokenizer", "sft"), settings=("world", "know"),
            outputs=("know/*",), scratch=("know/checkpoints",),
        ),
        Stage(
            "search", "teach it to look things up", "train.search:search",
            needs=("clean", "tokenizer", "know"), settings=("world", "search"),
            outputs=("search/*",), scratch=("search/checkpoints",),
        ),
        Stage(
            "rl", "trial and error on problems with answers", "train.rl:rl",
            needs=("tokenizer", "search"), settings=("world", "rl"),
            outputs=("rl/*",), scratch=("rl/checkpoints", "rl/format", "rl/imitation"),
        ),
        # RLHF is a branch: what it leaves is no other stage's start, and evaluate, chat and server keep to rl/.
        Stage(
            "reward", "learn from rankings what answers are good", "train.reward:reward",
            needs=("tokenizer", "rl"),
            settings=("world", "web.source", "reward", "rlhf.rankings", "rlhf.max_tokens", "sft", "search"),
            outputs=("reward/*", "reward/start/*"), scratch=("reward/checkpoints", "reward/start/checkpoints"),
        ),
        Stage(
            "rlhf", "reinforce what the reward model finds good", "train.rlhf:rlhf",
            needs=("clean", "tokenizer", "search", "reward"),
            settings=("world", "web.source", "rlhf", "rl.max_tokens"),
            outputs=("rlhf/*",), scratch=("rlhf/checkpoints",),
        ),
        Stage(
            "evaluate", "the final table", "train.evaluate:evaluate",
            needs=("pretrain", "sft", "know", "search", "rl"),
            settings=("world", "evaluate", "know.facts", "rl.problems", "rl.max_tokens"),
            outputs=("evaluate/*",),
        ),
        Stage(
            "report", "write the page", "report.stage:report",
            needs=("rlhf", "evaluate"),
            outputs=("report.html",),
        ),
    )
}  # fmt: skip
