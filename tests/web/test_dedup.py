"""Duplicates: near copies are found, different texts are not, the earliest stays; personal data is masked."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyengine.web.dedup import DedupConfig, duplicates, exact_key, signature
from pyengine.web.pii import EMAIL, IP, PHONE, PiiConfig, mask

CONFIG = DedupConfig()
WORDS = [f"{a}{b}" for a in "ba de fi go lu ma ne po ra su".split() for b in "lin tor mak vess dan".split()]


def found(texts, config=CONFIG):
    return duplicates([exact_key(t) for t in texts], [signature(t, config) for t in texts], config)


def text(rng, words=150):
    return " ".join(rng.choice(WORDS) for _ in range(words))


def test_exact_copies_differ_in_space_and_case_at_most():
    assert found(["A b c d e f g.", "a  B c\nd e f g."]) == [None, (0, "exact")]


def test_near_copies_are_found_and_others_are_not():
    rng = random.Random(1)
    originals = [text(rng) for _ in range(200)]
    copies = []
    for original in originals:
        words = original.split()
        for _ in range(2):  # 10 of some 146 shingles change
            words[rng.randrange(len(words))] = "changed"
        copies.append(" ".join(words))
    result = found(originals + copies)
    assert result[:200] == [None] * 200
    hits = [r for i, r in enumerate(result[200:]) if r == (i, "near")]
    assert len(hits) >= 0.95 * 200


def test_texts_that_share_a_passage_are_different():
    rng = random.Random(2)
    passage = text(rng, 60)
    assert found([f"{text(rng, 90)} {passage} {text(rng, 60)}" for _ in range(30)]) == [None] * 30


def test_switches():
    same = ["one two three four five six seven"] * 2
    assert found(same, DedupConfig(exact=False))[1] == (0, "near")
    assert found(same, DedupConfig(exact=False, near=False)) == [None, None]
    assert found(["", ""], CONFIG)[1] == (0, "exact")


@pytest.mark.parametrize(("raw", "masked"), [
    ("Write to ann.lee+news@post.example.org.", f"Write to {EMAIL}."),
    ("(jo@a.io), <x_y@sub.b-c.museum>", f"({EMAIL}), <{EMAIL}>"),
    ("ann [at] post [dot] example [dot] org", EMAIL),
    ("j\u00fcrgen@b\u00fccher.example", EMAIL),
    ("from 203.0.113.77 and 8.8.8.8!", f"from {IP} and {IP}!"),
    ("at 2001:db8::ff00:42:8329 now", f"at {IP} now"),
    ("Call +44 20 7946 0123 or (202) 555-0147.", f"Call {PHONE} or {PHONE}."),
    ("+1-415-555-0199, 415-555-0199", f"{PHONE}, {PHONE}"),
    ("Phone: 0161 496 0000", f"Phone: {PHONE}"),
])  # fmt: skip
def test_personal_data_is_masked(raw, masked):
    assert mask(raw, PiiConfig())[0] == masked


@pytest.mark.parametrize("raw", [
    "version 1.2.3.4 of it", "v10.0.19041.1", "Section 3.1.2.1", "Release 2.4.6.8", "127.0.0.1 and 0.0.0.0",
    "mask 255.255.255.0", "1.2.3.4.5", "300.1.2.3", "std::vector<int> a::b", "at 12:30:45", "2024-06-30",
    "1939-1945",
    "3 * 4 = 12 and 1,000,000", "ISBN 978-3-16-148410-0", "@decorator and a @ b", "5 + 3 = 8",
    "pages 100-250",
    "3.14159265", "room 555-0123", "http://host:8080/a",
])  # fmt: skip
def test_what_is_no_personal_data_stays(raw):
    assert mask(raw, PiiConfig()) == (raw, {})


def test_kinds_are_switched_apart():
    raw = "a@b.example 9.9.9.9 +44 20 7946 0123"
    assert mask(raw, PiiConfig(email=False))[0].startswith("a@b.example")
    assert "9.9.9.9" in mask(raw, PiiConfig(ip=False))[0]
    assert "7946" in mask(raw, PiiConfig(phone=False))[0]
    assert mask(raw, PiiConfig())[1] == {"email": 1, "ip": 1, "phone": 1}


part = st.text("abcdefgxyz0189", min_size=1, max_size=8)
name = st.lists(part, min_size=1, max_size=3).flatmap(
    lambda parts: st.sampled_from("._+-").map(lambda c: c.join(parts))
)
host = st.tuples(part, part, st.sampled_from(["org", "example", "co.uk", "museum"])).map(
    lambda p: f"{p[0]}-{p[1]}.{p[2]}"
)


@given(
    name,
    host,
    st.sampled_from(["", " ", "(", "'", ": ", "<", '"']),
    st.sampled_from([".", ",", ")", " ", "", ">"]),
)
def test_every_address_is_masked_whatever_stands_around_it(user, domain, before, after):
    assert mask(f"x {before}{user}@{domain}{after}", PiiConfig())[0] == f"x {before}{EMAIL}{after}"


@given(
    st.tuples(*[st.integers(0, 255)] * 4),
    st.sampled_from([" ", "(", "=", ","]),
    st.sampled_from([".", ",", ")", ":80"]),
)
def test_every_ip_is_masked(parts, before, after):
    if parts[0] in (0, 127, 255):
        return
    address = ".".join(map(str, parts))
    assert address not in mask(f"from{before}{address}{after} on", PiiConfig())[0]
