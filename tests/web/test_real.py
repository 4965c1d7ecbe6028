"""Real documentation: crawled from a plain file server, cleaned, searched.

Pages come from the folder that PYENGINE_REAL_DATA names, or are fetched by scripts/fetch_real.sh.
"""

import os
import re
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pyengine.web import CleanConfig, CrawlConfig, SearchIndex, clean, crawl, read_documents
from pyengine.web.clean import extract_page, read_jsonl
from pyengine.web.evaluate import plain_text

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def sites() -> Path:
    given = os.environ.get("PYENGINE_REAL_DATA")
    folder = Path(given) if given else ROOT / "build" / "real"
    if not (folder / "sites" / "debian-faq").is_dir():
        if given:
            pytest.skip(f"PYENGINE_REAL_DATA: no sites/debian-faq in {folder}")
        fetched = subprocess.run(
            [ROOT / "scripts" / "fetch_real.sh", folder, "--no-model"], capture_output=True, text=True
        )
        if fetched.returncode:
            pytest.skip(f"real pages could not be fetched: {fetched.stdout.strip()}")
    return folder / "sites"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture(scope="module")
def run(sites, tmp_path_factory):
    out = tmp_path_factory.mktemp("real")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(sites / "debian-faq")))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        seed = f"http://127.0.0.1:{server.server_port}/"
        result = crawl([seed], out, CrawlConfig(delay=0, allow_private=True))
    finally:
        server.shutdown()
        server.server_close()
    return out, result, clean(out, out, CleanConfig())


def test_a_real_site_is_crawled_and_cleaned(run):
    out, result, stats = run
    assert result.complete and result.pages >= 10
    documents = list(read_jsonl(out / "documents.jsonl"))
    assert len(documents) >= 8
    text = "\n".join(document["text"] for document in documents)
    assert len(text) > 50_000 and "Debian" in text
    assert not re.search(r"(?m)^\[? ?(next|previous|Prev|Next)\b.{0,40}$", text)
    assert (
        "@" not in re.sub(r"\S*@(debian:?~?|host|localhost)\S*", "", text)
        or stats["edits"]["masked"].get("email", 0) > 5
    )


def test_search_answers_from_a_real_site(run):
    hits = SearchIndex(run[0] / "index.sqlite").search("What is a virtual package?", k=3)
    assert hits and any("virtual" in hit.text for hit in hits)


def test_words_kept_beside_plain_resiliparse(sites):
    """Over all pages no fewer words than the plain library gives, navigation being left out."""
    ours = plain = 0
    config = CleanConfig()
    for raw in read_documents(sites / "abs-guide"):
        row = extract_page(raw, config)
        if "page" in row:
            ours += len(" ".join([row["page"]["title"], *row["page"]["lines"]]).split())
            plain += len(plain_text(raw.data, raw.content_type).split())
    assert plain > 50_000 and ours >= 0.95 * plain
