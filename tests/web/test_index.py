"""The search index: finds, ranks, cuts, and takes any text for a query."""

import errno
import sqlite3
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyengine.errors import UserError
from pyengine.web import SearchIndex
from pyengine.web.index import passages

DOCUMENTS = [
    {"url": "u1", "title": "Ada Brell",
     "text": "Ada Brell\nAda Brell plays the oboe.\nShe was born in Dale."},
    {"url": "u2", "title": "Bo Tamm",
     "text": "Bo Tamm\nBo Tamm plays the flute, never the oboe.\nHe lives in Dale."},
    {"url": "u3", "title": "Long",
     "text": "Long\n" + "\n".join(f"Line {i} speaks of rivers and boats." for i in range(90))
     + "\nThe caf\u00e9 of Zora is open."},
]  # fmt: skip


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    path = tmp_path_factory.mktemp("index") / "index.sqlite"
    assert SearchIndex.build(path, DOCUMENTS) > 8
    return SearchIndex(path)


def test_the_right_passage_comes_first(index):
    hit = index.search("What does Ada Brell play?", k=1)[0]
    assert (hit.url, hit.title) == ("u1", "Ada Brell") and "oboe" in hit.text
    assert index.search("the cafe of zora")[0].url == "u3"  # accents and case do not matter
    hits = index.search("who plays the oboe", k=5)
    assert {hit.url for hit in hits} == {"u1", "u2"} and hits[0].score >= hits[1].score


def test_limits(index):
    assert len(index.search("rivers boats", k=2)) == 2
    assert all(len(hit.text) <= 50 for hit in index.search("rivers", k=5, max_chars=50))
    assert index.search("rivers", k=0) == [] and index.search("") == [] and index.search("?!") == []
    assert index.search("nosuchword") == []


def test_a_name_is_found_whole_or_not_at_all(index):
    assert index.search("Ada Brell")[0].url == "u1"
    assert index.search("Ada Tamm") == []
    assert index.search("Which instrument does Ada Tamm play?")  # of a longer question any word may


@given(st.text(max_size=80))
def test_any_query_is_safe(index, query):
    index.search(query)


@pytest.mark.parametrize("query", [
    '"', "oboe OR", "NEAR(", "title:oboe", "a* AND NOT b", "'; DROP TABLE passages; --", "\x00",
    "\ud800 oboe", "x" * 99_999,
])  # fmt: skip
def test_query_syntax_is_only_words(index, query):
    index.search(query)
    assert index.search("oboe")


def test_passages_hold_every_line_once_and_are_short():
    text = DOCUMENTS[2]["text"]
    found = list(passages(text, "Long"))
    assert "\n".join(found) == text.split("\n", 1)[1]
    assert all(len(passage.split()) <= 80 for passage in found)
    assert (
        list(passages("word " * 300, "")) and max(len(p.split()) for p in passages("word " * 300, "")) <= 80
    )


def test_a_full_disk_names_the_index_and_leaves_nothing(tmp_path, monkeypatch):
    real = sqlite3.connect

    def small(*arguments, **options):
        db = real(*arguments, **options)
        db.execute("PRAGMA max_page_count = 12")
        return db

    monkeypatch.setattr(sqlite3, "connect", small)
    with pytest.raises(OSError, match="full") as caught:
        SearchIndex.build(tmp_path / "index.sqlite", DOCUMENTS * 50)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / "index.sqlite")
    assert list(tmp_path.iterdir()) == []


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(UserError, match="no search index"):
        SearchIndex(tmp_path / "none")
    (tmp_path / "bad").write_bytes(b"not a database, but long enough to be taken for one" * 50)
    with pytest.raises(UserError, match="not a search index"):
        SearchIndex(tmp_path / "bad")


def test_the_command_line_searches(index, tmp_path):
    SearchIndex.build(tmp_path / "i", DOCUMENTS)
    command = [sys.executable, "-m", "pyengine.web", "search", str(tmp_path / "i"), "Bo Tamm"]
    assert "flute" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    missing = subprocess.run([*command[:4], "nowhere", "x"], capture_output=True, text=True)
    assert (
        missing.returncode == 1
        and missing.stderr.startswith("error: nowhere")
        and "Traceback" not in missing.stderr
    )
