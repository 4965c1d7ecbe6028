"""What a client sees of its answers: OpenAI's chat and text completions, whole or as server-sent events."""

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from .asked import ApiError, Asked
from .writer import Piece

WRITE = json.JSONEncoder(ensure_ascii=False).encode


class Shape(Protocol):
    """Of one request's answers: a whole is made of all their pieces, or each piece becomes events."""

    def add(self, index: int, piece: Piece) -> None:
        """A piece of the answer `index`, for the whole."""
        ...

    def whole(self) -> dict[str, Any]:
        """The body of the response."""
        ...

    def start(self) -> Iterator[str]:
        """Events before any piece."""
        ...

    def events(self, index: int, piece: Piece) -> Iterator[str]:
        """Those of a piece."""
        ...

    def end(self) -> Iterator[str]:
        """Events after all pieces."""
        ...

    def failed(self, error: ApiError) -> Iterator[str]:
        """Events after an error, in the place of end()."""
        ...


class Use:
    """Tokens that a request took. Of a prompt with several answers, the cache knew what it knew for all of them."""

    def __init__(self, asked: Asked):
        self.prompt, self.sampled, self._n = asked.prompt_tokens, 0, asked.n
        self._cached = [0] * len(asked.prompts)

    def add(self, index: int, piece: Piece) -> None:
        self.sampled += piece.sampled
        self._cached[index] += piece.cached

    @property
    def cached(self) -> int:
        """Of the prompts' tokens, how many were found in the cache."""
        return sum(min(self._cached[i : i + self._n]) for i in range(0, len(self._cached), self._n))

    def shown(self) -> dict[str, Any]:
        """OpenAI's count of tokens."""
        return {
            "prompt_tokens": self.prompt, "completion_tokens": self.sampled,
            "total_tokens": self.prompt + self.sampled, "prompt_tokens_details": {"cached_tokens": self.cached},
        }  # fmt: skip


class Completions:
    """Answers of /v1/chat/completions, and of /v1/completions."""

    def __init__(self, asked: Asked, model: str):
        self._asked, self._use = asked, Use(asked)
        name, kind = ("chatcmpl", "chat.completion") if asked.chat else ("cmpl", "text_completion")
        chunk = ".chunk" * (asked.chat and asked.stream)
        self._head = {
            "id": f"{name}-{uuid.uuid4().hex}", "object": kind + chunk, "created": int(time.time()), "model": model,
        }  # fmt: skip
        self._start = f"data: {WRITE(self._head)[:-1]}, "  # the same for all events, and most of their length
        self._answers = [Piece() for _ in asked.prompts]
        self._sizes = [0] * len(asked.prompts)  # of the texts sent

    def add(self, index: int, piece: Piece) -> None:
        self._use.add(index, piece)
        self._answers[index].add(piece)

    def whole(self) -> dict[str, Any]:
        choices = []
        for index, piece in enumerate(self._answers):
            made = self._choice(index, piece)
            if self._asked.chat:
                message: dict[str, Any] = {"role": "assistant", "content": piece.text, "refusal": None}
                if piece.calls:
                    calls = [{k: v for k, v in call.items() if k != "index"} for call in piece.calls]
                    message |= {"tool_calls": calls, "content": piece.text or None}
                made["message"] = message
            else:
                made["text"] = piece.text
            choices.append(made)
        return {**self._head, "choices": choices, "usage": self._use.shown()}

    def start(self) -> Iterator[str]:
        if self._asked.chat:
            for index in range(len(self._answers)):
                delta = {"role": "assistant", "content": ""}
                yield self._event([self._choice(index, Piece()) | {"delta": delta}])

    def events(self, index: int, piece: Piece) -> Iterator[str]:
        self._use.add(index, piece)
        if not piece:
            return
        made = self._choice(index, piece, self._sizes[index])
        self._sizes[index] += len(piece.text)
        if self._asked.chat:
            made["delta"] = {"content": piece.text} if piece.text else {}
            if piece.calls:
                made["delta"]["tool_calls"] = piece.calls
        else:
            made["text"] = piece.text
        yield self._event([made])

    def end(self) -> Iterator[str]:
        if self._asked.usage:
            yield self._event([], usage=self._use.shown())
        yield "data: [DONE]\n\n"

    def failed(self, error: ApiError) -> Iterator[str]:
        yield f"data: {WRITE(error.body)}\n\n"
        yield "data: [DONE]\n\n"

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> str:
        return f"{self._start}{WRITE({'choices': choices, **more})[1:]}\n\n"

    def _choice(self, index: int, piece: Piece, offset: int = 0) -> dict[str, Any]:
        """What chat and completions, whole and streamed, have in common of an answer."""
        asked = self._asked
        made: dict[str, Any] = {"index": index, "finish_reason": piece.reason or None, "logprobs": None}
        if asked.logprobs and asked.chat:
            made["logprobs"] = {"content": piece.logprobs, "refusal": None}
        elif asked.logprobs:
            starts = [offset]
            for entry in piece.logprobs:
                starts.append(starts[-1] + len(entry["token"]))
            made["logprobs"] = {
                "tokens": [entry["token"] for entry in piece.logprobs],
                "token_logprobs": [entry["logprob"] for entry in piece.logprobs],
                "top_logprobs": [_likeliest(entry) for entry in piece.logprobs],
                "text_offset": starts[:-1],
            }
        if asked.events:
            made["tokens"] = piece.tokens
        return made


def _likeliest(entry: Mapping[str, Any]) -> dict[str, float] | None:
    """What /v1/completions shows of a token: the likeliest in its place, and itself be it among them or not."""
    if entry["top_logprobs"] is None:
        return None
    shown = {top["token"]: top["logprob"] for top in entry["top_logprobs"]}
    return {**shown, entry["token"]: entry["logprob"]}
