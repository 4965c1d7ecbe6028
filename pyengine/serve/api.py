"""An OpenAI-compatible server over one model: /v1/chat/completions, /v1/completions, /v1/models, /health.

    app = make_app(served, name="default")        # starlette; `python -m pyengine.serve MODEL` runs it

Streams as server-sent events or answers whole. Searches happen inside the engine: the client gets the answer.
Errors have OpenAI's shape. Requests are limited in size and number, and a client that goes away is cancelled.
"""

import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ..engine import Completion, SamplingParams
from ..errors import UserError
from .conversation import Reader
from .formats import TextFormat
from .loading import Served
from .worker import Busy, Worker

MAX_BODY = 1 << 20
REASONS = {"stop": "stop", "length": "length", "tools": "stop", "cancelled": "stop"}


class ApiError(Exception):
    """An error as the client sees it."""

    def __init__(
        self, message: str, status: int = 400, kind: str = "invalid_request_error", param: str | None = None
    ):
        super().__init__(message)
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": None}}
        self.status = status


@dataclass(frozen=True)
class Asked:
    """A request, checked."""

    prompt: list[int]
    params: SamplingParams
    stop: tuple[str, ...]
    stream: bool


class Api:
    """The routes over one served model."""

    def __init__(self, served: Served, name: str):
        self.served, self.name, self.created = served, name, int(time.time())
        self.worker = Worker(served.engine)

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "unfinished": self.worker.unfinished})

    async def models(self, request: Request) -> Response:
        model = {"id": self.name, "object": "model", "created": self.created, "owned_by": "pyengine"}
        return JSONResponse({"object": "list", "data": [model]})

    async def chat(self, request: Request) -> Response:
        body = await read_body(request)
        messages = body.get("messages")
        if not isinstance(messages, list):
            raise ApiError("messages: expected a list of messages", param="messages")
        try:
            prompt = self.served.format.prompt(messages)
        except (UserError, KeyError, TypeError) as error:
            raise ApiError(f"messages: {error}", param="messages") from None
        return await self._answer(body, prompt, chat=True)

    async def complete(self, request: Request) -> Response:
        body = await read_body(request)
        prompt = body.get("prompt")
        if not isinstance(prompt, str):
            raise ApiError("prompt: expected a text", param="prompt")
        ids = TextFormat(self.served.tokenizer).prompt([{"role": "user", "content": prompt}])
        return await self._answer(body, ids, chat=False)

    async def _answer(self, body: Mapping[str, Any], prompt: list[int], chat: bool) -> Response:
        asked = self._check(body, prompt)
        head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": "chat.completion" if chat else "text_completion",
            "created": int(time.time()),
            "model": self.name,
        }
        if self.worker.unfinished >= self.worker.max_waiting:
            raise ApiError("too many requests are waiting; ask again later", 429, "rate_limit_error")
        if asked.stream:
            head["object"] = "chat.completion.chunk" if chat else "text_completion"
            return StreamingResponse(self._events(asked, head, chat), media_type="text/event-stream")
        text, completions = "", list[Completion]()
        async with aclosing(self._texts(asked, completions)) as pieces:
            async for piece in pieces:
                text += piece
        answer = finished(completions)
        made: dict[str, Any] = {"index": 0, "finish_reason": REASONS[answer.finish_reason], "logprobs": None}
        made |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(answer.ids)}
        usage["total_tokens"] = sum(usage.values())
        return JSONResponse({**head, "choices": [made], "usage": usage})

    async def _events(self, asked: Asked, head: Mapping[str, Any], chat: bool) -> AsyncGenerator[str, None]:
        def event(piece: str | None, reason: str | None = None, **delta: str) -> str:
            if piece is not None:
                delta["content"] = piece
            made: dict[str, Any] = {"index": 0, "finish_reason": reason, "logprobs": None}
            made |= {"delta": delta} if chat else {"text": piece or ""}
            return f"data: {json.dumps({**head, 'choices': [made]}, ensure_ascii=False)}\n\n"

        completions: list[Completion] = []
        if chat:
            yield event("", role="assistant")
        try:
            async with aclosing(self._texts(asked, completions)) as pieces:
                async for piece in pieces:
                    yield event(piece)
            yield event(None, REASONS[finished(completions).finish_reason])
        except ApiError as error:
            yield f"data: {json.dumps(error.body)}\n\n"
        yield "data: [DONE]\n\n"

    async def _texts(self, asked: Asked, completions: list[Completion]) -> AsyncGenerator[str, None]:
        """The answer's text in whole characters, cut before a stop string."""
        reader, stops, seen = Reader(self.served.tokenizer), StopStrings(asked.stop), []
        try:
            async with aclosing(self.worker.stream(asked.prompt, asked.params, completions)) as tokens:
                async for token in tokens:
                    seen.append(token.id)
                    event = reader.push(token)
                    if event and event.kind == "text" and (piece := stops.push(event.text)):
                        yield piece
                    if stops.found:
                        completions.append(Completion(asked.prompt, seen, finish_reason="stop"))
                        return
        except Busy:
            raise ApiError(
                "too many requests are waiting; ask again later", 429, "rate_limit_error"
            ) from None
        last = reader.flush()
        if piece := stops.push(last.text if last and last.kind == "text" else "") + stops.rest():
            yield piece

    def _check(self, body: Mapping[str, Any], prompt: list[int]) -> Asked:
        room = self.served.engine.max_context - len(prompt)
        if room < 1:
            raise ApiError(
                f"the prompt has {len(prompt)} tokens, the context {self.served.engine.max_context}"
            )
        number = (int, float)
        limit = field(body, "max_completion_tokens", int, field(body, "max_tokens", int, room))
        if field(body, "n", int, 1) != 1:
            raise ApiError("n: only one answer a request is supported", param="n")
        stop = body.get("stop") or ()
        stop = (stop,) if isinstance(stop, str) else stop
        if not isinstance(stop, Sequence) or len(stop) > 8 or not all(isinstance(s, str) and s for s in stop):
            raise ApiError("stop: expected a text or up to 8 texts", param="stop")
        try:
            params = SamplingParams(
                max_tokens=min(limit, room),
                temperature=float(field(body, "temperature", number, 1.0)),
                top_k=field(body, "top_k", int, 0),
                top_p=float(field(body, "top_p", number, 1.0)),
                seed=field(body, "seed", int, None),
                stop=self.served.format.stop,
            )
        except UserError as error:
            raise ApiError(str(error)) from None
        return Asked(prompt, params, tuple(stop), field(body, "stream", bool, False))


class StopStrings:
    """Cuts a text that comes in pieces before the first of some strings."""

    def __init__(self, stops: Sequence[str]):
        self._stops, self._held, self.found = stops, "", False

    def push(self, text: str) -> str:
        """What can be shown: all that is no beginning of a stop string."""
        self._held += text
        at = min((i for stop in self._stops if (i := self._held.find(stop)) >= 0), default=-1)
        if at >= 0:
            self.found = True
            return self._held[:at]
        keep = max(
            (n for s in self._stops for n in range(1, len(s)) if self._held.endswith(s[:n])), default=0
        )
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def rest(self) -> str:
        """What was held back, at the end of the answer."""
        return "" if self.found else self._held


def finished(completions: Sequence[Completion]) -> Completion:
    """The one completion; an ApiError if the engine could not answer."""
    answer = completions[-1]
    if answer.finish_reason == "error":
        raise ApiError(answer.error, 500, "server_error")
    return answer


async def read_body(request: Request) -> dict[str, Any]:
    """The JSON object of a request, of at most MAX_BODY bytes."""
    data = bytearray()
    async for block in request.stream():
        data += block
        if len(data) > MAX_BODY:
            raise ApiError(f"the body is larger than {MAX_BODY} bytes", 413)
    try:
        body = json.loads(data)
    except ValueError:
        raise ApiError("the body is not JSON") from None
    if not isinstance(body, dict):
        raise ApiError("the body: expected a JSON object")
    return body


def field(body: Mapping[str, Any], name: str, kind: Any, default: Any) -> Any:
    """A field of a type; null and absence are the default."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        expected = getattr(kind, "__name__", "number")
        raise ApiError(f"{name}: expected {expected}, got {value!r}", param=name)
    return value


def make_app(served: Served, name: str) -> Starlette:
    """The application; `name` is the model's id."""
    api = Api(served, name)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        api.worker.close()

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return JSONResponse(error.body, error.status)

    return Starlette(
        routes=[
            Route("/health", api.health),
            Route("/v1/models", api.models),
            Route("/v1/chat/completions", api.chat, methods=["POST"]),
            Route("/v1/completions", api.complete, methods=["POST"]),
        ],
        exception_handlers={ApiError: refuse},
        lifespan=lifespan,
    )
