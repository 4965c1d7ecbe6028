"""The site's pages hold what their truth says, and the server behaves as crawlers meet it in the wild."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from email.utils import parsedate_to_datetime
from html.parser import HTMLParser

import httpx
import pytest

from pyengine.errors import UserError
from pyengine.world import World, WorldConfig, serve
from pyengine.world.export import write_world
from pyengine.world.problems import KINDS
from pyengine.world.server import HUGE_BYTES, Request


@pytest.fixture(scope="module")
def world() -> World:
    return World(WorldConfig.tiny())


@pytest.fixture(scope="module")
def site(world):
    log: list[Request] = []
    with serve(world, crawl_delay=0.5, log=log) as base, httpx.Client(base_url=base) as client:
        yield client, log


class Words(HTMLParser):
    """All text of a page outside script and style, as words."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self._skip = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self._skip = tag in ("script", "style")

    def handle_endtag(self, tag):
        self._skip = False

    def handle_data(self, data):
        if not self._skip:
            self.words += data.split()


def decode(page) -> str:
    """The body by the order of authority: mark, header, meta, UTF-8, Latin-1."""
    if page.body.startswith(b"\xff\xfe"):
        return page.body.decode("utf-16")
    if "charset=" in page.content_type:
        return page.body.decode(page.content_type.split("charset=")[1])
    if b'charset="iso-8859-1"' in page.body:
        return page.body.decode("latin-1")
    try:
        return page.body.decode("utf-8-sig")
    except UnicodeDecodeError:
        return page.body.decode("latin-1")


def test_every_page_contains_its_clean_text(world):
    for page in world.pages:
        if page.text:
            shown = Counter(Words(decode(page)).words)
            missing = Counter(page.text.split()) - shown
            assert not missing, (page.path, page.look, missing)


def test_addresses_are_unique_and_truth_is_found_by_url(world):
    for later in (False, True):
        paths = Counter(page.path for page in world.pages if later or not page.later)
        assert set(paths.values()) <= ({1, 2} if later else {1})  # the home page has a later edition
    page = next(page for page in world.pages if page.kind == "essay")
    assert world.truth(f"http://127.0.0.1:99{page.path}?utm_source=index#top") is page
    assert world.truth("http://127.0.0.1/nowhere.html") is None


def test_the_site_holds_every_difficulty(world):
    fates = Counter(page.fate for page in world.pages)
    for fate in ("keep", "duplicate", "language", "quality", "soft-404", "closed", "noindex"):
        assert fates[fate] >= 8, fate
    assert {page.lang for page in world.pages} == {"en", "de", "fr", "es"}
    looks = Counter(page.look for page in world.pages if page.look)
    assert len(looks) == 8
    assert any(page.content_type.startswith("application/xhtml+xml") for page in world.pages)
    assert any(page.unseen for page in world.pages) and not all(
        page.unseen for page in world.pages if page.look
    )


def test_private_data_is_in_the_text(world):
    notices = [page for page in world.pages if page.kind == "notice"]
    for page in notices:
        assert len(page.private) == 3 and all(text in page.text for text in page.private)
        assert any("@" in text for text in page.private)


def test_copies_are_near_their_originals(world):
    def shingles(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}

    copies = [page for page in world.pages if page.duplicate_of]
    assert {page.near for page in copies} == {True, False}
    for page in copies:
        original = shingles(world.truth(page.duplicate_of).text)
        copy = shingles(page.text)
        alike = len(copy & original) / len(copy | original)
        assert alike == 1 if not page.near else 0.75 <= alike < 1, (page.path, alike)


def test_different_documents_are_no_near_duplicates(world):
    seen: dict[str, set[tuple[str, ...]]] = {}
    for document in world.documents:
        words = document.text.split()
        mine = {tuple(words[i : i + 5]) for i in range(len(words) - 4)}
        for other, theirs in seen.items():
            assert len(mine & theirs) < 0.5 * len(mine | theirs), (document.id, other)
        seen[document.id] = mine


DIGEST = """
import hashlib
from pyengine.world import World, WorldConfig
digest = hashlib.sha256()
for page in World(WorldConfig.tiny()).pages:
    digest.update(repr(page).encode())
print(digest.hexdigest())
"""


def test_pages_are_the_same_in_every_process_and_python(world):
    mine = hashlib.sha256()
    for page in world.pages:
        mine.update(repr(page).encode())
    pythons = [sys.executable, *(f"python3.{minor}" for minor in range(10, 15))]
    digests = {}
    for hashseed, python in enumerate(pythons):
        environment = {**os.environ, "PYTHONHASHSEED": str(hashseed), "PYTHONPATH": os.getcwd()}
        if shutil.which(python):  # the world needs the standard library alone, so any other Python will do
            run = subprocess.run([python, "-c", DIGEST], env=environment, text=True, capture_output=True)
            if run.returncode == 0:  # a stub of a version manager may stand for a Python that is not there
                digests[python] = run.stdout.strip()
    assert sys.executable in digests and set(digests.values()) == {mine.hexdigest()}, digests


def test_export_holds_site_truth_and_data(world, tmp_path):
    folder = tmp_path / "world"
    count = write_world(world, folder, problems=5)
    truth = [json.loads(line) for line in (folder / "truth.jsonl").read_text().splitlines()]
    assert len(truth) == count
    page = next(page for page in truth if page["kind"] == "essay")
    assert (folder / "site" / page["path"].lstrip("/")).read_bytes() == world.truth(page["path"]).body
    for line in (folder / "facts-known-test.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert row["answer"] in row["passage"]
    assert len((folder / "problems-test.jsonl").read_text().splitlines()) == 5 * len(KINDS)
    with pytest.raises(UserError, match="exists already"):
        write_world(world, folder)


def test_command_line_shows_the_world():
    sizes = ["--config.people", "4", "--config.passages", "1", "--config.arithmetic-pages", "3"]
    command = [sys.executable, "-m", "pyengine.world", "--show", *sizes]
    assert "== biography" in subprocess.check_output(command, text=True)
    idle = subprocess.run(command[:3], capture_output=True, text=True)
    assert idle.returncode == 1 and idle.stderr.startswith("error: nothing to do")


# -- the server


def test_pages_are_reachable_by_links_and_orphans_by_the_sitemap(world, site):
    client, _ = site
    seen, frontier = {"/"}, ["/"]
    while frontier:
        page = world.truth(frontier.pop())
        if page is None or "html" not in page.content_type:
            continue
        for address in re.findall(r'href="([^"]*)"', decode(page), re.IGNORECASE):
            path = re.split("[#?]", address)[0].replace("/./", "/")
            if path.startswith("/") and path not in seen:
                seen.add(path)
                frontier.append(path)
    listed = {page.path for page in world.pages if page.fate == "keep" and not page.later}
    orphans = listed - seen
    assert orphans and all(path.startswith("/travel/") for path in orphans)
    locations = re.findall(r"<loc>(.*?)</loc>", client.get("/sitemap.xml").text)
    assert {httpx.URL(location).path for location in locations} == listed


def test_robots_closes_a_folder_and_asks_for_a_delay(world, site):
    protego = pytest.importorskip("protego")
    client, _ = site
    robots = protego.Protego.parse(client.get("/robots.txt").text)
    assert robots.crawl_delay("anybot") == 0.5
    for page in world.pages:
        if page.status == 200 and not page.later:
            assert robots.can_fetch(str(client.base_url.join(page.path)), "anybot") == (page.fate != "closed")
    assert not robots.can_fetch(f"{client.base_url}people/x.html?action=print", "anybot")
    assert not robots.can_fetch(str(client.base_url), "greedybot")
    assert all(str(client.base_url) in url for url in robots.sitemaps)


def test_pages_are_served_byte_for_byte(world, site):
    client, log = site
    for page in [p for p in world.pages if p.kind in ("travel", "noindex", "biography") and not p.later][:40]:
        reply = client.get(page.path)
        assert parsedate_to_datetime(reply.headers["last-modified"]).date().isoformat() == page.date
        assert reply.content == page.body and reply.headers["content-type"] == page.content_type
        assert client.get(page.path, headers={"If-None-Match": reply.headers["etag"]}).status_code == 304
    assert log[-1].status == 304 and log[-1].agent.startswith("python-httpx")


def test_later_pages_exist_only_after_the_cutoff(world, site):
    client, _ = site
    later = next(page for page in world.pages if page.later and page.kind == "biography")
    assert client.get(later.path).status_code == 404
    assert "/later/" not in client.get("/").text
    with serve(world, published="later") as base:
        assert httpx.get(base + later.path).content == later.body
        assert "/later/" in httpx.get(base).text
        assert later.path in httpx.get(base + "/later/sitemap.xml").text


def test_troubles(site):
    client, _ = site
    assert [client.get("/flaky/page.html").status_code for _ in range(2)] == [500, 200]
    replies = [client.get("/busy/page.html") for _ in range(3)]
    assert [reply.status_code for reply in replies] == [429, 429, 200]
    assert replies[0].headers["retry-after"] == "1"
    assert client.get("/nowhere.html").status_code == 404
    start = time.monotonic()
    assert client.get("/slow/page.html").status_code == 200 and time.monotonic() - start >= 1
    with client.stream("GET", "/huge/page.html") as reply:
        assert int(reply.headers["content-length"]) == HUGE_BYTES
        assert len(next(reply.iter_bytes(10_000))) == 10_000
    with client.stream("GET", "/bomb/page.html") as reply:
        assert (
            int(reply.headers["content-length"]) < 2_000_000 and reply.headers["content-encoding"] == "gzip"
        )


def test_traps_have_no_end(site):
    client, _ = site
    path, seen = "/calendar/2024/1/", set()
    for _ in range(30):
        assert path not in seen
        seen.add(path)
        path = client.get(path).text.split('href="')[-1].split('"')[0]
    assert path == "/calendar/2026/7/"
    one, two = client.get("/session/enter").text, client.get("/session/enter?sid=1").text
    assert one.count("sid=") == 3 and one != two


def test_redirects(world, site):
    client, _ = site
    assert world.truth(client.get("/go/0", follow_redirects=True).url.path).fate == "keep"
    assert client.get("/chain/0", follow_redirects=True).status_code == 200
    assert client.get("/loop/a").headers["location"] == "/loop/b"
    assert client.get("/inside/metadata").headers["location"].startswith("http://169.254.")


def test_serve_names_a_wrong_argument(world):
    with pytest.raises(ValueError, match="published"), serve(world, published="now"):
        pass
