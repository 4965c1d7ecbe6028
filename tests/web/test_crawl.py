"""The crawler against a server that misbehaves in every way it must survive."""

import errno
import gzip
import json
import sqlite3
import time
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from pyengine.errors import UserError
from pyengine.web import CrawlConfig, crawl, read_documents
from pyengine.web.crawl import check_read
from pyengine.web.frontier import Frontier
from pyengine.web.warc import WarcFile
from tests.web.small_site import HTML, page, serve

FAST = CrawlConfig(delay=0, allow_private=True, backoff=0.02, retries=3)


def run(tmp_path, answers, config=FAST, start="/"):
    """Crawl a small site; gives (site, result, {path: (state, reason)})."""
    with serve(answers) as site:
        result = crawl([site.base + start], tmp_path, config)
    with sqlite3.connect(tmp_path / "frontier.sqlite") as db:
        rows = db.execute("SELECT url, state, reason FROM urls").fetchall()
    states = {}
    for url, state, reason in rows:
        parts = urlsplit(url)
        local = parts.netloc == urlsplit(site.base).netloc
        states[parts.path + (f"?{parts.query}" if parts.query else "") if local else url] = (state, reason)
    return site, result, states


def stored(folder) -> list[str]:
    return [urlsplit(raw.url).path for raw in read_documents(folder)]


def test_links_are_followed_and_what_is_stored_is_what_was_sent(tmp_path):
    body = "<a href='b'>b</a> caf\xe9".encode("latin-1")
    site, result, states = run(tmp_path, {
        "/": page("/a", "/a#top", "/a?utm_source=x", "mailto:x@y.z", "http://[broken/", "//",
        "javascript:x()"),
        "/a": (200, {"Content-Type": "text/html; charset=latin-1", "X-Robots-Tag": "noarchive"}, body),
        "/b": page(),
    })  # fmt: skip
    assert result.complete and result.pages == 3 and not result.stopped
    assert sorted(site.asked) == ["/", "/a", "/b", "/robots.txt"]
    raw = {urlsplit(raw.url).path: raw for raw in read_documents(tmp_path)}
    assert raw["/a"].data == body
    assert raw["/a"].content_type == "text/html; charset=latin-1"
    assert raw["/a"].robots_tags == ("noarchive",)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["complete"] and manifest["pages"] == 3 and len(manifest["files"][0]["sha256"]) == 64


def test_robots_rules_delay_and_name(tmp_path):
    robots = (
        "User-agent: *\nDisallow: /\n\nUser-agent: pyengine\n"
        "Disallow: /closed/\nAllow: /closed/open\nCrawl-delay: 0.15\n"
    )
    started = time.monotonic()
    site, result, states = run(tmp_path, {
        "/robots.txt": (200, {"Content-Type": "text/plain"}, robots.encode()),
        "/": page("/closed/x", "/closed/open", "/free"), "/closed/open": page(), "/free": page(),
    })  # fmt: skip
    assert "/closed/x" not in site.asked
    assert states["/closed/x"] == ("skipped", "robots.txt")
    assert result.pages == 3
    assert time.monotonic() - started >= 2 * 0.15
    assert all(agent.startswith("pyengine/") for agent in site.agents)


@pytest.mark.parametrize(("status", "pages"), [(404, 1), (503, 0)])
def test_missing_robots_allow_and_failing_robots_forbid(tmp_path, status, pages):
    _, result, states = run(tmp_path, {"/robots.txt": (status, HTML, b"x"), "/": page()})
    assert result.pages == pages
    assert states["/"] == (("done", "") if pages else ("skipped", "robots.txt unreachable"))


def test_retries_end_in_success_or_in_a_reason(tmp_path):
    def busy(times):
        return (429, HTML | {"Retry-After": "1"}, b"") if times == 1 else page(text="now")

    def flaky(times):
        return (500, HTML, b"") if times <= 2 else page(text="up")

    started = time.monotonic()
    site, result, states = run(tmp_path, {
        "/": page("/busy", "/flaky", "/dead", "/gone"), "/busy": busy, "/flaky": flaky,
        "/dead": (503, HTML, b""), "/gone": (410, HTML, b""),
    })  # fmt: skip
    assert states["/busy"] == states["/flaky"] == ("done", "")
    assert states["/dead"] == ("failed", "HTTP 503") and site.asked.count("/dead") == 4
    assert states["/gone"] == ("failed", "HTTP 410") and site.asked.count("/gone") == 1
    assert time.monotonic() - started >= 1.0  # Retry-After was waited for


def test_redirects_hop_by_hop(tmp_path):
    def to(where, status=302):
        return status, {"Location": where}, b""

    with serve({"/secret": page(text="inside")}) as inside:
        answers = {
            "/": page("/loop/a", "/inner", "/meta", "/file", "/far/0", "/ok"),
            "/loop/a": to("/loop/b"), "/loop/b": to("/loop/a", 301),
            "/inner": to(inside.base + "/secret"), "/meta": to("http://169.254.169.254/latest/"),
            "/file": to("file:///etc/passwd"), "/ok": to("/target", 308), "/target": page(text="here"),
            "/robots.txt": (200, {"Content-Type": "text/plain"}, b"User-agent: *\nDisallow: /forbidden"),
        }  # fmt: skip
        answers |= {f"/far/{i}": to(f"/far/{i + 1}") for i in range(20)}
        site, result, states = run(tmp_path, answers)
        assert inside.asked == []  # another loopback port was not asked for, so it is not allowed
    assert result.complete and sorted(stored(tmp_path)) == ["/", "/target"]
    assert states[inside.base + "/secret"] == ("skipped", "private address")
    assert states["http://169.254.169.254/latest/"] == ("skipped", "private address")
    assert states["/file"] == ("skipped", "redirect to no web address")
    assert states["/far/5"] == ("skipped", "too many redirects") and "/far/7" not in site.asked


def test_private_addresses_are_refused_unless_asked_for(tmp_path):
    answers = {"/": page()}
    site, result, states = run(tmp_path, answers, CrawlConfig(delay=0))
    assert result.pages == 0 and site.asked == []
    assert states["/"] == ("skipped", "private address")
    with serve(answers) as site:  # a name that resolves to a private address
        port = urlsplit(site.base).port
        result = crawl([f"http://localhost:{port}/"], tmp_path / "name", CrawlConfig(delay=0, retries=0))
        assert result.pages == 0 and site.asked == []


def test_what_was_not_let_in_or_not_up_is_asked_again_by_another_run(tmp_path):
    with serve({"/": page()}) as site:
        refused = crawl([site.base + "/"], tmp_path, CrawlConfig(delay=0))
        with pytest.raises(UserError, match=r"not one page could be read: private address; --allow lets in"):
            check_read(refused, site.base, "--allow")
        assert crawl([site.base + "/"], tmp_path, FAST).pages == 1
    answers = {"/robots.txt": (503, HTML, b""), "/": page()}
    with serve(answers) as site:
        silent = crawl([site.base + "/"], tmp_path / "down", replace(FAST, retries=0))
        with pytest.raises(UserError, match="not one page could be read: robots.txt unreachable$"):
            check_read(silent, site.base, "--allow")
        nothing = replace(silent, stopped="max_seconds", counts=[{"count": 2, "reason": "", "status": 0}])
        with pytest.raises(UserError, match="not one page was read; stopped by max_seconds$"):
            check_read(nothing, site.base, "--allow")
        lost = replace(silent, counts=[*nothing.counts, {"count": 1, "reason": "HTTP 404", "status": 404}])
        with pytest.raises(UserError, match="not one page could be read: HTTP 404$"):
            check_read(lost, site.base, "--allow")
        answers["/robots.txt"] = (404, HTML, b"")
        check_read(crawl([site.base + "/"], tmp_path / "down", FAST), site.base, "--allow")


def test_sizes_types_and_bombs(tmp_path):
    bomb = gzip.compress(b"<p>again and again</p>" * 2_000_000)
    text = b"<p>" + b"some honest text " * 1000
    site, result, states = run(tmp_path, {
        "/": page("/huge", "/bomb", "/zipped", "/broken", "/photo", "/notype", "/empty"),
        "/huge": (200, HTML, b"<p>" + b"x y " * 400_000),
        "/bomb": (200, HTML | {"Content-Encoding": "gzip"}, bomb),
        "/zipped": (200, HTML | {"Content-Encoding": "gzip"}, gzip.compress(text)),
        "/broken": (200, HTML | {"Content-Encoding": "gzip"}, gzip.compress(text)[:60] + b"garbage"),
        "/photo": (200, {"Content-Type": "image/png"}, b"\x89PNG"),
        "/notype": (200, {}, b"<p>I do not say what I am"), "/empty": (200, HTML, b""),
    }, CrawlConfig(delay=0, allow_private=True, max_page_bytes=1 << 20))  # fmt: skip
    assert states["/huge"] == ("done", "cut at the size limit")
    assert states["/bomb"] == ("skipped", "decompression bomb")
    assert states["/photo"] == ("skipped", "type image/png")
    raw = {urlsplit(raw.url).path: raw for raw in read_documents(tmp_path)}
    assert len(raw["/huge"].data) == 1 << 20 and raw["/huge"].truncated
    assert raw["/zipped"].data == text
    assert set(raw) == {"/", "/huge", "/zipped", "/broken", "/notype", "/empty"}


def test_traps_end(tmp_path):
    class Endless(dict):
        def get(self, path, default=None):
            parts = urlsplit(path)
            steps = parts.path.split("/")
            if parts.path.startswith("/calendar/"):
                month = int(steps[2])
                return page(f"/calendar/{month + 1}", f"/calendar/{month + 2}?day=3", text="Nothing planned.")
            if parts.path.startswith("/deep"):
                return page(parts.path.rstrip("/") + "/deep/")
            if parts.path == "/sort":
                return page(*(f"/sort?{parts.query}&k{i}=1" for i in range(9)), text=parts.query)
            if parts.path.startswith("/story/"):  # numbered, but every one is different
                return page(text=" ".join(chr(97 + int(c)) * 3 for c in steps[2]))
            return super().get(path, default)

    stories = [f"/story/{i}" for i in range(100, 140)]
    config = CrawlConfig(delay=0, allow_private=True, max_pages=400)
    answers = Endless({"/": page("/calendar/1", "/deep/", "/sort?a=1", "/session?sid=0123456789", *stories)})
    site, result, states = run(tmp_path, answers, config)
    assert result.complete, "a trap was followed up to the limit on pages"
    assert sum(path.startswith("/calendar/") for path in site.asked) <= 40
    assert sum(path.startswith("/story/") for path in site.asked) == 40
    reasons = {reason for state, reason in states.values() if state == "skipped"}
    assert {"trap", "path repeats itself", "query explosion"} <= reasons
    assert "/session" in states  # without its session id


def test_limits_stop_and_the_same_call_goes_on(tmp_path):
    answers = {"/": page(*(f"/p{i}" for i in range(30)))}
    answers |= {f"/p{i}": page(text=i * "word ") for i in range(30)}
    with serve(answers) as site:
        seed = site.base + "/"
        first = crawl([seed], tmp_path, CrawlConfig(delay=0, allow_private=True, max_pages=10))
        assert (first.pages, first.complete, first.stopped) == (10, False, "max_pages")
        second = crawl([seed], tmp_path, CrawlConfig(delay=0, allow_private=True, max_pages_per_host=20))
        assert (second.pages, second.complete) == (20, False)
        third = crawl([seed], tmp_path, FAST)
        assert (third.pages, third.complete) == (31, True)
        again = crawl([seed], tmp_path, FAST)
        assert (again.pages, len(again.warcs)) == (31, 3)  # a run that reads nothing leaves no file
        assert all(site.asked.count(path) == 1 for path in answers)
    assert sorted(stored(tmp_path)) == sorted(answers)


@pytest.mark.parametrize("what", ["records", "database"])
def test_a_full_disk_names_its_file_and_the_same_call_goes_on(tmp_path, monkeypatch, what):
    answers = {"/": page(*(f"/p{i}" for i in range(150)))}
    answers |= {f"/p{i}": page(text=i * "word ") for i in range(150)}
    commits = iter(range(100))

    def full(self, real):
        if next(commits) == 1:
            if what == "records":
                raise OSError(errno.ENOSPC, "No space left on device", str(self.path))
            raise sqlite3.OperationalError("database or disk is full")
        return real(self)

    kind, name = (WarcFile, "sync") if what == "records" else (Frontier, "commit")
    real = getattr(kind, name)
    monkeypatch.setattr(kind, name, lambda self: full(self, real))
    with serve(answers) as site:
        seed = site.base + "/"
        with pytest.raises(OSError) as caught:
            crawl([seed], tmp_path, FAST)
        wanted = "crawl-00000.warc.gz" if what == "records" else "frontier.sqlite"
        assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / wanted)
        done = crawl([seed], tmp_path, FAST)
    assert (done.pages, done.complete) == (151, True)
    assert sorted(stored(tmp_path)) == sorted(answers)


def test_depth_nofollow_and_sitemaps(tmp_path):
    def sitemap(*urls):
        return 200, {"Content-Type": "application/xml"}, "".join(f"<loc>{u}</loc>" for u in urls).encode()

    answers = {
        "/": page("/1", "/quiet", "/tagged"), "/1": page("/2"), "/2": page("/3"), "/3": page(),
        "/quiet": page("/hidden-a", head='<meta name="ROBOTS" content="noindex, nofollow">'),
        "/tagged": (200, HTML | {"X-Robots-Tag": "pyengine: nofollow"}, b"<a href=/hidden-b>b</a>"),
        "/hidden-a": page(), "/hidden-b": page(), "/orphan": page(text="only in the sitemap"),
    }  # fmt: skip
    with serve(answers) as site:
        answers["/robots.txt"] = (
            200,
            {"Content-Type": "text/plain"},
            f"Sitemap: {site.base}/index.xml".encode(),
        )
        index = sitemap(f"{site.base}/map.xml.gz")
        answers["/index.xml"] = (200, index[1], b"<sitemapindex>" + index[2])
        zipped = gzip.compress(sitemap(f"{site.base}/orphan")[2])
        answers["/map.xml.gz"] = (200, {"Content-Type": "application/gzip"}, zipped)
        crawl([site.base + "/"], tmp_path, CrawlConfig(delay=0, allow_private=True, max_depth=2))
    assert sorted(stored(tmp_path)) == ["/", "/1", "/2", "/orphan", "/quiet", "/tagged"]


def test_two_hosts_and_scope(tmp_path):
    with serve({"/": page(text="other")}) as other, serve({}) as site:
        site.answers["/"] = page(other.base + "/")
        alone = crawl([site.base + "/"], tmp_path / "a", FAST)
        both = CrawlConfig(delay=0, allow_private=True, hosts=(other.base,))
        assert alone.pages == 1 and crawl([site.base + "/"], tmp_path / "b", both).pages == 2


def test_mistakes_are_told_in_one_sentence(tmp_path):
    with pytest.raises(UserError, match="not a web address"):
        crawl(["ftp://example.org"], tmp_path)
    with pytest.raises(UserError, match="scope"):
        crawl(["http://example.org"], tmp_path, CrawlConfig(scope="planet"))


def test_two_runs_store_the_same_pages_in_the_same_order(tmp_path):
    answers = {f"/{i}": page(f"/{(i * 7) % 60}", f"/{(i + 5) % 60}", text=i * "on ") for i in range(60)}
    orders = []
    for name in ("a", "b"):
        with serve(answers) as site:
            crawl([site.base + "/1"], tmp_path / name, FAST)
        orders.append(stored(tmp_path / name))
    assert orders[0] == orders[1] and len(orders[0]) > 40
