"""The account of a cleaning: what went into each step, what came out, what was removed and why.

stats.json:
    steps     [{"step", "pages_in", "pages_out", "bytes_in", "bytes_out",
                "reasons": [{"reason", "pages", "bytes", "examples": [{"url", "excerpt"}]}]}]
    edits     {"lines_removed", "masked": {"email", "ip", "phone"}}   of the pages that stayed
    documents, heldout    {"count", "bytes"}        languages {"en": ...}

Bytes are those of the raw page up to extraction, of the extracted text after it.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from .filters import FILTERS

STEPS = ("read", "extract", *(step for step, _ in FILTERS), "refine", "duplicate")
_EXAMPLES = 5


class Waterfall:
    """Collects the account while the pages go by."""

    def __init__(self) -> None:
        self.pages = 0
        self._raw_bytes = 0
        self._text_bytes = 0
        self._removed: list[dict[str, Any]] = []
        self._masked: Counter[str] = Counter()
        self._lines_removed = 0

    def unread(self, url: str, reason: str) -> None:
        """The reader did not pass a page on."""
        self._remove({"url": url}, "read", reason, 0)

    def first_unread(self) -> str:
        """Why nothing came through, as the end of a sentence."""
        return (
            f" (the first of {len(self._removed)} refused: {self._removed[0]['reason']})"
            if self._removed
            else ""
        )

    def extracted(self, row: dict[str, Any]) -> None:
        """A page was extracted, or removed in that step."""
        self.pages += 1
        self._raw_bytes += row["raw_bytes"]
        if "removed" in row:
            step, reason = row["removed"]
            self._remove(row, step, reason, row["raw_bytes"])
        else:
            self._text_bytes += row["text_bytes"]

    def refined(self, row: dict[str, Any]) -> None:
        """A page passed the filters, or one removed it."""
        if "removed" in row:
            step, reason = row["removed"]
            self._remove(row, step, reason, row["text_bytes"])

    def deduplicated(self, row: dict[str, Any], reason: str, original: str) -> None:
        """A document stays (reason ""), or is a duplicate of `original`."""
        if reason:
            excerpt = row["document"]["text"][:200]
            self._remove(
                {"url": row["url"], "excerpt": excerpt}, "duplicate", reason, row["text_bytes"], original
            )
        else:
            self._masked.update(row["masked"])
            self._lines_removed += row["lines_removed"]

    def removed(self) -> Iterator[dict[str, str]]:
        """The rows of removed.jsonl, ordered by step and address."""
        order = {step: i for i, step in enumerate(STEPS)}
        for row in sorted(self._removed, key=lambda r: (order[r["step"]], r["url"], r["reason"])):
            yield {name: value for name, value in row.items() if name != "bytes"}

    def result(self, train: list[dict], heldout: list[dict]) -> dict[str, Any]:
        """The content of stats.json."""
        by_step: dict[str, list[dict]] = defaultdict(list)
        for row in self._removed:
            by_step[row["step"]].append(row)
        pages, size = self.pages + len(by_step["read"]), self._raw_bytes
        steps = []
        for step in STEPS:
            gone = by_step[step]
            left = self._text_bytes if step == "extract" else size - sum(row["bytes"] for row in gone)
            steps.append({
                "step": step, "pages_in": pages, "pages_out": pages - len(gone),
                "bytes_in": size, "bytes_out": left,
                "reasons": _reasons(gone),
            })  # fmt: skip
            pages, size = pages - len(gone), left
        return {
            "steps": steps,
            "edits": {"lines_removed": self._lines_removed, "masked": dict(sorted(self._masked.items()))},
            "documents": _size(train), "heldout": _size(heldout),
            "languages": dict(Counter(document["lang"] for document in train).most_common()),
        }  # fmt: skip

    def _remove(self, row: dict[str, Any], step: str, reason: str, size: int, original: str = "") -> None:
        removed = {
            "url": row["url"],
            "step": step,
            "reason": reason,
            "excerpt": row.get("excerpt", ""),
            "bytes": size,
        }
        self._removed.append(removed | ({"duplicate_of": original} if original else {}))


def _reasons(removed: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    groups: dict[str, list[dict]] = defaultdict(list)
    for row in removed:
        groups[row["reason"]].append(row)
    out = []
    for reason, rows in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        examples = [{"url": r["url"], "excerpt": r["excerpt"]} for r in sorted(rows, key=lambda r: r["url"])]
        size = sum(row["bytes"] for row in rows)
        out.append({"reason": reason, "pages": len(rows), "bytes": size, "examples": examples[:_EXAMPLES]})
    return out


def _size(documents: list[dict]) -> dict[str, int]:
    return {"count": len(documents), "bytes": sum(len(document["text"].encode()) for document in documents)}
