"""Putting the page together, and drawing it again while the run goes on.

A section is drawn from files; one whose files have not changed since the last drawing is taken from memory, so
that a refresh costs milliseconds. The page is rewritten at most every few seconds, and never so often that
drawing would take more than a fiftieth of the time.
"""

import base64
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from ..files import atomic_write
from ..train.progress import note
from ..train.run import Run
from .data import Data
from .sections import base, chat, choices, cost, head, know, pretrain, rl, rlhf, search, talks, tokens, web
from .words import FILTERS

EVERY = 10.0  # seconds between two drawings at the least
SHARE = 0.02  # of the time may go into drawing


@dataclass(frozen=True)
class Section:
    """A part of the page: `gather` gives what templates/<name>.html shows, None for nothing yet."""

    name: str
    title: str
    gather: Callable[[Data], dict[str, Any] | None]
    reads: tuple[str, ...]  # glob patterns in the run's folder: drawn again when one of these changes
    stages: tuple[str, ...] = ()  # whose results it shows, for the commands that reproduce them


SECTIONS = (
    Section("gates", "What was promised, what came out", head.gates, ("gates.json",)),
    Section(
        "web", "From web pages to clean text", web.web, ("web/stats.json", "web/truth.json", "stages/c*.json"),
        ("crawl", "clean"),
    ),
    Section(
        "tokens", "Text becomes tokens", tokens.tokens,
        ("tokenizer/tokenizer.json", "web/heldout.jsonl", "stages/tokenizer.json", "stages/shards.json"),
        ("tokenizer", "shards"),
    ),
    Section(
        "pretrain", "Predicting the next token", pretrain.pretrain,
        ("metrics.jsonl", "samples/pretrain*", "stages/pretrain.json"), ("pretrain",),
    ),
    Section("base", "What a base model is", base.base, ("samples/demo.json",), ("demo",)),
    Section(
        "chat", "Learning to converse", chat.chat,
        ("metrics.jsonl", "know/conversations.jsonl", "search/conversations.jsonl", "stages/sft.json"), ("sft",),
    ),
    Section("know", "Saying “I don’t know”", know.know, ("know/labels.jsonl",), ("know",)),
    Section(
        "search", "Looking things up", search.search, ("search/conversations.jsonl", "evaluate/result.json"),
        ("search",),
    ),
    Section(
        "choices", "Answer, search, or refuse", choices.choices,
        ("know/result.json", "search/result.json", "evaluate/result.json"), ("evaluate",),
    ),
    Section(
        "rl", "Getting better by trial and error", rl.rl, ("metrics.jsonl", "rl/*.json*", "stages/rl.json"), ("rl",)
    ),
    Section(
        "rlhf", "Learning what people like, and when to stop", rlhf.rlhf,
        ("metrics.jsonl", "reward/result.json", "rlhf/r*.json*"), ("reward", "rlhf"),
    ),
    Section("talks", "The same questions, stage by stage", talks.talks, ("evaluate/result.json",), ("evaluate",)),
    Section("cost", "What it cost", cost.cost, ("stages/*.json",)),
)  # fmt: skip


def write(run: Run, live: bool) -> dict[str, Any]:
    """Draw runs/<name>/report.html, replacing the old one whole. live: it will be drawn again."""
    text, shown = render(run, live)
    with atomic_write(run.path("report.html")) as file:
        file.write(text)
    (_alive.add if live else _alive.discard)(run.folder)
    return {"sections": shown, "bytes": len(text.encode())}


def render(run: Run, live: bool = False) -> tuple[str, list[str]]:
    """The page, and the names of the sections that had something to show."""
    data, drawn = Data(run), []
    for section in SECTIONS:
        body = _body(section, data)
        if body:
            drawn.append((section, body))
    script = (Path(__file__).parent / "templates" / "live.js").read_text(encoding="utf-8")
    page = _environment().get_template("page.html").render(
        **head.headline(data, live), live=live, sections=drawn, road=cost.road(data), name=run.config.name,
        style=Markup((Path(__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")),
        script=Markup(script), script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        drawn=time.strftime("%H:%M:%S") if live else "",
    )  # fmt: skip
    return page, [section.name for section, _ in drawn]


_bodies: dict[tuple[Path, str], tuple[Any, Markup]] = {}


def _body(section: Section, data: Data) -> Markup:
    """The section's HTML, from memory where its files are as they were."""
    place, folder = (data.run.folder, section.name), data.run.folder
    state = []
    for path in sorted({p for pattern in section.reads for p in folder.glob(pattern)}):
        try:
            stat = path.stat()
            state.append((path, stat.st_mtime_ns, stat.st_size))
        except FileNotFoundError:  # replaced at this moment
            continue
    if place not in _bodies or _bodies[place][0] != state:
        shown = section.gather(data)
        template = _environment().get_template(f"{section.name}.html")
        _bodies[place] = state, Markup(template.render(shown) if shown else "")
    return _bodies[place][1]


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    return environment


_alive: set[Path] = set()  # runs whose page, as it is now, expects to be drawn again
_drawings: dict[
    Path, tuple[float, float]
] = {}  # run's folder -> when the last drawing ended, how long it took


def refresh(run: Run, now: bool = False) -> None:
    """Draw the page again if it is time, or in any case with now=True. Never raises: a run outlives its page."""
    ended, took = _drawings.get(run.folder, (float("-inf"), 0.0))
    started = time.monotonic()
    if not now and started - ended < max(EVERY, took / SHARE):
        return
    try:
        write(run, live=True)
    except Exception as error:
        if run.folder not in _drawings:
            note(f"the report could not be drawn: {type(error).__name__}: {error}")
    _drawings[run.folder] = time.monotonic(), time.monotonic() - started


def settle(run: Run) -> None:
    """The last drawing of a process that stops: the page no longer reads itself again."""
    if run.folder in _alive:
        try:
            write(run, live=False)
        except Exception as error:
            note(f"the report could not be drawn: {type(error).__name__}: {error}")
