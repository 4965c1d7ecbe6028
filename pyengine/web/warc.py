"""Writing WARC 1.1: request and response of each page, one gzip member a record.

The file is NAME.part until it is closed. `sync` puts everything written so far on disk and tells its length;
only what the frontier has committed counts, and `recover` cuts a file left by a kill down to that.
"""

import os
import platform
from collections.abc import Iterable, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path

from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from ..files import naming, sync_folder
from .fetch import Answer

_NOT_STORED = {
    "transfer-encoding",
    "content-length",
    "connection",
    "keep-alive",
}  # of the transfer, not the page


class WarcFile:
    """A WARC file being written; `path` is its final name (ending in .warc.gz)."""

    def __init__(self, path: Path, information: dict[str, str]) -> None:
        self.path = path
        self._file = open(part(path), "wb")  # noqa: SIM115 (closed by close)
        self._writer = WARCWriter(self._file, gzip=True, warc_version="WARC/1.1")
        about = {
            "software": f"pyengine (Python {platform.python_version()})",
            "format": "WARC File Format 1.1",
        }
        self._writer.write_record(self._writer.create_warcinfo_record(path.name, about | information))
        self.pages = 0

    def write(self, url: str, answer: Answer) -> int:
        """Append request and response; gives the offset of the response record."""
        headers = [(k, v) for k, v in answer.headers if k.lower() not in _NOT_STORED]
        headers.append(("Content-Length", str(len(answer.body))))
        extra = {"WARC-IP-Address": answer.ip} if answer.ip else {}
        if answer.truncated:
            extra["WARC-Truncated"] = answer.truncated
        response = self._writer.create_warc_record(
            url, "response", payload=BytesIO(answer.body), length=len(answer.body), warc_headers_dict=extra,
            http_headers=_status(f"{answer.status} {answer.phrase}", headers, "HTTP/1.1"),
        )  # fmt: skip
        path = "/" + (url.split("/", 3) + [""])[3]
        request = self._writer.create_warc_record(
            url, "request", payload=BytesIO(b""), length=0,
            http_headers=_status(f"{path} HTTP/1.1", answer.request_headers, "GET", is_http_request=True),
            warc_headers_dict={
                "WARC-Concurrent-To": response.rec_headers.get_header("WARC-Record-ID"),
                "WARC-Date": response.rec_headers.get_header("WARC-Date"),
            },
        )  # fmt: skip
        with naming(self.path):
            self._writer.write_record(request)
            offset = self._file.tell()
            self._writer.write_record(response)
        self.pages += 1
        return offset

    def sync(self) -> int:
        """Put all records on disk; gives the file's length."""
        with naming(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            return self._file.tell()

    def close(self) -> None:
        """Finish: give the file its final name, or remove it if it holds no page."""
        with naming(self.path):
            self._file.close()
        finish(self.path, keep=self.pages > 0)

    def abandon(self) -> None:
        """Close the file as it is, where the disk takes no more: `recover` will find it as after a kill."""
        with suppress(OSError):
            self._file.close()


def part(path: Path) -> Path:
    """The name of a WARC file while it is being written."""
    return path.with_name(path.name + ".part")


def finish(path: Path, keep: bool) -> None:
    """Rename NAME.part to NAME, or remove it."""
    if keep:
        os.replace(part(path), path)
    else:
        part(path).unlink(missing_ok=True)
    sync_folder(path.parent)


def recover(path: Path, size: int) -> bool:
    """Bring a file left behind by a kill to its committed `size` and final name; gives whether it remains."""
    if part(path).exists():
        os.truncate(part(path), size)
        finish(path, keep=size > 0)
    elif path.exists():  # killed between the rename and the commit that says so
        os.truncate(path, size)
    return size > 0


def _status(
    line: str, headers: Sequence[tuple[str, str]] | Iterable, protocol: str, **kw
) -> StatusAndHeaders:
    return StatusAndHeaders(line, list(headers), protocol=protocol, **kw)
