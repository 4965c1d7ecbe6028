"""One reader for every input: WARC, WET, folders of pages or text, JSONL, parquet.

    for page in read_documents("crawl/", rejected=print): ...

Every input gives `RawPage`s in a fixed order. What cannot be a page (a wrong status, a type that is no
text, a damaged record) is handed to `rejected(url, reason)`: nothing disappears without a word. A damaged
file gives what can be read of it.

    folder with *.warc.gz   all its WARC files in order of names (what a crawl leaves)
    *.warc[.gz|.zst]        responses with status 200 and a text type     *.wet.gz   conversion records
    folder                  .html .htm .xhtml .txt .md (also x.html.en), in order of names
    *.jsonl[.gz|.zst]       objects with "text" (and "url", "title", "date", "lang"), or "html"
    *.parquet               the same as columns (needs the extra `parquet`)
"""

import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastwarc.stream_io import ZstdReader
from fastwarc.warc import ArchiveIterator, WarcRecordType

from ..errors import UserError
from .fetch import unfold

_PAGE = re.compile(r"(?i)\.(x?html?|shtml|php)(\.[a-z]{2}(-[a-z]{2})?)?$")
_TEXT = re.compile(r"(?i)\.(txt|md|rst|text)$")
_WARC = re.compile(r"(?i)\.(warc|wet|arc)(\.gz|\.zst)?$")
_ROWS = re.compile(r"(?i)\.(jsonl|ndjson|json)(\.gz|\.zst)?$")
_TYPES = ("text/html", "application/xhtml+xml", "text/plain", "")
MAX_PAGE_BYTES = 32 << 20

Rejected = Callable[[str, str], Any]


@dataclass(frozen=True)
class RawPage:
    """One page as it was read, nothing decoded yet."""

    url: str
    data: bytes
    content_type: str = "text/html"
    robots_tags: tuple[str, ...] = ()  # X-Robots-Tag headers
    truncated: bool = False
    title: str = ""  # where the source knows these
    date: str = ""
    lang: str = ""


def read_documents(source: str | os.PathLike, rejected: Rejected | None = None) -> Iterator[RawPage]:
    """Stream the pages of a file or folder.

    rejected: gets (url, reason) of everything that is not passed on. Raises UserError where the source
    is missing, holds nothing readable, or is a web address (crawl it first).
    """
    rejected = rejected or (lambda url, reason: None)
    if re.match(r"https?://", str(source)):
        raise UserError(
            f"{source}: a web site is crawled first: python -m pyengine.web crawl {source} --out DIR"
        )
    path = Path(source)
    if path.is_dir():
        warcs = sorted(file for file in path.iterdir() if _WARC.search(file.name))
        if warcs:
            for file in warcs:
                yield from _warc(file, rejected)
        else:
            yield from _folder(path, rejected)
    elif not path.exists():
        raise UserError(f"{source}: no such file or folder")
    elif _WARC.search(path.name):
        yield from _warc(path, rejected)
    elif _ROWS.search(path.name):
        yield from _jsonl(path, rejected)
    elif path.suffix == ".parquet":
        yield from _parquet(path, rejected)
    elif _PAGE.search(path.name) or _TEXT.search(path.name):
        yield _file(path, path.name)
    else:
        raise UserError(
            f"{source}: cannot tell what this is; expected .warc.gz, .wet.gz, .jsonl, .parquet, .html, .txt"
            " or a folder"
        )


# -- archives


def _warc(path: Path, rejected: Rejected) -> Iterator[RawPage]:
    kinds = WarcRecordType.response | WarcRecordType.conversion | WarcRecordType.revisit
    last = 0
    try:
        with open(path, "rb") as file:
            for record in ArchiveIterator(file, record_types=kinds, parse_http=False):
                last = record.stream_pos
                page = _record(record, path, rejected)
                if page is not None:
                    yield page
    except Exception as error:  # a truncated or damaged file ends here; what came before is good
        rejected(path.name, f"damaged archive: {_why(error)}")
    else:
        if _is_torn(path, last):  # fastwarc ends at a torn record as if it were the end of the file
            rejected(path.name, "damaged archive: it ends in the middle of a record")


def _is_torn(path: Path, start: int) -> bool:
    """Whether a file is incomplete after the record at `start`."""
    if path.suffix == ".zst":
        return False
    with open(path, "rb") as file:
        if path.suffix != ".gz":
            file.seek(max(0, os.path.getsize(path) - 4))
            return file.read() != b"\r\n\r\n"
        file.seek(start)
        member = zlib.decompressobj(zlib.MAX_WBITS | 16)
        try:
            while block := member.unused_data or file.read(1 << 20):
                if member.eof:
                    member = zlib.decompressobj(zlib.MAX_WBITS | 16)
                while block and not member.eof:
                    member.decompress(block, 1 << 20)
                    block = member.unconsumed_tail
        except zlib.error:
            return True
        return not member.eof


def _record(record, path: Path, rejected: Rejected) -> RawPage | None:
    url = record.headers.get("WARC-Target-URI") or ""
    url = url.strip("<>")
    try:
        if record.record_type == WarcRecordType.revisit:
            return rejected(url, "revisit of a page read before")
        if record.content_length > 2 * MAX_PAGE_BYTES:
            return rejected(url, "larger than the size limit")
        if record.record_type == WarcRecordType.conversion:
            language = record.headers.get("WARC-Identified-Content-Language") or ""
            lang = language.split(",")[0] if len(language) == 2 else ""
            return RawPage(url, record.reader.read(), "text/plain; charset=utf-8", lang=lang)
        if not url.startswith("http") or not record.is_http:
            return rejected(url, "not a web page")
        record.parse_http(strict_mode=False)
        headers = record.http_headers
        if headers.status_code != 200:
            return rejected(url, f"HTTP {headers.status_code}")
        media = (headers.get("Content-Type") or "").split(";")[0].strip().lower()
        if media not in _TYPES:
            return rejected(url, f"type {media}")
        body = record.reader.read()
        if len(body) < record.content_length - 64 - sum(len(k) + len(v) + 8 for k, v in headers.items()):
            return rejected(url, "damaged record: too short")
        data, used = unfold(body, headers.get("Content-Encoding") or "", MAX_PAGE_BYTES)
        return RawPage(
            url, data, headers.get("Content-Type") or "", headers.get_multiple("X-Robots-Tag"),
            truncated=used < len(body) or "WARC-Truncated" in record.headers,
        )  # fmt: skip
    except (ValueError, KeyError, UnicodeError) as error:
        return rejected(url or path.name, f"damaged record: {_why(error)}")


# -- folders and files


def _folder(path: Path, rejected: Rejected) -> Iterator[RawPage]:
    found = 0
    for folder, subfolders, files in os.walk(path):
        subfolders.sort()
        for name in sorted(files):
            file = Path(folder, name)
            relative = file.relative_to(path).as_posix()
            if _PAGE.search(name) or _TEXT.search(name):
                if file.is_file():
                    found += 1
                    yield _file(file, relative)
            elif _ROWS.search(name) and not found:
                continue
            else:
                rejected(f"file:///{quote(relative)}", f"file type {file.suffix or 'unknown'}")
    if not found:
        rows = sorted(file for file in path.iterdir() if _ROWS.search(file.name) or file.suffix == ".parquet")
        if not rows:
            raise UserError(f"{path}: no .warc.gz, .html, .txt, .jsonl or .parquet file in this folder")
        for file in rows:
            yield from _parquet(file, rejected) if file.suffix == ".parquet" else _jsonl(file, rejected)


def _file(path: Path, name: str) -> RawPage:
    with open(path, "rb") as file:
        data = file.read(MAX_PAGE_BYTES + 1)
    kind = "text/plain" if _TEXT.search(path.name) else "text/html"
    return RawPage(
        f"file:///{quote(name)}", data[:MAX_PAGE_BYTES], kind, truncated=len(data) > MAX_PAGE_BYTES
    )


# -- rows


def _jsonl(path: Path, rejected: Rejected) -> Iterator[RawPage]:
    try:
        with _opened(path) as file:
            for number, line in enumerate(_lines(file), 1):
                if not line.strip():
                    continue
                where = f"{path.name}:{number}"
                try:
                    row = json.loads(line.decode("utf-8-sig"))  # from bytes it would guess UTF-16
                except ValueError as error:
                    rejected(where, f"not JSON: {_why(error)}")
                    continue
                page = _row(row, where, rejected)
                if page is not None:
                    yield page
    except (OSError, EOFError) as error:
        rejected(path.name, f"damaged file: {_why(error)}")


def _opened(path: Path):
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".zst":
        return ZstdReader(open(path, "rb"))  # noqa: SIM115 (closed with the reader)
    return open(path, "rb")


def _lines(file) -> Iterator[bytes]:
    rest = b""
    while block := file.read(1 << 20):
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
    yield rest


def _row(row: Any, where: str, rejected: Rejected) -> RawPage | None:
    if not isinstance(row, Mapping):
        return rejected(where, "not an object")
    html, text = row.get("html"), row.get("text")
    content = html if isinstance(html, str) else text
    if not isinstance(content, str):
        return rejected(where, 'no "text" field')
    known: dict[str, Any] = {name: str(row.get(name) or "") for name in ("title", "date", "lang")}
    kind = "text/html" if content is html else "text/plain"
    data = content.encode("utf-8", "replace")
    return RawPage(str(row.get("url") or where), data, f"{kind}; charset=utf-8", **known)


def _parquet(path: Path, rejected: Rejected) -> Iterator[RawPage]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UserError(
            f"{path}: reading parquet needs pyarrow: pip install 'pyengine-llm[parquet]'"
        ) from None
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            names = [n for n in ("text", "html", "url", "title", "date", "lang") if n in columns]
            if not {"text", "html"} & set(names):
                raise UserError(f'{path}: no column "text" or "html"; it has {", ".join(columns)}')
            for batch in file.iter_batches(batch_size=256, columns=names):
                for row in batch.to_pylist():
                    number += 1
                    page = _row(row, f"{path.name}:{number}", rejected)
                    if page is not None:
                        yield page
    except (OSError, UnicodeDecodeError, ArrowException) as error:  # what came before the damage is good
        rejected(path.name, f"damaged file: {_why(error)}")


def _why(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
