"""Extraction: charsets, main content, lines; and pages that are broken in every way."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyengine.web.extract import NotAPage, SiteLines, decode, extract, tidy

TEXT = "Caf\u00e9 na\u00efve \u2014 \u00a35 \u201cquoted\u201d"
BODY = "<p>The river runs through the town, and the people of it have lived with that for a long time.</p>"


@pytest.mark.parametrize(("data", "header"), [
    (TEXT.encode(), "text/html; charset=utf-8"),
    (TEXT.encode("cp1252"), 'text/html; charset="windows-1252"'),
    (TEXT.encode("cp1252"), "text/html; charset=iso-8859-1"),  # the web means windows-1252
    (b"\xef\xbb\xbf" + TEXT.encode(), "text/html; charset=iso-8859-1"),
    (b"\xff\xfe" + TEXT.encode("utf-16-le"), ""),
    (TEXT.encode("utf-16-be"), "text/html; charset=utf-16be"),
    (b"<meta charset=windows-1252>" + TEXT.encode("cp1252"), ""),
    (b'<meta http-equiv=Content-Type content="text/html; charset=windows-1252">' + TEXT.encode("cp1252"), ""),
    (b'<?xml version="1.0" encoding="windows-1252"?>' + TEXT.encode("cp1252"), ""),
    (TEXT.encode(), ""),
    (b"<meta charset=iso-8859-1>" + TEXT.encode(), ""),  # the page is wrong about itself
    (TEXT.encode(), "text/html; charset=latin-1"),  # the server is
    (TEXT.encode("cp1252"), "text/html; charset=utf-8"),
    (b"<meta charset=utf-16>" + TEXT.encode(), ""),
    (TEXT.encode(), "text/html; charset=no-such-charset"),
    (TEXT.encode("cp1252"), ""),
])  # fmt: skip
def test_charset_order(data, header):
    assert decode(data, header)[0].endswith(TEXT)


@pytest.mark.parametrize(
    ("text", "charset"),
    [
        (
            "\u0422\u0435\u043a\u0441\u0442 \u043d\u0430 \u0440\u0443\u0441\u0441\u043a\u043e\u043c. " * 20,
            "koi8-r",
        ),
        ("\u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3067\u3059\u3002" * 20, "shift_jis"),
    ],
)
def test_the_detector_has_the_last_word(text, charset):
    assert decode(text.encode(charset))[0] == text


def test_one_bad_byte_does_not_change_the_charset():
    data = (TEXT * 50).encode() + b"\xff" + TEXT.encode()
    assert decode(data)[0].count("\u00e9") == 51
    assert "\u00c3" not in decode(data, "text/html; charset=utf-8")[0]


@given(st.binary(max_size=300), st.sampled_from(["", "text/html; charset=utf-8", "text/html; charset=big5"]))
def test_any_bytes_decode(data, header):
    assert isinstance(decode(data, header)[0], str)


def test_main_content_lists_tables_and_code():
    page = extract(
        b"<html><head><title>Boats | The Site</title>"
        b"<meta property='article:published_time' content='2021-03-04'>"
        b"</head><body><nav><ul><li><a href=/>Home</a><li><a href=/b>B</a></ul></nav><main><h1>Boats"
        b"<a href=#x>\xc2\xb6</a></h1>"
        + BODY.encode()
        + b"<ul><li>one   thing<li>another <a href=/c>thing</a> to say"
        b"</ul><pre>\ndef f(x):\n    return   x\n</pre><table><tr><td>a<td>b</table></main>"
        b"<footer>Copyright</footer></body></html>",
        "text/html; charset=utf-8",
    )
    assert page.title == "Boats" and page.date == "2021-03-04"
    assert page.lines[1:3] == ["one thing", "another thing to say"]
    assert page.lines[3:5] == ["def f(x):", "    return   x"]
    assert page.lines[5] == "a b"
    assert "Home" not in page.text and "Copyright" not in page.text and "\u00b6" not in page.text


def test_title_without_heading_loses_the_name_of_the_site():
    page = extract(f"<title>Old boats - The Harbour Gazette</title>{BODY}".encode())
    assert page.title == "Old boats" and len(page.lines) == 1


def test_trafilatura_steps_in_where_the_main_text_is_short():
    rows = "".join(
        f"<li>The {w} of the harbour is kept here, dry and clean.</li>" for w in "rope sail oar net".split()
    )
    page = extract(
        f"<div class=sidebar><h2>What is kept</h2><div class=comments>{BODY * 8}</div></div>{rows}".encode()
    )
    assert sum(len(line.split()) for line in page.lines) >= 40


def test_noindex_and_canonical():
    html = f"<link rel=canonical href=/real><meta name=robots content='noindex,follow'>{BODY}".encode()
    page = extract(html)
    assert page.noindex and page.canonical == "/real"
    assert extract(BODY.encode(), robots_tags=("googlebot: noindex",)).noindex is False
    assert extract(BODY.encode(), robots_tags=("pyengine: none",)).noindex is True


def test_plain_text_passes_through():
    page = extract(b"\nA title\n\n  and   a line <b>with</b> signs \n\n", "text/plain")
    assert page.text == "A title\n\n  and   a line <b>with</b> signs" and page.extractor == "plain"


def test_navigation_bars_and_runs_of_links_go():
    bar = "<p><a href=a accesskey=p>Zur\u00fcck</a> Chapter 4. Boats <a href=b accesskey=n>Weiter</a></p>"
    toc = "".join(f"<dd><a href=s{i}>Section {i} of it</a></dd>" for i in range(6))
    page = extract(
        f"<body><p>The Big Book</p>{bar}<h1>Oars</h1><dl>{toc}</dl>{BODY}{bar}<p>Masts Up Sails</p>".encode()
    )
    assert page.title == "Oars" and page.lines == [BODY[3:-4]]


@pytest.mark.parametrize(("data", "reason"), [
    (b"", "empty"), (b" \n\t ", "empty"), (random.Random(1).randbytes(5000), "binary"),
    (b"\x89PNG\r\n\x1a\n" + bytes(3000), "binary"), (b"%PDF-1.4\n" + random.Random(2).randbytes(3000),
    "binary"),
])  # fmt: skip
def test_what_is_no_page(data, reason):
    with pytest.raises(NotAPage, match=reason):
        extract(data, "text/html")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([
    "<p>", "</p>", "<div>", "</div>", "<ul>", "<li>", "</ul>", "<table>", "<tr>", "<td>", "</table>", "<pre>",
    "</pre>", "<h1>", "<a href=x>", "</a>", "<!--", "-->", "<script>", "</script>", "<body>", "</html>",
    "\x00",
    "text ", "more words here. ", "&amp;", "&#x110000;", "<", "\ue000", "\n", "<title>", "</title>", "<svg>",
]), max_size=40))  # fmt: skip
def test_any_soup_of_tags(parts):
    try:
        page = extract("".join(["<i>x</i>", *parts]).encode(), "text/html")
    except NotAPage:
        return
    assert "\ue000" not in page.text and all(line.strip() for line in page.lines)


def test_a_page_of_ten_megabytes():
    started = time.process_time()
    page = extract(b"<html><body><h1>Big</h1>" + BODY.encode() * 100_000)
    assert len(page.lines) == 100_000
    assert time.process_time() - started < 20


def test_site_lines_go_and_the_pages_own_lines_stay():
    lines = SiteLines()
    pages = [["Motto of the site", f"Own line {i}",
    "A long line that many pages quote " * 3, f"Another {i}", "Next topic"]
             for i in range(50)]  # fmt: skip
    quoted = pages[0][2]
    for i, page in enumerate(pages):
        if i % 10:
            page.remove(quoted)
        lines.add("host", page)
    lines.add("other", ["Motto of the site", "x"])
    kept, removed = lines.strip("host", pages[0])
    assert kept == ["Own line 0", quoted, "Another 0"]
    assert sorted(removed) == ["Motto of the site", "Next topic"]
    assert lines.strip("other", ["Motto of the site", "x"])[0] == ["Motto of the site", "x"]
    assert lines.strip("nobody", ["y"])[0] == ["y"]


def test_tidy():
    assert tidy(["  a \u00a0 b  ", "", "Heading \u00b6", "e\u0301"]) == ["a b", "Heading", "\u00e9"]
