"""What the web stage read, kept and removed."""

from typing import Any

from ..data import Data

STEPS = {
    "read": ("could be read", "A page that the reader could not pass on: too large, broken, not a page."),
    "extract": (
        "text extracted",
        "Navigation, adverts, scripts and comments are taken away; pages without text go.",
    ),
    "url": ("address allowed", "Addresses with blocked words or from blocked hosts."),
    "soft_404": (
        "not an error page",
        "Pages that say “not found” although the server answered as if all were well.",
    ),
    "language": ("right language", "Pages in a language that is not asked for."),
    "gopher_repetition": (
        "not repetitive",
        "Gopher's rules: lines, paragraphs and word sequences that repeat.",
    ),
    "gopher_quality": ("reads like prose", "Gopher's rules: length, word lengths, symbols, common words."),
    "c4": ("C4's rules", "Too few sentences, placeholder text, curly brackets."),
    "fineweb": ("FineWeb's rules", "Lines without punctuation, duplicated characters, lists of short lines."),
    "refine": ("refined", "Pages lost to a fault while being filtered."),
    "duplicate": ("not a copy", "Exact copies and near-duplicates (MinHash); the earliest page stays."),
}


def web(data: Data) -> dict[str, Any] | None:
    """The waterfall of filters, the examples of each reason, extraction quality where the truth is known."""
    stats = data.json("web", "stats.json")
    crawl = data.summary("crawl")
    if not stats:
        return {"stats": None, "crawl": _plain(crawl)} if crawl else None
    steps = []
    for step in stats["steps"]:
        title, about = STEPS.get(step["step"], (step["step"], ""))
        steps.append(step | {"title": title, "about": about})
    return {
        "stats": stats,
        "steps": [step for step in steps if step["pages_in"] != step["pages_out"]],
        "passed": [step["title"] for step in steps if step["pages_in"] == step["pages_out"]],
        "first": max(1, stats["steps"][0]["pages_in"]),
        "crawl": _plain(crawl),
        "truth": data.json("web", "truth.json"),
    }


def _plain(summary: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a summary, without what is nested."""
    return {key: value for key, value in summary.items() if isinstance(value, int | float | str)}
