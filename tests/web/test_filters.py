"""Filters: each rule removes what it is for, says why, can be switched off, and leaves good pages alone."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyengine.web.filters import FILTERS, FilterConfig, Text, apply

GOOD = [
    "The old mill stands by the river, and it has been there for three hundred years.",
    "It was built by a family of weavers who had come from the north with little more than a cart.",
    "For a long time the mill ground the corn of the whole valley, until the railway was opened.",
    "Today it is a museum, which is open from May to October, and children like the great wheel.",
    "Nobody knows what became of the last miller; some say that he went to sea.",
    "His house is still to be seen, and the garden behind it is kept by the school.",
]
WEB = FilterConfig()
SITE = FilterConfig.site()


def verdict(lines, config=WEB, title="The old mill", url="http://example.org/mill"):
    return apply(Text(url, title, lines), config)


@pytest.mark.parametrize("config", [WEB, SITE])
def test_a_good_page_is_kept(config):
    assert verdict(GOOD, config) is None


SHORT = [
    f"{a} {b} {c}."
    for a, b, c in zip(
        "Cats Dogs Hens Ants Bees Cows Owls Pigs Rats Bats Crabs Doves Eels Foxes Goats".split(),
        "eat chase fear carry watch follow guard meet visit leave love hear find hide count".split(),
        "mice sticks rain sand roses grass moons mud bread dusk shells hawks pools eggs hills".split(),
        strict=True,
    )
]

NO_STOP_WORDS = [
    "Apples grow where sunny gardens lie near rivers.",
    "Big red fruits ripen slowly, birds watch them closely.",
    "Children pick baskets full, mothers bake pies after lunch.",
    "Farmers sell crates, merchants pay coins, markets close late.",
    "Winter brings frost, trees sleep quietly, snow falls softly.",
    "Spring wakes roots, bees hum loudly, blossoms open again.",
    "Summer dries hay, storms pass overhead, cellars stay cool.",
]

CASES = [
    ("url", "blocked word", dict(lines=GOOD, url="http://casino.example/")),
    ("url", "blocked host", dict(lines=GOOD, url="http://www.bad.example/x")),
    ("soft_404", "error page", dict(lines=["Sorry, the page you want does not exist."], title="Oops")),
    ("language", "language de", dict(lines=["Der M\u00fcller kauft am Morgen Brot und geht heim."] * 4)),
    ("gopher_repetition", "repeated lines", dict(lines=GOOD + GOOD)),
    ("gopher_repetition", "top", dict(lines=["the best price of all is the best price of all, " * 12])),
    ("gopher_quality", "too few words", dict(lines=GOOD[:1])),
    ("gopher_quality", "too few stop words", dict(lines=NO_STOP_WORDS)),
    ("gopher_quality", "hashes", dict(lines=[line.replace(" ", " # ") for line in GOOD])),
    ("gopher_quality", "without a letter", dict(lines=[*GOOD, " ".join(map(str, range(1000, 1100)))])),
    ("c4", "lorem ipsum", dict(lines=[*GOOD, "Lorem ipsum dolor sit amet, consectetur adipiscing elit."])),
    ("c4", "curly bracket", dict(lines=[*GOOD, "function f() { return 1; }"])),
    ("c4", "too few sentences", dict(lines=[" ".join(GOOD).replace(".", ",").replace(";", ",")])),
    ("fineweb", "line ends", dict(lines=[line.rstrip(".") for line in GOOD])),
    ("fineweb", "short lines", dict(lines=[*GOOD, *SHORT])),
]  # fmt: skip


@pytest.mark.parametrize(("step", "reason", "page"), CASES, ids=[f"{c[0]}: {c[1]}" for c in CASES])
def test_each_rule_removes_and_can_be_switched_off(step, reason, page):
    config = FilterConfig(blocked_hosts=("bad.example",))
    found = verdict(config=config, **page)
    assert found and found[0] == step and reason in found[1]
    after = verdict(config=config.without(step), **page)
    assert after is None or after[0] != step
    assert verdict(config=config.without(*(name for name, _ in FILTERS)), **page) is None


def test_c4_takes_lines_out_but_never_the_title():
    text = Text("u", "Mill", [*GOOD, "Next", "This site uses cookies to make it better for you."])
    assert apply(text, WEB) is None
    assert text.lines == GOOD and text.text.startswith("Mill\n")


@pytest.mark.parametrize("lines", [
    ["Problem: Ada has 5 coins and buys 3 more.", "5 + 3 = 8", "Answer: 8",
     "Problem: Bo has 9 pens and loses 2 of them.",
     "9 - 2 = 7", "Answer: 7"],
    ["open(path, flags)", "Opens the file and gives a handle to it.", "if (x) { return -1; }",
     "See also: close, read, write"],
    ["Q: What does the miller play?", "A: The miller plays the flute.", "Q: Where was the miller born?",
     "A: The miller was born in Dale."],
])  # fmt: skip
def test_sums_code_and_questions_are_content_on_a_chosen_site(lines):
    assert verdict(lines, SITE) is None


def test_error_words_in_a_real_page_do_no_harm():
    lines = ["The error 404 means that a page was not found on the server."] + GOOD * 1
    assert verdict(lines, SITE, title="HTTP status codes") is None


@settings(deadline=None, max_examples=80)
@given(st.lists(st.text(max_size=80), max_size=12), st.text(max_size=20))
def test_any_text_gets_a_verdict(lines, title):
    for config in (WEB, SITE):
        found = apply(Text("http://h/", title, lines), config)
        assert found is None or (found[0] in dict(FILTERS) and found[1])
