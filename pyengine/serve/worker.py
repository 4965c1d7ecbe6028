"""The engine on a thread of its own: coroutines hand in prompts and receive tokens as they are made.

    worker = Worker(engine)
    async with worker.answers(prompts, params) as answers:
        async for answer, tokens, completion, done in answers: ...

Only the thread touches the engine. What coroutines want is put into one inbox, which the thread empties
between steps; after a step it wakes each event loop once, whatever the number of answers. Who is slow to look finds
the tokens of several steps together. Leaving early cancels what is left. A step that raises fails the requests of
that moment, with the traceback in the log; the thread lives on.
"""

import asyncio
import concurrent.futures
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

from ..engine import Completion, Engine, SamplingParams, Token
from ..engine.scheduler import Request

LOG = logging.getLogger(__name__)
T = TypeVar("T")


class Busy(Exception):
    """The queue is full; ask again later."""


class News(NamedTuple):
    """What is new of one of several answers: its tokens, its completion so far, and whether no more will come."""

    answer: int
    tokens: list[Token]
    completion: Completion
    done: bool


class Answers:
    """Answers being made: iterates over News until all are done. What is not done when it is left is cancelled.

    seconds: that it may take at most; then it raises TimeoutError.
    """

    def __init__(
        self,
        worker: "Worker",
        prompts: Sequence[Sequence[int]],
        params: Sequence[SamplingParams],
        seconds: float,
    ):
        self.loop = asyncio.get_running_loop()
        self._worker, self._prompts, self._params, self._seconds = worker, prompts, params, seconds
        self._requests: list[Request] = []  # filled by the engine's thread
        self._given = [0] * len(prompts)  # tokens told, of each
        self._open = set(range(len(prompts)))
        self._fresh: dict[int, Request] = {}  # those with news, the longest known first
        self._error: Exception | None = None
        self._woken = asyncio.Event()

    async def __aenter__(self) -> "Answers":
        self._worker.unfinished += len(self._open)
        self._worker.do(self._start)
        self._alarm = self.loop.call_later(self._seconds, self.fail, TimeoutError())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._alarm.cancel()
        self._worker.unfinished -= len(self._open)
        self._worker.do(lambda: self._worker.cancel(self._requests))

    def __aiter__(self) -> "Answers":
        return self

    async def __anext__(self) -> News:
        while self._open:
            while not self._fresh and not self._error:
                self._woken.clear()
                await self._woken.wait()
            if self._error:
                raise self._error
            index = next(iter(self._fresh))
            request = self._fresh.pop(index)
            if index not in self._open:
                continue
            answer, given = request.completion, self._given[index]
            done = request.done  # before the tokens are counted: none come after it
            self._given[index] = ready = len(answer.forced)  # the last list to grow
            new = slice(given, ready)
            parts = answer.ids[new], answer.logprobs[new], answer.forced[new], answer.details[new]
            if done:
                self._close(index)
            return News(index, list(map(Token, *parts)), answer, done)
        raise StopAsyncIteration

    def leave(self, index: int) -> None:
        """Nobody wants more of an answer."""
        if index in self._open:
            self._close(index)
            self._worker.do(lambda: self._worker.cancel([self._requests[index]]))

    def tell(self, index: int, request: Request) -> None:
        """On the event loop: the request of an answer has got tokens, or is done."""
        self._fresh[index] = request
        self._woken.set()

    def fail(self, error: Exception) -> None:
        """On the event loop: there will be no answers."""
        self._error = error
        self._woken.set()

    def _start(self) -> None:
        try:
            for prompt, params in zip(self._prompts, self._params, strict=True):
                self._requests.append(self._worker.engine.add(prompt, params))
        except Exception as error:
            self._worker.cancel(self._requests)
            return call(self.loop, self.fail, error)
        self._worker.listen(self, self._requests)

    def _close(self, index: int) -> None:
        self._open.discard(index)
        self._worker.unfinished -= 1


class Worker:
    """Serves many coroutines with one engine. max_waiting: requests unfinished at most, more are refused."""

    def __init__(self, engine: Engine, max_waiting: int = 256):
        self.engine, self.max_waiting = engine, max_waiting
        self.unfinished = 0
        self._inbox: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._listeners: dict[Request, tuple[Answers, int]] = {}
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the thread; what is unfinished is cancelled."""
        self._inbox.put(None)
        self._thread.join()

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        params: Sequence[SamplingParams],
        seconds: float = 3600.0,
    ) -> Answers:
        """One answer to each prompt, to be entered; Busy if too many wait."""
        if self.unfinished + len(prompts) > self.max_waiting:
            raise Busy
        return Answers(self, prompts, params, seconds)

    def do(self, work: Callable[[], object]) -> None:
        """Have the engine's thread do something between two steps."""
        self._inbox.put(work)

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

    # On the engine's thread

    def listen(self, answers: Answers, requests: Iterable[Request]) -> None:
        """Tell `answers` of each of its requests, after the steps in which it got a token, and when it is done."""
        self._listeners.update((request, (answers, index)) for index, request in enumerate(requests))
        self._tell(request for request in requests if request.done)

    def cancel(self, requests: Iterable[Request]) -> None:
        """Stop requests that are not done; they are told once more."""
        for request in requests:
            self.engine.cancel(request)
        self._tell(requests)

    def _serve(self) -> None:
        while True:
            while not self._inbox.empty() or not self.engine.unfinished:
                wish = self._inbox.get()
                if wish is None:
                    self.cancel(list(self._listeners))
                    return
                wish()
            try:
                told = self.engine.step()
            except Exception as error:
                LOG.exception("a step of the engine failed")
                self.engine.fail_all(f"the engine failed: {type(error).__name__}")
                told = list(self._listeners)
            self._tell(told)

    def _tell(self, requests: Iterable[Request]) -> None:
        """Wake each event loop that waits for any of these requests, once."""
        loops: dict[asyncio.AbstractEventLoop, list[tuple[Answers, int, Request]]] = {}
        for request in requests:
            if request in self._listeners:
                answers, index = self._listeners[request]
                loops.setdefault(answers.loop, []).append((answers, index, request))
                if request.done:
                    del self._listeners[request]
        for loop, news in loops.items():
            call(loop, _deliver, news)


def _deliver(news: list[tuple[Answers, int, Request]]) -> None:
    for answers, index, request in news:
        answers.tell(index, request)


def call(loop: asyncio.AbstractEventLoop, work: Callable[..., object], *arguments: object) -> None:
    """Have an event loop call something soon; nothing if it is closed, for then nobody listens any more."""
    try:
        loop.call_soon_threadsafe(work, *arguments)
    except RuntimeError:
        pass
