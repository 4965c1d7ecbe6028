"""Cleaning as a whole: the account adds up, replay is byte-identical, duplicates never straddle the split."""

import hashlib
import json
import random
import subprocess
import sys
from dataclasses import replace

import pytest

from pyengine.errors import UserError
from pyengine.web import CleanConfig, CrawlConfig, FilterConfig, SearchIndex, clean, crawl
from pyengine.web.clean import read_jsonl
from tests.web.small_site import HTML, serve

WORDS = (
    "river town mill boat school garden road winter market bridge letter stone horse baker music field tower"
    " summer kitchen harbour window forest lantern brother teacher morning village captain orchard"
).split()


def story(seed: int, sentences: int = 8) -> str:
    rng = random.Random(seed)
    return " ".join(
        f"The {rng.choice(WORDS)} of the {rng.choice(WORDS)} and the {rng.choice(WORDS)}"
        f" that was {rng.choice(WORDS)} in {rng.randrange(1000)} have been with us." for _ in range(sentences)
    )  # fmt: skip


def html(title: str, text: str, head: str = "") -> bytes:
    nav = "<nav><a href=/>Home</a></nav><p>Motto of the house.</p>"
    body = f"{nav}<h1>{title}</h1><p>{text}</p>"
    return f"<html><head><title>{title}</title>{head}</head><body>{body}</body></html>".encode()


def site() -> dict[str, bytes]:
    pages = {f"story{i}": html(f"Story {i}", story(i)) for i in range(40)}
    for i in range(6):  # copies, every second one with a word changed; each after its original by spelling
        text = story(i) if i % 2 else story(i).replace("been", "stayed", 1)
        pages[f"xcopy{i}"] = html(f"Story {i}", text)
    pages["binary"] = b"\x89PNG\r\n" + bytes(range(256)) * 20
    pages["empty"] = b""
    pages["german"] = html(
        "Seite", "Der alte M\u00fcller kauft am Morgen frisches Brot und geht dann nach Hause. " * 3
    )
    pages["mail"] = html("Mail", story(99) + " Write to jo.doe@post.example or call +44 20 7946 0123.")
    pages["noindex"] = html("Draft", story(98), "<meta name=robots content=noindex>")
    return pages


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("site")
    for name, body in site().items():
        (path / f"{name}.html").write_bytes(body)
    return path


CONFIG = CleanConfig(heldout=0.3, task_pages=16)


@pytest.fixture(scope="module")
def cleaned(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return out, clean(folder, out, CONFIG)


def rows(out, name):
    return list(read_jsonl(out / f"{name}.jsonl"))


def test_good_pages_stay_and_bad_ones_go_with_a_reason(cleaned):
    out, _ = cleaned
    kept = {row["url"].split("/")[-1] for name in ("documents", "heldout") for row in rows(out, name)}
    assert kept == {f"story{i}.html" for i in range(40)} | {"mail.html"}
    removed = {row["url"].split("/")[-1]: (row["step"], row["reason"]) for row in rows(out, "removed")}
    assert removed["binary.html"] == ("extract", "binary") and removed["empty.html"] == ("extract", "empty")
    assert removed["german.html"] == ("language", "language de") and removed["noindex.html"] == (
        "extract",
        "noindex",
    )
    assert removed["xcopy0.html"] == ("duplicate", "near") and removed["xcopy1.html"] == (
        "duplicate",
        "exact",
    )
    original = next(row for row in rows(out, "removed") if row["url"].endswith("xcopy1.html"))["duplicate_of"]
    assert original.endswith("/story1.html")


def test_a_page_that_hangs_is_set_aside(tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(4):
        (tmp_path / "in" / f"{i}.html").write_bytes(html(f"Story {i}", story(i)))
    (tmp_path / "in" / "hang.html").write_bytes(b"<div>" * 60_000 + b"deep" + b"</div>" * 60_000)
    stats = clean(tmp_path / "in", tmp_path / "out", CleanConfig(heldout=0, workers=1, cpu_seconds=0.5))
    assert stats["documents"]["count"] == 4
    assert [(row["step"], row["reason"]) for row in rows(tmp_path / "out", "removed")] == [
        ("extract", "took more than 0.5 s")
    ]


def test_documents(cleaned):
    out, _ = cleaned
    documents = rows(out, "documents") + rows(out, "heldout")
    mail = next(row for row in documents if row["title"] == "Mail")
    assert "[email]" in mail["text"] and "[phone]" in mail["text"] and "7946" not in mail["text"]
    assert set(mail) == {"id", "url", "title", "date", "lang", "text"}
    assert mail["text"].startswith("Mail\nThe ") and "Motto" not in mail["text"] and mail["lang"] == "en"
    assert len({row["id"] for row in documents}) == len(documents)
    urls = [row["url"] for row in rows(out, "documents")]
    assert urls == sorted(urls)


def test_the_account_adds_up(cleaned):
    out, stats = cleaned
    steps = stats["steps"]
    assert steps[0]["pages_in"] == len(site())
    for before, after in zip(steps, steps[1:], strict=False):
        assert before["pages_out"] == after["pages_in"] and before["bytes_out"] == after["bytes_in"]
    for step in steps:
        assert step["pages_in"] - step["pages_out"] == sum(reason["pages"] for reason in step["reasons"])
        assert all(1 <= len(reason["examples"]) <= 5 for reason in step["reasons"])
    assert steps[-1]["pages_out"] == stats["documents"]["count"] + stats["heldout"]["count"]
    assert stats["edits"]["masked"] == {"email": 1, "phone": 1} and stats["edits"]["lines_removed"] >= 40
    assert json.loads(json.dumps(stats)) == json.loads((out / "stats.json").read_text())


def test_held_out_documents(cleaned, folder, tmp_path):
    out, stats = cleaned
    assert 3 <= stats["heldout"]["count"] <= 25
    # with duplicates left in, they stand on the side of the text they copy
    config = replace(CONFIG, dedup=replace(CONFIG.dedup, exact=False, near=False), index=False)
    clean(folder, tmp_path / "all", config)
    sides = {row["url"]: name for name in ("documents", "heldout") for row in rows(tmp_path / "all", name)}
    for i in range(6):
        assert sides[f"file:///xcopy{i}.html"] == sides[f"file:///story{i}.html"]
    before = {row["id"] for row in rows(out, "heldout")}
    clean(folder, tmp_path / "other", replace(CONFIG, seed=7, index=False))
    assert before != {row["id"] for row in rows(tmp_path / "other", "heldout")}


def test_output_does_not_depend_on_workers_or_tasks(cleaned, folder, tmp_path):
    out, _ = cleaned
    clean(folder, tmp_path, replace(CONFIG, workers=1, task_pages=7))
    for name in ("documents", "heldout", "removed"):
        assert (out / f"{name}.jsonl").read_bytes() == (tmp_path / f"{name}.jsonl").read_bytes()


def test_replay_from_warc_is_byte_identical(tmp_path):
    answers = {f"/{name}": (200, HTML, body) for name, body in site().items() if name != "binary"}
    links = "".join(f'<a href="{path}">x</a>' for path in answers)
    answers["/"] = (200, HTML, links.encode())
    with serve(answers) as server:
        crawl([server.base + "/"], tmp_path / "crawl", CrawlConfig(delay=0, allow_private=True))
    digests = []
    for name in ("a", "b"):
        clean(tmp_path / "crawl", tmp_path / name, CONFIG)
        digests.append([hashlib.sha256((tmp_path / name / f).read_bytes()).hexdigest()
                        for f in ("documents.jsonl", "heldout.jsonl", "removed.jsonl",
                        "stats.json")])  # fmt: skip
    assert digests[0] == digests[1]
    assert len(rows(tmp_path / "a", "documents")) > 20


def test_later_pages_join_the_index_only(cleaned, folder, tmp_path):
    later = {
        "id": "z",
        "url": "http://later/",
        "title": "Zimmer Dorfen",
        "text": "Zimmer Dorfen\nPlays the zither.",
    }
    (tmp_path / "later.jsonl").write_text(json.dumps(later) + "\n")
    clean(folder, tmp_path / "out", CONFIG, also_index=[tmp_path / "later.jsonl"])
    index = SearchIndex(tmp_path / "out" / "index.sqlite")
    assert index.search("zither")[0].url == "http://later/"
    assert index.search("jo.doe@post.example") == [] or "jo.doe" not in index.search("jo doe post")[0].text
    assert all(row["url"] != "http://later/" for row in rows(tmp_path / "out", "documents"))


def test_rules_for_the_open_web_are_stricter(folder, tmp_path):
    strict = clean(folder, tmp_path, replace(CONFIG, filters=FilterConfig(), index=False))
    assert strict["documents"]["count"] + strict["heldout"]["count"] <= 41


def test_nothing_to_read_is_said_so(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"no": 1}\n')
    with pytest.raises(UserError, match='no pages in it .*no "text" field'):
        clean(tmp_path / "x.jsonl", tmp_path / "out")


def test_the_command_line(folder, tmp_path):
    command = [sys.executable, "-m", "pyengine.web", "clean", str(folder), "--out", str(tmp_path / "o")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "duplicate" in done.stdout and "documents:" in done.stdout
    bad = subprocess.run([*command, "--without", "taste"], capture_output=True, text=True)
    assert bad.returncode == 1 and bad.stderr.startswith("error: --without taste: no such filter")
