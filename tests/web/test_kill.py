"""SIGKILL at any moment: the crawl loses and doubles nothing, the cleaning gives the same bytes."""

import gzip
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from urllib.parse import urlsplit

from pyengine.web import CleanConfig, CrawlConfig, clean, crawl, read_documents
from tests.web.small_site import page, serve

CRAWL = """
import sys
from pyengine.web import CrawlConfig, crawl
module = sys.modules["pyengine.web.crawl"]
module._COMMIT_PAGES, module._COMMIT_SECONDS = int(sys.argv[3]), 0.2
crawl([sys.argv[1]], sys.argv[2], CrawlConfig(delay=0, allow_private=True))
"""
CLEAN = """
import sys
from pyengine.web import CleanConfig, clean
clean(sys.argv[1], sys.argv[2], CleanConfig(task_pages=15, heldout=0.2, workers=1))
"""


def start(program, *arguments):
    return subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)])


def test_a_killed_crawl_loses_and_doubles_nothing(tmp_path):
    rng = random.Random(5)
    answers = {
        f"/{i}": page(
            *(f"/{rng.randrange(300)}" for _ in range(6)), f"/{i + 1}", text=rng.randbytes(2000).hex()
        )
        for i in range(300)
    }
    with serve(answers) as site:
        kills = 0
        for _ in range(40):
            asked, target = len(site.asked), rng.randrange(3, 120)
            process = start(CRAWL, site.base + "/0", tmp_path / "killed", rng.choice((1, 7, 40)))
            while process.poll() is None and len(site.asked) < asked + target:
                time.sleep(0.001)
            time.sleep(rng.random() * 0.02)
            process.send_signal(signal.SIGKILL)
            if process.wait() == 0:
                break
            kills += 1
        result = crawl([site.base + "/0"], tmp_path / "killed", CrawlConfig(delay=0, allow_private=True))
        assert kills >= 3, "no kill hit the crawl"
    assert result.complete and result.pages == 300
    pages = Counter(urlsplit(raw.url).path for raw in read_documents(tmp_path / "killed"))
    assert pages == Counter(list(answers))
    assert answers["/7"][2] in [raw.data for raw in read_documents(tmp_path / "killed")]
    assert not list((tmp_path / "killed").glob("*.part"))


def test_a_torn_tail_is_cut_off(tmp_path):
    """Bytes beyond the committed length (a record half written) vanish; their pages are read again."""
    answers = {f"/{i}": page(f"/{i + 1}", text=i * "on ") for i in range(20)}
    with serve(answers) as site:
        config = CrawlConfig(delay=0, allow_private=True)
        crawl([site.base + "/0"], tmp_path, CrawlConfig(delay=0, allow_private=True, max_pages=5))
        warc = tmp_path / "crawl-00000.warc.gz"
        with sqlite3.connect(tmp_path / "frontier.sqlite") as db:
            db.execute("UPDATE warcs SET closed = 0")
        warc.rename(tmp_path / "crawl-00000.warc.gz.part")
        with open(tmp_path / "crawl-00000.warc.gz.part", "ab") as file:
            file.write(gzip.compress(b"WARC/1.1\r\nWARC-Type: response\r\n" + bytes(500))[:-9])
        assert crawl([site.base + "/0"], tmp_path, config).complete
    assert Counter(urlsplit(raw.url).path for raw in read_documents(tmp_path)) == Counter(list(answers))


def test_a_killed_cleaning_gives_the_same_bytes(tmp_path):
    rng = random.Random(2)
    words = (
        "the river and of a boat that is with many people who have to be in town every year for work".split()
    )
    for i in range(90):
        text = ". ".join(" ".join(rng.sample(words, 12)) + f" {i}" for _ in range(8))
        (tmp_path / "pages").mkdir(exist_ok=True)
        (tmp_path / "pages" / f"{i:02}.html").write_text(f"<h1>Page {i}</h1><p>{text}.</p>")
    clean(tmp_path / "pages", tmp_path / "whole", CleanConfig(task_pages=15, heldout=0.2, workers=1))
    for tasks in (2, 9):  # kill when so many task files are there
        process = start(CLEAN, tmp_path / "pages", tmp_path / "killed")
        while process.poll() is None and len(list((tmp_path / "killed").glob("tasks/*.jsonl"))) < tasks:
            time.sleep(0.001)
        process.kill()
        process.wait()
    clean(tmp_path / "pages", tmp_path / "killed", CleanConfig(task_pages=15, heldout=0.2, workers=1))
    for name in ("documents.jsonl", "heldout.jsonl", "removed.jsonl"):
        whole = (tmp_path / "whole" / name).read_bytes()
        assert whole == (tmp_path / "killed" / name).read_bytes()
    assert (tmp_path / "whole" / "documents.jsonl").stat().st_size > 10_000
