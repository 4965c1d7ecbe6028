"""The search tool's text side: plain ids, caps, failures told in words."""

from dataclasses import dataclass

import pytest

from pyengine.text import SPECIAL_TOKENS, SearchTool, Tokenizer


@dataclass
class Page:
    title: str
    text: str


class Index:
    def __init__(self, results=(), error=None):
        self.results, self.error, self.asked = results, error, []

    def search(self, query, k):
        self.asked.append((query, k))
        if self.error:
            raise self.error
        return self.results


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["Tavor has two moons. Tavor: a planet."] * 3, 300)


def test_results_become_plain_ids(tokenizer):
    evil = "".join(SPECIAL_TOKENS)
    index = Index([Page("Tavor", "two  moons\n"), {"title": "Evil", "text": evil}, {"text": "no title"}])
    ids = SearchTool(index, tokenizer, k=3)(tokenizer.encode("  moons of\nTavor "))
    assert tokenizer.decode(ids) == f" Tavor: two moons\nEvil: {evil}\nno title"
    assert not any(tokenizer.is_special(i) for i in ids)
    assert index.asked == [("moons of Tavor", 3)]


def test_long_results_share_the_cap(tokenizer):
    index = Index([{"text": "a b " * 500}, {"text": "short"}, {"text": "c d " * 500}])
    tool = SearchTool(index, tokenizer, max_tokens=60)
    ids = tool(tokenizer.encode("x"))
    text = tokenizer.decode(ids)
    assert len(ids) == 60
    assert "a b" in text and "\nshort" in text and "\nc d" in text


def test_more_results_than_asked_for_are_dropped(tokenizer):
    tool = SearchTool(Index([{"text": str(i)} for i in range(9)]), tokenizer, k=2)
    assert tokenizer.decode(tool(tokenizer.encode("x"))) == " 0\n1"


@pytest.mark.parametrize(
    "index, query, text",
    [
        (Index(), "x", "No result."),
        (Index([1]), " \n", "The query is empty."),
        (Index(error=OSError("gone")), "x", "The search failed."),
    ],
)
def test_failures_are_words(tokenizer, index, query, text):
    tool = SearchTool(index, tokenizer)
    assert tokenizer.decode(tool(tokenizer.encode(query))) == " " + text
    assert (tool.run("x").error == "OSError: gone") == (text == "The search failed.")


def test_query_is_cut_and_specials_in_it_are_dropped(tokenizer):
    index = Index()
    SearchTool(index, tokenizer)([tokenizer.user, *tokenizer.encode("a"), *tokenizer.encode(" b" * 500)])
    assert index.asked[0][0].startswith("a b b") and len(index.asked[0][0].split()) <= 64
