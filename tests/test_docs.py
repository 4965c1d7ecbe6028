"""The Markdown files say what is so: whole tables, links that lead somewhere, and the backends that there are."""

import re
from collections import Counter
from pathlib import Path

import pytest
from pyengine.kernels import _select

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def tables(text):
    """The tables of a page: lists of rows of cells."""
    table = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            table.append([cell.strip() for cell in line.replace("\\|", "").strip().strip("|").split("|")])
        elif table:
            yield table
            table = []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_rows_of_tables_are_as_wide_as_their_heads(page):
    for table in tables(page.read_text(encoding="utf-8")):
        for row in table:
            assert len(row) == len(table[0]), row


def anchors(page):
    """What links to headings of a page are, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_lab_notes_tell_each_experiment_once_under_a_heading_of_the_index():
    page = ROOT / "docs" / "lab-notes.md"
    text = page.read_text(encoding="utf-8")
    lines = Counter(line for line in text.splitlines() if line.startswith("- "))
    assert [line for line, times in lines.items() if times > 1] == []
    index = text[: text.index("\n## ")]
    assert re.findall(r"^- \[(.*)\]\(#", index, re.MULTILINE) == re.findall(r"^## (.*)$", text, re.MULTILINE)


def test_the_op_table_names_the_backends_there_are():
    (table,) = (t for t in tables((ROOT / "README.md").read_text(encoding="utf-8")) if t[0][0] == "op")
    columns = [head.split(" ")[0].lower() for head in table[0][1:]]
    told = {}
    for names, *cells in table[2:]:
        for name in names.split(" (")[0].split(", "):
            told[name] = {column for column, cell in zip(columns, cells, strict=True) if cell}
    assert set(told) == set(_select.ops())
    for op in _select.ops():
        assert told[op] == set(_select.backends(op)), op
