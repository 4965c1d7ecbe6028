"""The web stage: crawl or read pages, clean them to documents, index them for search.

crawl.py      seeds -> WARC files             extract.py   page -> title, main text, date
  frontier.py   every address and its state     filters.py   language and quality rules
  fetch.py      one request, with all limits    dedup.py     exact and near duplicates
  robots.py     what a site allows              pii.py       personal data masked
  urls.py       spelling, scope, traps          clean.py     all of it: source -> documents.jsonl, ...
  warc.py       writing WARC                      tasks.py, waterfall.py
sources.py    any input -> raw pages          index.py     search index
evaluate.py   measured against known truth

    python -m pyengine.web crawl URL --out DIR | clean SOURCE --out DIR | search INDEX QUERY
"""

from .clean import CleanConfig, clean
from .crawl import CrawlConfig, CrawlResult, crawl
from .filters import FilterConfig
from .index import Hit, SearchIndex
from .sources import RawPage, read_documents

__all__ = [
    "CleanConfig", "CrawlConfig", "CrawlResult", "FilterConfig", "Hit", "RawPage", "SearchIndex",
    "clean", "crawl", "read_documents",
]  # fmt: skip
