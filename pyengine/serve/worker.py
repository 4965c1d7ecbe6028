"""The engine on a thread of its own: coroutines hand in prompts and receive tokens as they are made.

    worker = Worker(engine)
    async for token in worker.stream(ids, params): ...

Only the thread touches the engine. What coroutines want is put into one inbox, which the thread empties
between steps; what it made goes back through each coroutine's event loop. Leaving the loop early cancels the
request. A step that raises fails the requests of that moment, with the traceback in the log; the thread lives on.
"""

import asyncio
import concurrent.futures
import logging
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TypeVar

from ..engine import Completion, Engine, SamplingParams, Token
from ..engine.scheduler import Request

LOG = logging.getLogger(__name__)
T = TypeVar("T")


class Busy(Exception):
    """The queue is full; ask again later."""


class Worker:
    """Serves many coroutines with one engine. max_waiting: requests unfinished at most, more are refused."""

    def __init__(self, engine: Engine, max_waiting: int = 256):
        self.engine, self.max_waiting = engine, max_waiting
        self.unfinished = 0
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._listeners: dict[Request, Callable[[Request], None]] = {}
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the thread; what is unfinished is cancelled."""
        self._inbox.put(None)
        self._thread.join()

    async def stream(
        self, prompt: Sequence[int], params: SamplingParams, completion: list[Completion] | None = None
    ) -> AsyncGenerator[Token, None]:
        """The tokens of one answer. Its Completion is appended to `completion` at the first; Busy if too many wait."""
        if self.unfinished >= self.max_waiting:
            raise Busy
        self.unfinished += 1
        loop, news = asyncio.get_running_loop(), asyncio.Queue[Request | Exception]()
        requests: list[Request] = []

        def tell(request: Request | Exception) -> None:
            try:
                loop.call_soon_threadsafe(news.put_nowait, request)
            except RuntimeError:
                pass  # the loop is closed: nobody listens any more

        def start() -> None:
            try:
                request = self.engine.add(prompt, params)
            except Exception as error:
                return tell(error)
            requests.append(request)
            if request.done:
                tell(request)
            else:
                self._listeners[request] = tell

        self._inbox.put(start)
        try:
            given, finished = 0, False
            while not finished:
                request = await news.get()
                if isinstance(request, Exception):
                    raise request
                answer = request.completion
                if completion == []:
                    completion.append(answer)
                finished = request.done  # before the tokens are counted: none come after it
                ready = len(answer.forced)  # the last list to grow
                for i in range(given, ready):
                    yield Token(answer.ids[i], answer.logprobs[i], answer.forced[i], answer.details[i])
                given = ready
        finally:
            self.unfinished -= 1
            self._inbox.put(lambda: self._cancel(requests))

    async def call(self, work: Callable[[], T]) -> T:
        """What `work` returns, done on the engine's thread between two steps; Busy if too many wait."""
        if self.unfinished >= self.max_waiting:
            raise Busy
        job: concurrent.futures.Future[T] = concurrent.futures.Future()

        def do() -> None:
            if job.set_running_or_notify_cancel():
                try:
                    job.set_result(work())
                except Exception as error:
                    job.set_exception(error)

        self.unfinished += 1
        try:
            self._inbox.put(do)
            return await asyncio.wrap_future(job)
        finally:
            self.unfinished -= 1

    def _serve(self) -> None:
        while True:
            while not self._inbox.empty() or not self.engine.unfinished:
                wish = self._inbox.get()
                if wish is None:
                    for request in list(self._listeners):
                        self._finish(request)
                    return
                wish()
            try:
                self.engine.step()
            except Exception as error:
                LOG.exception("a step of the engine failed")
                self.engine.fail_all(f"the engine failed: {type(error).__name__}")
            for request, tell in list(self._listeners.items()):
                tell(request)
                if request.done:
                    del self._listeners[request]

    def _cancel(self, requests: list[Request]) -> None:
        for request in requests:
            self._finish(request)

    def _finish(self, request: Request) -> None:
        self.engine.cancel(request)
        if tell := self._listeners.pop(request, None):
            tell(request)
