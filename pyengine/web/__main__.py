"""The web stage by itself.

python -m pyengine.web crawl URL --out DIR
python -m pyengine.web clean SOURCE --out DIR
python -m pyengine.web search INDEX QUERY
"""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from ..command import run
from ..errors import UserError
from .clean import CleanConfig, clean
from .crawl import CrawlConfig, check_read, crawl
from .filters import FILTERS, FilterConfig
from .index import SearchIndex

STEPS = {step for step, _ in FILTERS}


@dataclass
class Crawl:
    """Crawl sites into WARC files; the same command goes on where the last one stopped."""

    urls: Positional[tuple[str, ...]]  # where to begin
    out: Path  # folder for WARC files, frontier and manifest
    config: Annotated[CrawlConfig, tyro.conf.arg(name="")] = field(default_factory=CrawlConfig)

    def run(self) -> None:
        line = _Line()
        result = crawl(
            self.urls, self.out, self.config,
            lambda pages, size, url: line.show(f"{pages:,} pages, {size / 1e6:,.1f} MB  {url}"),
        )  # fmt: skip
        line.end()
        for row in result.counts:
            told = row["reason"] or ("read" if row["state"] == "done" else "")
            print(f"{row['count']:>8,}  {row['state']:<8} {told}    e.g. {row['example']}")
        left = "" if result.complete else f"; stopped by {result.stopped or 'a full host'}, more is queued"
        print(f"{result.pages:,} pages, {result.bytes / 1e6:,.1f} MB in {len(result.warcs)} WARC files{left}")
        check_read(result, self.urls[0], "--allow-private")


@dataclass
class Clean:
    """Clean pages to documents.jsonl, heldout.jsonl, removed.jsonl, stats.json and a search index."""

    source: Positional[str]  # a crawl's folder, WARC, WET, JSONL, parquet, or a folder of pages or text
    out: Path  # folder for the results
    rules: Literal["site", "web"] = "site"  # thresholds: of a chosen site, or as published for the open web
    languages: tuple[str, ...] = ("en",)  # kept; give "any" to keep all
    without: tuple[str, ...] = ()  # filters to switch off, such as c4 or gopher_quality
    heldout: float = CleanConfig.heldout  # share of the documents kept aside for validation
    workers: int = CleanConfig.workers  # processes

    def run(self) -> None:
        line = _Line()
        languages = () if "any" in self.languages else self.languages
        unknown = set(self.without) - STEPS
        if unknown:
            raise UserError(f"--without {min(unknown)}: no such filter; there are {', '.join(sorted(STEPS))}")
        rules = FilterConfig.site(languages) if self.rules == "site" else FilterConfig(languages=languages)
        config = CleanConfig(filters=rules.without(*self.without), heldout=self.heldout, workers=self.workers)
        stats = clean(
            self.source, self.out, config, lambda step, count: line.show(f"{step}: {count:,} pages")
        )
        line.end()
        print(f"{'step':<18}{'pages':>10}{'removed':>10}  reasons")
        for step in stats["steps"]:
            removed = step["pages_in"] - step["pages_out"]
            reasons = ", ".join(f"{r['reason']} {r['pages']:,}" for r in step["reasons"][:4])
            print(f"{step['step']:<18}{step['pages_out']:>10,}{removed:>10,}  {reasons}")
        for name in ("documents", "heldout"):
            print(f"{name}: {stats[name]['count']:,} ({stats[name]['bytes'] / 1e6:,.1f} MB)")


@dataclass
class Search:
    """Look something up in an index.sqlite."""

    index: Positional[Path]  # an index.sqlite, as `clean` and `pyengine.train` make it
    query: Positional[str]  # words to look for
    k: int = 3  # passages shown
    max_chars: int = 400  # of a passage

    def run(self) -> None:
        hits = SearchIndex(self.index).search(self.query, self.k, self.max_chars)
        if not hits:
            print("nothing found")
        for hit in hits:
            print(f"{hit.title}  ({hit.url}, {hit.score:.2f})\n{hit.text}\n")


class _Line:
    """One line of progress: rewritten on a terminal, every five seconds elsewhere."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.last = 0.0

    def show(self, text: str) -> None:
        now = time.monotonic()
        if now - self.last >= (0.1 if self.terminal else 5.0):
            self.last = now
            print(f"\r\x1b[K{text[:110]}" if self.terminal else text, end="" if self.terminal else "\n",
                  file=sys.stderr, flush=True)  # fmt: skip

    def end(self) -> None:
        if self.terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    command = tyro.extras.subcommand_cli_from_dict(
        {"crawl": Crawl, "clean": Clean, "search": Search},
        prog="pyengine.web",
        description="The web stage by itself: fetch pages, clean them to text, look things up.",
        args=arguments,
    )
    return run(command.run, stopped="stopped; the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main())
