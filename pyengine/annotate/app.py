"""The page's server: prompts out, decisions in; a model answers ahead of the people.

GET  /          the page
GET  /about     {"guideline", "version", "task", "by"}
POST /next      {"by"} -> what this person sees now
POST /decide    {"by", "key", "ranks", "ideal", "began", "skip", "seconds"} -> what they see then
POST /undo      {"by"} -> the prompt of their last decision, and what it was
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..data import Guideline
from ..errors import UserError
from ..serve.api import read_body
from ..serve.asked import ApiError
from ..serve.guard import Guard
from ..serve.pages import page_response
from ..synthesize import Ask, Made, Speaker, Talk
from ..synthesize.talk import once, seed_of
from .store import Item, Row, Store

LOG = logging.getLogger(__name__)
PAGE = Path(__file__).with_name("page.html")
AHEAD = 4  # prompts that are answered before anybody asks
BODY = 1 << 20  # bytes of a request at most


class Annotation:
    """The routes. speaker: who answers, `count` times each prompt; None: people write, there is nothing to rank. by:
    the name that the page begins with."""

    def __init__(
        self, store: Store, guideline: Guideline, speaker: Speaker | None = None, count: int = 4,
        *, seed: int = 0, by: str = "",
    ):  # fmt: skip
        self.store, self.guideline, self.speaker = store, guideline, speaker
        self._count, self._seed, self._by = count, seed, by
        self._answering = asyncio.Lock()
        self._ahead: asyncio.Task | None = None

    async def page(self, request: Request) -> Response:
        return page_response(PAGE)

    async def about(self, request: Request) -> Response:
        return JSONResponse({
            "guideline": self.guideline.text, "version": self.guideline.version,
            "task": "rank" if self.speaker else "write", "by": self._by,
        })  # fmt: skip

    async def next(self, request: Request) -> Response:
        body = await read_body(request, BODY)
        return await self._next(_name(body))

    async def decide(self, request: Request) -> Response:
        body = await read_body(request, BODY)
        by, ranks, ideal, began = _name(body), body.get("ranks"), body.get("ideal") or [], body.get("began")
        if ranks is not None and not _all(ranks, int):
            raise ApiError("ranks: expected whole numbers")
        if not _all(ideal, str):
            raise ApiError("ideal: expected texts")
        if began is not None and (type(began) is not int or began < 0):
            raise ApiError("began: expected an answer's number")
        self.store.decide(
            by, str(body.get("key")), self.guideline.stamp, ranks=ranks, ideal=ideal, began=began,
            skip=body.get("skip") is True, seconds=_seconds(body.get("seconds")),
        )  # fmt: skip
        return await self._next(by)

    async def undo(self, request: Request) -> Response:
        by = _name(await read_body(request, BODY))
        undone = self.store.undo(by)
        if undone is None:
            raise ApiError("there is nothing to undo")
        item, before = undone
        return self._shown(by, item, {name: before[name] for name in ("ranks", "ideal", "began")})

    async def _next(self, by: str) -> Response:
        while (item := self.store.next(by)) and self.speaker and item.key not in self.store.answers:
            await self._answer([item.key])
        if self.speaker and (self._ahead is None or self._ahead.done()):
            self._ahead = asyncio.create_task(self._look_ahead())
        return self._shown(by, item)

    def _shown(self, by: str, item: Item | None, before: Row | None = None) -> Response:
        done, left = self.store.progress(by)
        shown: Row = {"done": done, "left": left, "item": None}
        if item:
            answers = self.store.answers.get(item.key, [])
            shown["item"] = {
                "key": item.key, "messages": list(item.prompt.messages), "before": before,
                "answers": [{"index": i, "text": answers[i]} for i in self.store.order(by, item.key)],
            }  # fmt: skip
        return JSONResponse(shown)

    async def _look_ahead(self) -> None:
        try:
            await self._answer(self.store.ahead(AHEAD))
        except UserError as error:  # who comes to these prompts asks again, and is told
            LOG.warning("%s", error)

    async def _answer(self, keys: Sequence[str]) -> None:
        """Have the model answer prompts that it has not answered yet."""
        async with self._answering:
            keys = [key for key in keys if key not in self.store.answers]
            made = await asyncio.to_thread(self._sample, keys)
            for key, texts in made.items():
                assert self.speaker
                self.store.add_answers(key, texts, self.speaker.about)

    def _sample(self, keys: Sequence[str]) -> dict[str, list[str]]:
        """The different answers of the model to each prompt that ended by themselves."""
        assert self.speaker
        found: dict[int, Made] = {}
        numbers = {n: key for n, key in enumerate(key for key in keys for _ in range(self._count))}

        def talks() -> Iterator[Talk]:
            for n, key in numbers.items():
                seed = seed_of(self._seed, key, n % self._count)
                yield Talk(n, once(Ask(list(self.store.items[key].prompt.messages), seed)))

        def done(talk: Talk, made: Made) -> None:
            found[talk.number] = made

        self.speaker.work(talks(), done)
        if len(found) < len(numbers):
            raise UserError("stopped before all answers were there")
        texts: dict[str, list[str]] = {key: [] for key in keys}
        for n, key in numbers.items():
            made = found[n]
            text = "" if made.cut or made.error else str(made.messages[-1]["content"])
            if text and text not in texts[key]:
                texts[key].append(text)
        return texts


def _name(body: Row) -> str:
    by = body.get("by")
    if not isinstance(by, str) or not by.strip():
        raise ApiError("by: expected your name")
    return by.strip()


def _seconds(value: Any) -> float:
    """How long the page says that it took; a clock's word, so nothing is refused for it."""
    return float(value) if type(value) in (int, float) and 0 <= value < 1e9 else 0.0


def _all(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)


def make_app(
    annotation: Annotation, folder: Path, api_key: str | None = None, hosts: tuple[str, ...] | None = None
) -> Starlette:
    """The application; at its end it writes the files for training into `folder`. api_key, hosts: as the server of
    pyengine.serve has them."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        if annotation.speaker:
            annotation.speaker.stop()
        annotation.store.export(folder)

    async def refuse(request: Request, error: Exception) -> Response:
        if isinstance(error, UserError):
            error = ApiError(str(error))
        elif not isinstance(error, ApiError):
            error = ApiError("the server failed; its log says why", 500, "server_error")
        return JSONResponse(error.body, error.status)

    return Starlette(
        routes=[
            Route("/", annotation.page),
            Route("/about", annotation.about),
            Route("/next", annotation.next, methods=["POST"]),
            Route("/decide", annotation.decide, methods=["POST"]),
            Route("/undo", annotation.undo, methods=["POST"]),
        ],
        exception_handlers={kind: refuse for kind in (ApiError, UserError, Exception)},
        middleware=[Middleware(Guard, api_key=api_key, hosts=hosts, origins=(), responses=Counter())],
        lifespan=lifespan,
    )
