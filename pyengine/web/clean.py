"""From raw pages to clean documents: extract, filter, mask, deduplicate, hold out; every removal with its
reason.

    stats = clean("crawl/", "web/", CleanConfig())

    documents.jsonl   for training      {"id", "url", "title", "date", "lang", "text"}, one a line
    heldout.jsonl     for validation, chosen by a hash of the document before any training
    removed.jsonl     {"url", "step", "reason", "excerpt"}
    index.sqlite      search index over both (index.py)
    stats.json        what each step let through and removed, with examples (waterfall.py)

Two passes over the pages run in worker processes (sandbox.py), cut into tasks (tasks.py). `extract_page`
reads each page alone; between the passes, the lines that a site repeats are counted; `refine_page` filters
the page's own lines, masks personal data and computes the MinHash signature. What is written depends on
input and settings only: documents are ordered by address, never by the time they came.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import UserError
from ..files import atomic_write, write_json
from ..sandbox import Sandbox
from . import filters, pii
from .dedup import DedupConfig, duplicates, exact_key, signature
from .extract import NotAPage, SiteLines, extract
from .filters import FilterConfig, Text
from .index import SearchIndex
from .pii import PiiConfig
from .sources import RawPage, read_documents
from .tasks import Tasks
from .urls import canonical
from .waterfall import Waterfall

_VERSION = 1  # raise it when a change of code changes what tasks hold
_EXCERPT = 200  # characters


@dataclass(frozen=True)
class CleanConfig:
    """What is done to the pages."""

    filters: FilterConfig = field(default_factory=FilterConfig.site)
    dedup: DedupConfig = field(default_factory=DedupConfig)
    pii: PiiConfig = field(default_factory=PiiConfig)
    site_lines: bool = True  # take out lines that a site repeats
    noindex: bool = True  # leave out pages that ask not to be indexed
    heldout: float = 0.02  # share of the documents
    seed: int = 0  # of the choice of held-out documents
    index: bool = True
    workers: int = 2
    task_pages: int = 500
    cpu_seconds: float = 20.0  # for one page


Progress = Callable[[str, int], None]  # step, pages so far


def clean(
    source: str | Path, out: str | Path, config: CleanConfig | None = None, progress: Progress | None = None,
    also_index: Sequence[str | Path] = (),
) -> dict[str, Any]:  # fmt: skip
    """Clean the pages of `source` (see sources.py) into folder `out`; gives the content of stats.json.

    also_index: documents.jsonl files whose documents join the search index only, such as pages of a later
    date. Raises UserError where the source cannot be read or holds no page.
    """
    out, config = Path(out), config or CleanConfig()
    fall = Waterfall()
    with Sandbox(config, workers=config.workers, cpu_seconds=config.cpu_seconds) as sandbox:
        tasks = Tasks(
            out / "tasks", sandbox,
            repr((_VERSION, config.filters, config.dedup, config.pii, config.noindex)),
            config.task_pages, progress or (lambda step, count: None),
        )  # fmt: skip
        site_lines = SiteLines()
        pages = read_documents(source, fall.unread)
        for row in tasks.map(f"{__name__}:extract_page", pages, _raw_digest, _lost_page):
            fall.extracted(row)
            if "page" in row:
                site_lines.add(site_of(row["url"]), row["page"]["lines"])
        if not fall.pages:
            raise UserError(f"{source}: no pages in it" + fall.first_unread())
        items = _with_own_lines(tasks.again("extract_page"), site_lines if config.site_lines else None)
        rows = []
        for row in tasks.map(f"{__name__}:refine_page", items, repr, _lost_text):
            fall.refined(row)
            if "document" in row:
                rows.append(row)
    rows.sort(key=_precedence)
    kept = _deduplicate(rows, config, fall)
    documents = sorted((row["document"] for row in kept), key=lambda d: (d["url"], d["id"]))
    chosen = {row["document"]["id"] for row in kept if _is_held_out(row, config)}
    train = [document for document in documents if document["id"] not in chosen]
    heldout = [document for document in documents if document["id"] in chosen]
    write_jsonl(out / "removed.jsonl", fall.removed())
    write_jsonl(out / "heldout.jsonl", heldout)
    write_jsonl(out / "documents.jsonl", train)
    stats = fall.result(train, heldout) | {"settings": asdict(config)}
    if config.index:
        known = {document["id"] for document in documents}
        others = (document for path in also_index for document in read_jsonl(path))
        added = (document for document in others if document["id"] not in known)
        stats["passages"] = SearchIndex.build(out / "index.sqlite", chain(documents, added))
    write_json(out / "stats.json", stats)
    tasks.remove()
    return stats


def read_jsonl(path: str | Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL file."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def write_jsonl(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSONL, atomically."""
    with atomic_write(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


# -- what worker processes do


def prepare(config: CleanConfig) -> None:
    """Load what the first page would otherwise have to wait for."""
    filters.detect_language("")


def extract_page(raw: RawPage, config: CleanConfig) -> dict[str, Any]:
    """A raw page -> its text under "page", or "removed": (step, reason)."""
    row: dict[str, Any] = {"url": raw.url, "raw_bytes": len(raw.data)}
    try:
        page = extract(raw.data, raw.content_type, robots_tags=raw.robots_tags)
    except NotAPage as error:
        return row | {"removed": ("extract", str(error))}
    if page.noindex and config.noindex:
        return row | {"removed": ("extract", "noindex"), "excerpt": page.text[:_EXCERPT]}
    original = canonical(page.canonical, raw.url) if page.canonical else None
    return row | {"text_bytes": len(page.text.encode()), "page": {
        "title": raw.title or page.title, "lines": page.lines, "date": raw.date or page.date,
        "lang": raw.lang or page.lang, "is_copy": original is not None and original != canonical(raw.url),
        "extractor": page.extractor,
    }}  # fmt: skip


def refine_page(item: dict[str, Any], config: CleanConfig) -> dict[str, Any]:
    """An extracted page with its "own_lines" -> the "document", or "removed": (step, reason)."""
    page = item["page"]
    row = {"url": item["url"], "text_bytes": item["text_bytes"]}
    text = Text(item["url"], page["title"], item["own_lines"])
    verdict = filters.apply(text, config.filters)
    if verdict:
        return row | {"removed": verdict, "excerpt": text.text[:_EXCERPT]}
    masked, counts = pii.mask(text.text, config.pii)
    title, _ = pii.mask(page["title"], config.pii)
    lang = text.language[0] if config.filters.language else page["lang"]
    identity = hashlib.sha256(f"{item['url']}\n{masked}".encode("utf-8", "replace")).hexdigest()[:16]
    return row | {
        "document": {
            "id": identity, "url": item["url"], "title": title, "date": page["date"], "lang": lang,
            "text": masked,
        },
        "masked": dict(counts), "lines_removed": len(page["lines"]) - len(text.lines),
        "is_copy": page["is_copy"],
        "key": exact_key(text.body), "signature": signature(text.body, config.dedup),
    }  # fmt: skip


def _lost_page(raw: RawPage, reason: str) -> dict[str, Any]:
    return {"url": raw.url, "raw_bytes": len(raw.data), "removed": ("extract", reason)}


def _lost_text(item: dict[str, Any], reason: str) -> dict[str, Any]:
    return {"url": item["url"], "text_bytes": item["text_bytes"], "removed": ("refine", reason)}


def _raw_digest(raw: RawPage) -> str:
    about = (raw.url, raw.content_type, raw.robots_tags, raw.title, raw.date, raw.lang)
    return hashlib.sha256(raw.data).hexdigest() + repr(about)


def _with_own_lines(rows: Iterable[dict], site_lines: SiteLines | None) -> Iterator[dict]:
    for row in rows:
        if "page" in row:
            lines = row["page"]["lines"]
            own = site_lines.strip(site_of(row["url"]), lines)[0] if site_lines else lines
            yield row | {"own_lines": own}


def site_of(url: str) -> str:
    """Pages that share their navigation: those of a host, or of the first folder in a folder of pages."""
    parts = urlsplit(url)
    folders = parts.path.strip("/").split("/")
    return parts.netloc or (folders[0] if len(folders) > 1 else "")


# -- duplicates and held-out documents


def _precedence(row: dict) -> tuple:
    """Of duplicates the first is kept: no copy by its own word, the earliest date, the shortest address."""
    document = row["document"]
    return row["is_copy"], document["date"] or "~", len(document["url"]), document["url"], document["id"]


def _deduplicate(rows: list[dict], config: CleanConfig, fall: Waterfall) -> list[dict]:
    """The rows that stay, each with the name of its "cluster" (its own, or that of the text it is like)."""
    both = replace(config.dedup, exact=True, near=True)  # also where they stay: the split has to know
    found = duplicates([row["key"] for row in rows], [row["signature"] for row in rows], both)
    kept = []
    for row, duplicate in zip(rows, found, strict=True):
        first = rows[duplicate[0]] if duplicate else row
        row["cluster"] = first.get("cluster", first["key"])
        wanted = duplicate is None or not (
            config.dedup.exact if duplicate[1] == "exact" else config.dedup.near
        )
        fall.deduplicated(row, "" if wanted or duplicate is None else duplicate[1], first["url"])
        if wanted:
            kept.append(row)
    return kept


def _is_held_out(row: dict, config: CleanConfig) -> bool:
    """Whether the hash of the document's cluster says so: alike texts always fall on the same side."""
    digest = hashlib.sha256(f"{config.seed}/{row['cluster']}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < config.heldout * 2**64
