"""Readers: every input gives the same pages; damage is named and costs no more than what it hit."""

import gzip
import json
from io import BytesIO
from pathlib import Path

import pytest
from fastwarc.stream_io import ZstdWriter
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from pyengine.errors import UserError
from pyengine.web import read_documents

PAGES = {f"http://host/{i}": f"<h1>Page {i}</h1><p>Text of page {i}.</p>".encode() for i in range(20)}


def warc_bytes(pages=PAGES, zipped=True, status="200 OK", kind="text/html", extra=()) -> bytes:
    out = BytesIO()
    writer = WARCWriter(out, gzip=zipped, warc_version="WARC/1.1")
    for url, body in pages.items():
        headers = StatusAndHeaders(status, [("Content-Type", kind), *extra], protocol="HTTP/1.1")
        writer.write_record(
            writer.create_warc_record(url, "response", payload=BytesIO(body), http_headers=headers)
        )
    return out.getvalue()


def read(path: Path):
    rejected: list[tuple[str, str]] = []
    return {raw.url: raw.data for raw in read_documents(path, lambda *r: rejected.append(r))}, rejected


def write_folder(folder: Path) -> Path:
    for url, body in PAGES.items():
        name = url.rsplit("/", 1)[1]
        (folder / "sub").mkdir(parents=True, exist_ok=True)
        (folder / ("sub" if int(name) % 2 else "") / f"{name}.html").write_bytes(body)
    return folder


def test_every_form_gives_the_same_pages(tmp_path):
    (tmp_path / "a.warc.gz").write_bytes(warc_bytes())
    (tmp_path / "b.warc").write_bytes(warc_bytes(zipped=False))
    with open(tmp_path / "c.warc.zst", "wb") as file, ZstdWriter(file) as packed:
        packed.write(warc_bytes(zipped=False))
    rows = "".join(
        json.dumps({"url": url, "html": body.decode()}) + "\n" for url, body in PAGES.items()
    ).encode()
    (tmp_path / "d.jsonl").write_bytes(rows)
    (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress(rows))
    for name in ("a.warc.gz", "b.warc", "c.warc.zst", "d.jsonl", "e.jsonl.gz"):
        assert read(tmp_path / name) == (PAGES, []), name
    (tmp_path / "crawl").mkdir()
    (tmp_path / "a.warc.gz").rename(tmp_path / "crawl" / "crawl-00000.warc.gz")
    (tmp_path / "crawl" / "manifest.json").write_text("{}")
    assert read(tmp_path / "crawl") == (PAGES, [])
    pages, rejected = read(write_folder(tmp_path / "folder"))
    assert sorted(pages.values()) == sorted(PAGES.values()) and not rejected
    assert "file:///sub/1.html" in pages


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table(
        {"url": list(PAGES), "text": [body.decode() for body in PAGES.values()], "score": [1.0] * 20}
    )
    parquet.write_table(table, tmp_path / "x.parquet")
    assert read(tmp_path / "x.parquet") == (PAGES, [])
    parquet.write_table(pyarrow.table({"other": [1]}), tmp_path / "y.parquet")
    with pytest.raises(UserError, match="no column"):
        read(tmp_path / "y.parquet")


@pytest.mark.parametrize("kept", [3000, 10])
def test_a_damaged_parquet_file_is_told(tmp_path, kept):
    """Cut at its end it has no directory; with a broken page in the middle, what comes before is read."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "x.parquet"
    table = pyarrow.table({"text": [f"page {i} " + "word " * 30 for i in range(512)]})
    parquet.write_table(table, path, row_group_size=256, compression="none", use_dictionary=False)
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    assert read(path)[0] == {}
    assert [(where, why[:14]) for where, why in read(path)[1]] == [("x.parquet", "damaged file: ")]
    start = parquet.ParquetFile(BytesIO(whole)).metadata.row_group(1).column(0).data_page_offset
    path.write_bytes(whole[:start] + b"\xff" * 64 + whole[start + 64 :])
    pages, rejected = read(path)
    assert list(pages) == [f"x.parquet:{n}" for n in range(1, 257)] and rejected[0][0] == "x.parquet"


def test_wet(tmp_path):
    out = BytesIO()
    writer = WARCWriter(out, gzip=True)
    for i in range(3):
        text = BytesIO(f"Text {i} caf\u00e9".encode())
        record = writer.create_warc_record(
            f"http://h/{i}", "conversion", payload=text, warc_content_type="text/plain",
            warc_headers_dict={"WARC-Identified-Content-Language": "eng"},
        )  # fmt: skip
        writer.write_record(record)
    (tmp_path / "x.warc.wet.gz").write_bytes(out.getvalue())
    pages = list(read_documents(tmp_path / "x.warc.wet.gz"))
    assert [page.data.decode() for page in pages] == [f"Text {i} caf\u00e9" for i in range(3)]
    assert pages[0].content_type.startswith("text/plain")


def test_text_folder_and_fields(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("hello")
    (tmp_path / "texts" / "b.md").write_text("there")
    (tmp_path / "texts" / "c.bin").write_bytes(b"\0")
    pages, rejected = read(tmp_path / "texts")
    assert list(pages.values()) == [b"hello", b"there"] and rejected == [("file:///c.bin", "file type .bin")]
    row = {"text": "body", "title": "T", "date": "2020-01-01", "lang": "en", "more": 1}
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    page = next(iter(read_documents(tmp_path / "x.jsonl")))
    assert (page.title, page.date, page.lang, page.url) == ("T", "2020-01-01", "en", "x.jsonl:1")


def test_what_is_left_out_is_told(tmp_path):
    data = warc_bytes({"http://h/gone": b"x"}, status="404 Not Found")
    data += warc_bytes({"http://h/photo": b"x"}, kind="image/png") + warc_bytes(
        {"http://h/x": b"<p>xhtml"}, kind="application/xhtml+xml"
    )
    (tmp_path / "a.warc.gz").write_bytes(data)
    pages, rejected = read(tmp_path / "a.warc.gz")
    assert list(pages) == ["http://h/x"]
    assert rejected == [("http://h/gone", "HTTP 404"), ("http://h/photo", "type image/png")]


@pytest.mark.parametrize("cut", [10, 400, 2000, 3000])
def test_a_truncated_archive_gives_what_is_whole(tmp_path, cut):
    data = warc_bytes()
    (tmp_path / "a.warc.gz").write_bytes(data[: len(data) - cut])
    pages, rejected = read(tmp_path / "a.warc.gz")
    assert len(PAGES) - 1 - cut // 200 <= len(pages) <= len(PAGES) - (cut > 10)
    assert all(PAGES[url] == body for url, body in pages.items())
    assert rejected, "damage must not pass in silence"


@pytest.mark.parametrize("place", [0, 5, 1000, 2500])
def test_flipped_bytes_never_stop_the_reader(tmp_path, place):
    data = bytearray(warc_bytes())
    data[place : place + 20] = b"\xff" * 20
    (tmp_path / "a.warc.gz").write_bytes(data)
    pages, _ = read(tmp_path / "a.warc.gz")
    assert all(PAGES[url] == body for url, body in pages.items())


def test_bad_gzip_inside_a_page_and_bombs(tmp_path):
    zipped = {"http://h/ok": gzip.compress(b"<p>fine</p>"), "http://h/bad": b"\x1f\x8b\x08broken",
              "http://h/bomb": gzip.compress(bytes(300 << 20), 1)}  # fmt: skip
    (tmp_path / "a.warc.gz").write_bytes(warc_bytes(zipped, extra=[("Content-Encoding", "gzip")]))
    pages, _ = read(tmp_path / "a.warc.gz")
    assert pages["http://h/ok"] == b"<p>fine</p>" and len(pages["http://h/bomb"]) <= 32 << 20
    assert "http://h/bad" in pages


def test_bad_rows_are_named_by_file_and_line(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "good"}\n{broken\n[1]\n{"url": "u"}\n\n{"text": "also"}')
    pages, rejected = read(tmp_path / "x.jsonl")
    assert len(pages) == 2
    assert [where for where, _ in rejected] == ["x.jsonl:2", "x.jsonl:3", "x.jsonl:4"]
    (tmp_path / "marked.jsonl").write_bytes(
        '\ufeff{"text": "good"}\n'.encode() + '{"text": "no"}'.encode("utf-16-le")
    )
    pages, rejected = read(tmp_path / "marked.jsonl")
    assert list(pages) == ["marked.jsonl:1"] and [where for where, _ in rejected] == ["marked.jsonl:2"]
    (tmp_path / "y.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 9)[:-12])
    assert read(tmp_path / "y.jsonl.gz")[1][0][0] == "y.jsonl.gz"


@pytest.mark.parametrize(("source", "words"), [
    ("http://example.org/", "crawled first"), ("/no/such/place", "no such file"), (".", "no .warc.gz"),
    ("x.exe", "cannot tell"),
])  # fmt: skip
def test_mistakes(tmp_path, monkeypatch, source, words):
    monkeypatch.chdir(tmp_path)
    if source == "x.exe":
        (tmp_path / source).touch()
    with pytest.raises(UserError, match=words):
        list(read_documents(source))
