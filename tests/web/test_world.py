"""The closed world, crawled and cleaned like any site, and measured against its truth."""

import math

import pytest

from pyengine.web import CrawlConfig, clean, crawl
from pyengine.web.evaluate import measure, token_f1
from pyengine.world import World, WorldConfig, serve


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out, log = tmp_path_factory.mktemp("world"), []
    world = World(WorldConfig.tiny())
    with serve(world, log=log) as base:
        result = crawl([base + "/"], out, CrawlConfig(delay=0, allow_private=True, backoff=0.05))
    clean(out, out)
    return world, log, result, measure(out, out, [page for page in world.pages if not page.later]), out


def test_the_crawl_keeps_its_manners(run):
    world, log, result, *_ = run
    assert result.complete
    closed = {page.path for page in world.pages if page.fate == "closed"}
    asked = [request.path.split("?")[0] for request in log]
    assert closed and not closed.intersection(asked)
    assert sum(path.startswith("/calendar/") for path in asked) < 60
    assert all(asked.count(page.path) == 1 for page in world.pages if page.fate == "keep" and not page.later)


def test_the_gates_hold(run):
    numbers = run[3]
    assert numbers["pages_unseen"] >= 15 and numbers["f1_unseen"] >= 0.95 and numbers["f1"] >= 0.95
    assert numbers["f1_unseen"] >= numbers["plain_f1_unseen"]
    assert numbers["duplicates"] >= 8 and numbers["duplicates_found"] >= 0.95
    assert numbers["emails"] >= 8 and numbers["emails_masked"] == 1 and numbers["private_masked"] == 1
    assert numbers["good_pages_kept"] >= 0.97 and numbers["bad_pages_kept"] <= 2


def test_only_what_was_removed_as_a_duplicate_was_found(run, tmp_path):
    world, _, _, numbers, crawled = run
    pages = [page for page in world.pages if not page.later]
    for name in ("documents", "heldout", "removed"):
        text = (crawled / f"{name}.jsonl").read_text()
        (tmp_path / f"{name}.jsonl").write_text(text.replace('"step": "duplicate"', '"step": "c4"'))
    filtered = measure(crawled, tmp_path, pages)
    assert filtered["duplicates_found"] == 0 and filtered["duplicates"] == numbers["duplicates"]


def test_of_nothing_there_is_no_share(run):
    nothing = measure(run[4], run[4], [])
    assert nothing["duplicates"] == nothing["emails"] == nothing["good_pages"] == 0
    assert all(math.isnan(nothing[name]) for name in ("duplicates_found", "emails_masked", "good_pages_kept"))


def test_token_f1():
    assert token_f1("a b c", "a b c") == 1 and token_f1("a b", "c d") == 0
    assert token_f1("a a b", "a b b") == pytest.approx(2 / 3)
