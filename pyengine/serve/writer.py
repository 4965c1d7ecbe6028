"""From an answer's tokens to what a client sees of it: text, calls, log-probabilities, in whole characters."""

import json
import uuid
from dataclasses import dataclass, field
from typing import Any

from ..engine import Token
from ..engine.sampling import Detail
from ..text import Tokenizer
from .asked import Asked
from .conversation import Reader
from .formats import CLOSE_CALL as CLOSE
from .formats import OPEN_CALL as OPEN
from .stops import StopStrings


@dataclass
class Piece:
    """A step of an answer. logprobs: OpenAI's entries; tokens: ours, of everything the model wrote or read; reason: of
    its end, with the last piece; sampled: tokens; cached: tokens of the prompt found in the cache, told once."""

    text: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[dict[str, Any]] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    reason: str = ""
    sampled: int = 0
    cached: int = 0

    def __bool__(self) -> bool:
        """Whether there is anything to see."""
        return bool(self.text or self.logprobs or self.tokens or self.calls or self.reason)

    def add(self, other: "Piece") -> None:
        """Go on with the next piece."""
        self.text += other.text
        self.logprobs += other.logprobs
        self.tokens += other.tokens
        self.calls += other.calls
        self.reason = other.reason
        self.sampled += other.sampled
        self.cached += other.cached


class Writer:
    """Follows one answer. After `ended` its text is over, and the rest of the tokens need not be made."""

    def __init__(self, asked: Asked, tokenizer: Tokenizer):
        self._asked, self._tokenizer = asked, tokenizer
        opened = asked.opened  # by the prompt: the answer begins inside a call
        self._reader = Reader(tokenizer, asked.spaced, "query" if opened == "query" else "text")
        self._stops = StopStrings(asked.stop)
        self._marks = StopStrings((OPEN,) if asked.calls else ())
        self._query = self._calls = ""  # what the model writes into a call
        self._searched = opened == "query"  # it opened a search
        self._inside = opened == "call"  # a call, of a model of another family

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self._stops.found

    @property
    def ended(self) -> bool:
        """Whether the answer is over, whatever else the model would write."""
        return self.stopped or (self._asked.single and CLOSE in self._calls)

    def push(self, token: Token, piece: Piece) -> None:
        """Add to a piece what a token adds, which may be nothing yet."""
        piece.sampled += not token.forced
        if token.id in self._asked.ends and not token.forced:
            if self._asked.events:
                piece.tokens.append(self._token(token, self._reader.kind, ""))
            return
        name = self._spelled(token.id) if self._asked.calls else ""
        if name == OPEN:
            self._inside = True
        event = self._reader.push(token)
        kind = self._reader.kind
        self._searched |= kind == "query"
        text = event.text if event else ""
        if self._inside:
            self._calls += name if name in (OPEN, CLOSE) else text
        elif event and event.kind == "query":
            self._query += text
        elif event and event.kind == "text":
            piece.text += self._show(text)
        shown = kind == "text" and not token.forced and not self._tokenizer.is_special(token.id)
        if self._asked.logprobs and shown and token.detail:
            piece.logprobs.append(entry_of(self._tokenizer, token.id, token.detail))
        if self._asked.events:
            piece.tokens.append(self._token(token, kind, text))

    def finish(self) -> Piece:
        """What was held back, at the end of the answer."""
        last = self._reader.flush()
        piece = Piece()
        rest = last.text if last else ""
        if last and last.kind == "query":
            self._query += rest
        elif self._inside or self._marks.found:
            self._calls += rest
        else:
            piece.text = self._show(rest)
            if not self._marks.found:
                piece.text += self._stops.push(self._marks.rest()) + self._stops.rest()
        if self._asked.calls:
            piece.calls = self._made_calls()
        return piece

    def _show(self, text: str) -> str:
        before = self._marks.found
        shown = self._stops.push(self._marks.push(text)) if not before else ""
        if self._marks.found:
            self._calls += text if before else OPEN + self._marks.after
            self._inside = True
        return shown

    def _made_calls(self) -> list[dict[str, Any]]:
        made = []
        if self._searched:
            made.append(("search", json.dumps({"query": self._query}, ensure_ascii=False)))
        for part in self._calls.split(OPEN):
            try:
                call = json.loads(part.partition(CLOSE)[0])
                made.append((str(call["name"]), json.dumps(call.get("arguments", {}), ensure_ascii=False)))
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # not a call after all
        return [
            {"index": i, "id": f"call_{uuid.uuid4().hex[:24]}", "type": "function",
             "function": {"name": name, "arguments": arguments}}
            for i, (name, arguments) in enumerate(made[:1] if self._asked.single else made)
        ]  # fmt: skip

    def _token(self, token: Token, kind: str, text: str) -> dict[str, Any]:
        made: dict[str, Any] = {"id": token.id, "token": self._spelled(token.id), "kind": kind, "text": text}
        if token.forced:
            return made | {"forced": True}
        made["sampled_logprob"] = _finite(token.logprob)
        if token.detail:
            made |= entry_of(self._tokenizer, token.id, token.detail)
        return made

    def _spelled(self, token: int) -> str:
        return self._tokenizer.decode_bytes([token]).decode("utf-8", "replace")


def entry_of(tokenizer: Tokenizer, token: int, detail: Detail | None) -> dict[str, Any]:
    """OpenAI's entry of a token and its probabilities; without a detail it has none."""

    def one(i: int, logprob: float | None) -> dict[str, Any]:
        data = tokenizer.decode_bytes([i])
        shown = None if logprob is None else _finite(logprob)
        return {"token": data.decode("utf-8", "replace"), "logprob": shown, "bytes": list(data)}

    if detail is None:
        return {**one(token, None), "top_logprobs": None}
    return {**one(token, detail.logprob), "top_logprobs": [one(i, p) for i, p in detail.top]}


def _finite(logprob: float) -> float:
    return max(logprob, -9999.0)  # JSON has no infinity; OpenAI's documentation names this number
