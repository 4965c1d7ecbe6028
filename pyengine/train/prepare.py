"""The stages before training: crawl, clean, tokenizer, shards. Each hands the run's settings and paths on.

`web.source` decides what is crawled and read. "world" serves the closed world's site on loopback and crawls it
over HTTP, as it was at the cut-off (to train on), then the pages published later (for the search index only).
A URL is crawled; files and folders are read as they are. From documents.jsonl on, all are alike.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data import write_shards
from ..errors import UserError
from ..files import write_json
from ..text import Tokenizer
from ..web import CleanConfig, CrawlConfig
from ..web import clean as clean_pages
from ..web import crawl as crawl_site
from ..web.clean import read_jsonl
from ..web.crawl import check_read
from ..web.evaluate import measure
from ..world import serve
from .progress import Progress, note
from .run import Run

WORLD_PORT = (
    47_000  # equal addresses give equal documents, so equal seeds take equal ports where they are free
)


def crawl(run: Run) -> dict[str, Any]:
    """The stage: the source's pages as WARC files in web/, the later ones in web/later/."""
    settings = run.config.web
    if settings.source == "world":
        manners = CrawlConfig(delay=0, allow_private=True, max_pages=settings.max_pages)
        with _served(run, "cutoff") as base:
            pages = _crawl(run, [base + "/"], "web", manners)
        with _served(run, "later") as base:
            new = sorted({base + page.path for page in run.world.pages if page.later and page.status == 200})
            manners = replace(manners, max_pages=len(new), sitemaps=False)
            later = _crawl(run, new, "web/later", manners)
        return {"pages": pages, "later_pages": later}
    if _is_url(settings.source):
        manners = CrawlConfig(
            contact=settings.contact,
            delay=settings.delay,
            allow_private=settings.allow_private,
            max_pages=settings.max_pages,
        )
        return {"pages": _crawl(run, [settings.source], "web", manners)}
    note(f"nothing to crawl: {settings.source} is read as it is")
    return {}


def clean(run: Run) -> dict[str, Any]:
    """The stage: documents.jsonl, heldout.jsonl, removed.jsonl, stats.json and the search index in web/."""
    settings, out = run.config.web, run.path("web")
    crawled = settings.source == "world" or _is_url(settings.source)
    later = []
    if settings.source == "world":
        _clean(run, run.path("web", "later"), run.path("web", "later"), index=False)
        later = [run.path("web", "later", f"{name}.jsonl") for name in ("documents", "heldout")]
    stats = _clean(run, out if crawled else Path(settings.source), out, also_index=later)
    if not any(stats[name]["count"] for name in ("documents", "heldout")):
        raise UserError(
            f"{settings.source}: none of {stats['steps'][0]['pages_in']:,} documents is kept; "
            f"{out / 'removed.jsonl'} says why"
        )
    if settings.source == "world":
        _gates(run)
    return {name: value for name, value in stats.items() if isinstance(value, int | float)}


def tokenizer(run: Run) -> dict[str, Any]:
    """The stage: a vocabulary of the training documents in tokenizer/."""
    texts = (row["text"] for row in read_jsonl(run.path("web", "documents.jsonl")))
    made = Tokenizer.train(texts, run.config.tokenizer.vocab_size, threads=run.threads)
    made.save(run.path("tokenizer"))
    return {"vocab_size": made.vocab_size}


def shards(run: Run) -> dict[str, Any]:
    """The stage: the training documents in shards/train, the held-out ones in shards/val."""
    summary: dict[str, Any] = {}
    for split, name in (("train", "documents"), ("val", "heldout")):
        rows = list(read_jsonl(run.path("web", f"{name}.jsonl")))
        if not rows:
            raise UserError(
                f"{run.path('web', name)}.jsonl is empty: too few documents to hold out --web.heldout = "
                f"{run.config.web.heldout:g} of them and train on the rest; give more (a file or a row of JSONL each)"
            )
        texts = [row["text"] for row in rows]
        manifest = write_shards(run.path("shards", split), texts, run.tokenizer, threads=run.threads)
        summary |= {
            f"{split}_documents": manifest["documents"],
            f"{split}_tokens": manifest["tokens"],
            f"{split}_bytes": sum(len(text.encode()) for text in texts),
        }
    note(f"{summary['train_tokens']:,} tokens to train on, {summary['val_tokens']:,} held out")
    return summary


@contextmanager
def _served(run: Run, published: str) -> Iterator[str]:
    """The world's site on the seed's port, or on any other if that one is taken; gives its address."""
    port = WORLD_PORT + run.config.closed_world().seed % 1000
    with ExitStack() as stack:
        try:
            base = stack.enter_context(serve(run.world, published, port=port))
        except OSError:
            note(f"port {port} is taken: addresses will differ from those of other runs of this seed")
            base = stack.enter_context(serve(run.world, published))
        yield base


def _crawl(run: Run, seeds: list[str], folder: str, manners: CrawlConfig) -> int:
    with Progress("crawl", manners.max_pages) as progress:
        result = crawl_site(
            seeds, run.path(folder), manners, lambda pages, size, url: progress.update(pages, url)
        )
    note(f"{result.pages:,} pages, {result.bytes:,} bytes from {seeds[0]}; {result.stopped or 'all of it'}")
    check_read(result, seeds[0], "--web.allow-private")
    return result.pages


def _clean(run: Run, source: Path, out: Path, **more: Any) -> dict[str, Any]:
    index = more.pop("index", True)
    config = CleanConfig(
        heldout=run.config.web.heldout, seed=run.config.seed, workers=run.threads, index=index
    )
    with Progress("clean", 0) as progress:
        return clean_pages(source, out, config, lambda step, count: progress.update(count, step), **more)


def _gates(run: Run) -> None:
    """What the world knows of its own pages, held against what cleaning made of them."""
    found = measure(run.path("web"), run.path("web"), [page for page in run.world.pages if not page.later])
    write_json(run.path("web", "truth.json"), found)
    f1, beside = found["f1_unseen"], f">= 0.95 (plain resiliparse {found['plain_f1_unseen']:.3f})"
    run.gate("extraction F1 on unseen looks", f1, beside, f1 >= 0.95, n=found["pages_unseen"])
    share, planted = found["duplicates_found"], found["duplicates"]
    run.gate("near-duplicates found", share, ">= 95 %", planted > 0 and share >= 0.95, n=planted)
    share, planted = found["emails_masked"], found["emails"]
    run.gate("e-mails masked", share, "100 %", planted > 0 and share == 1.0, n=planted)


def _is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))
