"""An OpenAI-compatible server over one model, on starlette.

    app = make_app(served, name="default")        # `python -m pyengine.serve MODEL` runs it

    /v1/chat/completions /v1/completions /v1/responses /v1/models /tokenize /detokenize /health /metrics,
    and a page at /

asked.py says what may be asked, writer.py what an answer's tokens say, shapes.py how a client sees it. Answers
come whole or as server-sent events; a client that goes away is noticed, and what it asked for is cancelled. A
search that the model opens is made here, inside the engine, unless the client brings tools of its own. With
`"events": true` (ours) each step also has `tokens`: everything that the model wrote and read, with its
probabilities.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from ..engine import Completion
from ..engine.sampling import Detail
from .asked import ApiError, Asked, Checker, constrained
from .guard import Guard
from .loading import Served
from .metrics import Metrics
from .pages import page_response
from .responses import Responses, as_chat, renamed
from .scoring import likelihoods
from .shapes import Completions, Shape
from .worker import Busy, Worker
from .writer import Piece, Writer, entry_of

REASONS = {"stop": "stop", "length": "length", "tools": "stop", "cancelled": "stop"}
GONE = 499  # for the metrics only: the client that would read it went away
PAGE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Limits:
    """What the server puts up with. waiting: answers unfinished at once; seconds: for one answer, which then
    ends where it is, as if its tokens were used up."""

    body: int = 1 << 20
    waiting: int = 256
    seconds: float = 600.0


class Api:
    """The routes over one served model."""

    def __init__(self, served: Served, name: str, limits: Limits):
        self.served, self.name, self.limits, self.created = served, name, limits, int(time.time())
        self.worker = Worker(served.engine, limits.waiting)
        self.metrics, self.checker = Metrics(), Checker(served)
        self._constraining = asyncio.Lock()  # one constraint is compiled at a time

    async def page(self, request: Request) -> Response:
        return page_response(PAGE)

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "unfinished": self.worker.unfinished})

    async def metrics_page(self, request: Request) -> Response:
        return PlainTextResponse(self.metrics.text(self.worker), media_type="text/plain; version=0.0.4")

    async def models(self, request: Request) -> Response:
        model = {
            "id": self.name, "object": "model", "created": self.created, "owned_by": "pyengine",
            "max_model_len": self.served.engine.max_context,
            "pyengine": {"search": self.served.engine.tools is not None, "chat": self.served.format.tools != ()},
        }  # fmt: skip
        if "model" in request.path_params:
            self._check_name(request.path_params["model"])
            return JSONResponse(model)
        return JSONResponse({"object": "list", "data": [model]})

    async def tokenize(self, request: Request) -> Response:
        body = await read_body(request, self.limits.body)
        if isinstance(prompt := body.get("prompt"), str):
            ids = self.served.tokenizer.encode(prompt)
        elif body.get("messages") is not None:
            ids = self.checker.prompt(body["messages"], options=self.checker.options(body))
        else:
            raise ApiError("expected a text in prompt, or messages", param="prompt")
        pieces = [self.served.tokenizer.decode([i]) for i in ids]
        room = self.served.engine.max_context
        return JSONResponse({"count": len(ids), "max_model_len": room, "tokens": ids, "token_strs": pieces})

    async def detokenize(self, request: Request) -> Response:
        body = await read_body(request, self.limits.body)
        ids, size = body.get("tokens"), self.served.tokenizer.vocab_size
        if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < size for i in ids):
            raise ApiError(f"tokens: expected a list of ids below {size}", param="tokens")
        return JSONResponse({"prompt": self.served.tokenizer.decode(ids)})

    async def chat(self, request: Request) -> Response:
        body = await read_body(request, self.limits.body)
        return await self._answer(request, body, self.checker.chat, Completions)

    async def complete(self, request: Request) -> Response:
        body = await read_body(request, self.limits.body)
        return await self._answer(request, body, self.checker.complete, Completions)

    async def respond(self, request: Request) -> Response:
        body = await read_body(request, self.limits.body)
        try:
            return await self._answer(request, as_chat(body), self.checker.chat, partial(Responses, body))
        except ApiError as error:
            raise renamed(error) from None

    async def input_tokens(self, request: Request) -> Response:
        body = await read_body(request, self.limits.body)
        try:
            chat = as_chat(body)
            self._check_name(chat.get("model", self.name))
            ids, _, _ = self.checker.conversation(chat)
        except ApiError as error:
            raise renamed(error) from None
        return JSONResponse({"object": "response.input_tokens", "input_tokens": len(ids)})

    async def _answer(
        self,
        request: Request,
        body: Mapping[str, Any],
        check: Callable[[Mapping[str, Any]], Asked],
        shape_of: Callable[[Asked, str], Shape],
    ) -> Response:
        if body.get("model") is not None:
            self._check_name(body["model"])
        if constrained(body):  # may take a second, which nobody else should wait for
            async with self._constraining:
                asked = await asyncio.to_thread(check, body)
        else:
            asked = check(body)
        if self.worker.unfinished + len(asked.prompts) > self.worker.max_waiting:
            raise too_busy()
        self.metrics.prompt_tokens += asked.prompt_tokens
        shape = shape_of(asked, self.name)
        if asked.stream:
            return EventStream(self._events(asked, shape), self.limits.seconds + 5)
        return await unless_gone(request, partial(self._whole, asked, shape))

    async def _whole(self, asked: Asked, shape: Shape) -> Response:
        async with aclosing(self._pieces(asked)) as news:
            async for index, piece in news:
                shape.add(index, piece)
        return JSONResponse(shape.whole())

    async def _events(self, asked: Asked, shape: Shape) -> AsyncGenerator[str, None]:
        for event in shape.start():
            yield event
        try:
            async with aclosing(self._pieces(asked)) as news:
                async for index, piece in news:
                    for event in shape.events(index, piece):
                        yield event
        except ApiError as error:
            last = shape.failed(error)
        else:
            last = shape.end()
        for event in last:
            yield event

    async def _pieces(self, asked: Asked) -> AsyncGenerator[tuple[int, Piece], None]:
        """(index of the answer, piece) of all answers as they come; each answer's last piece has a reason."""
        start = time.monotonic()
        if asked.echo:
            for index in range(len(asked.prompts)):
                yield index, Piece(asked.echo[index], await self._scored(asked, index))
                if asked.silent:
                    yield index, self._ended(Piece(), "length", start)
            if asked.silent:
                return
        writers, first = [Writer(asked, self.served.tokenizer) for _ in asked.prompts], True
        unfinished = set(range(len(writers)))
        try:
            answers = self.worker.answers(asked.prompts, asked.params, self.limits.seconds)
        except Busy:
            raise too_busy() from None
        async with answers:
            while unfinished:
                try:
                    index, tokens, completion, done = await anext(answers)
                except TimeoutError:
                    for index in unfinished:
                        yield index, self._ended(Piece(), "length", start)
                    return
                if first and tokens:
                    self.metrics.first_token.observe(time.monotonic() - start)
                    first = False
                writer, piece = writers[index], Piece()
                for token in tokens:
                    writer.push(token, piece)
                    self.metrics.generated_tokens += not token.forced
                    if writer.ended:
                        answers.leave(index)
                        break
                    if asked.events:  # a step each: what was searched and said stays in its order
                        yield index, piece
                        piece = Piece()
                if done or writer.ended:
                    unfinished.discard(index)
                    self._ended(piece, self._finish(writer, piece, completion), start)
                yield index, piece

    def _finish(self, writer: Writer, piece: Piece, completion: Completion) -> str:
        """Give an answer's last piece what was held back; the reason of its end."""
        if completion.error and not writer.ended:
            if completion.finish_reason == "refused":
                raise ApiError(completion.error)
            raise ApiError(completion.error, 500, "server_error")
        piece.add(writer.finish())
        piece.cached = completion.cached
        reason = "stop" if writer.ended else REASONS[completion.finish_reason]
        return "tool_calls" if piece.calls and reason == "stop" and not writer.stopped else reason

    def _ended(self, piece: Piece, reason: str, start: float) -> Piece:
        """The last piece of an answer, with its reason, which is counted."""
        piece.reason = reason
        self.metrics.finished[reason] += 1
        self.metrics.whole.observe(time.monotonic() - start)
        return piece

    async def _scored(self, asked: Asked, index: int) -> list[dict[str, Any]]:
        """The entries of an echoed prompt, where log-probabilities are asked for: its first id may have none."""
        ids, shown, top = asked.prompts[index], asked.echoed[index], asked.params[index].logprobs
        if top is None:
            return []
        details: list[Detail | None] = [None] * shown
        if count := min(shown, len(ids) - 1):
            work = partial(likelihoods, self.served.engine.model, [(ids, count)], top)
            try:
                (found,) = await self.worker.call(work)
            except Busy:
                raise too_busy() from None
            best = zip(*(part.tolist() for part in found.top), strict=True)
            details[shown - count :] = [
                Detail(own, tuple(zip(*rows, strict=True)))
                for own, rows in zip(found.logprobs.tolist(), best, strict=True)
            ]
        return [
            entry_of(self.served.tokenizer, token, detail)
            for token, detail in zip(ids[len(ids) - shown :], details, strict=True)
        ]

    def _check_name(self, name: Any) -> None:
        if name != self.name:
            message = f"the model {str(name)[:100]!r} does not exist; this server has {self.name!r}"
            raise ApiError(message, 404, param="model", code="model_not_found")


def too_busy() -> ApiError:
    return ApiError("too many requests are waiting; ask again later", 429, "rate_limit_error")


class EventStream(StreamingResponse):
    """Server-sent events that end when the client goes away, also between two of them, or reads too slowly."""

    def __init__(self, events: AsyncGenerator[str, None], seconds: float):
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._events, self._seconds = events, seconds

    async def __call__(self, scope, receive, send) -> None:
        async def watch(scope: anyio.CancelScope) -> None:
            await self.listen_for_disconnect(receive)
            scope.cancel()

        async with aclosing(self._events), anyio.create_task_group() as group:
            group.start_soon(watch, group.cancel_scope)
            with anyio.move_on_after(self._seconds):
                await self.stream_response(send)
            group.cancel_scope.cancel()


async def unless_gone(request: Request, work: Callable[[], Awaitable[Response]]) -> Response:
    """The response, unless the client goes away before it is made: then the work is cancelled."""
    task = asyncio.ensure_future(work())

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    watcher = asyncio.create_task(watch())
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        return Response(status_code=GONE)
    finally:
        for one in (task, watcher):
            one.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def read_body(request: Request, limit: int) -> dict[str, Any]:
    """The JSON object of a request, of at most `limit` bytes."""
    data = bytearray()
    async for block in request.stream():
        data += block
        if len(data) > limit:
            raise ApiError(f"the body is larger than {limit} bytes", 413)
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise ApiError("the body is not JSON") from None
    if not isinstance(body, dict):
        raise ApiError("the body: expected a JSON object")
    return body


def make_app(
    served: Served,
    name: str,
    limits: Limits | None = None,
    api_key: str | None = None,
    hosts: tuple[str, ...] | None = None,
    origins: tuple[str, ...] = (),
) -> Starlette:
    """The application; `name` is the model's id. api_key: what clients must show. hosts: names under which the
    server may be addressed (None: any), so that no web page can reach a local server through a name of its own.
    origins: other sites whose pages may ask, "*" for all.
    """
    api = Api(served, name, limits or Limits())

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        api.worker.close()

    async def refuse(request: Request, error: Exception) -> Response:
        if isinstance(error, ClientDisconnect):
            return Response(status_code=GONE)
        if isinstance(error, HTTPException):
            about = "this path does not exist" if error.status_code == 404 else str(error.detail).lower()
            error = ApiError(f"{request.method} {request.url.path}: {about}", error.status_code)
        elif not isinstance(error, ApiError):
            error = ApiError("the server failed; its log says why", 500, "server_error")
        headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
        return JSONResponse(error.body, error.status, headers)

    app = Starlette(
        routes=[
            Route("/", api.page),
            Route("/health", api.health),
            Route("/metrics", api.metrics_page),
            Route("/tokenize", api.tokenize, methods=["POST"]),
            Route("/detokenize", api.detokenize, methods=["POST"]),
            Route("/v1/models", api.models),
            Route("/v1/models/{model:path}", api.models),
            Route("/v1/chat/completions", api.chat, methods=["POST"]),
            Route("/v1/completions", api.complete, methods=["POST"]),
            Route("/v1/responses", api.respond, methods=["POST"]),
            Route("/v1/responses/input_tokens", api.input_tokens, methods=["POST"]),
        ],
        exception_handlers={kind: refuse for kind in (ApiError, ClientDisconnect, HTTPException, Exception)},
        lifespan=lifespan,
    )
    app.add_middleware(
        Guard, api_key=api_key, hosts=hosts, origins=origins, responses=api.metrics.responses
    )  # fmt: skip
    if origins:  # before the guard: a browser asks first, without the key
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    return app
