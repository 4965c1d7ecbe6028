"""Who writes what a Talk asks for: a model here, or one behind an OpenAI-compatible endpoint.

    speaker = open_speaker("runs/default", Sampling())          # or https://host/v1
    speaker.work(talks, done)                                   # done(talk, made), in the order in which they end

Both keep `parallel` conversations going at once. Here the engine batches them: a conversation whose message has ended
asks for its next one before the next step. Over HTTP each is a coroutine; what may pass (a full queue, a lost
connection, a server that starts) is tried again, later and later.
"""

import asyncio
import email.utils
import hashlib
import math
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import httpx

from ..engine import Completion, SamplingParams, Token
from ..engine.sampling import RANGES
from ..engine.scheduler import Request
from ..errors import UserError
from ..files import file_hash
from ..serve import Served, TextFormat, open_model
from ..serve.conversation import Reader
from ..serve.worker import call
from ..train.progress import note
from .talk import Made, Reply, Talk

Done = Callable[[Talk, Made], None]
KEY = "OPENAI_API_KEY"  # environment variable with what an endpoint asks for
PASSING = (408, 409, 425, 429, 500, 502, 503, 504)  # statuses that another try may not meet
NOT_OURS = {  # nor will the next conversation fare better
    401: f"the key is read from {KEY}",
    403: f"the key is read from {KEY}",
    404: "expected a base URL as https://host/v1, and a --name that the endpoint knows",
}
LONGEST_WAIT = 60.0  # seconds between two tries
TIMEOUT = 600.0  # seconds of silence that end the wait for an answer


@dataclass(frozen=True)
class Sampling:
    """How messages are sampled."""

    temperature: Annotated[float, RANGES["temperature"]] = 0.8
    """0 always takes the most likely token"""
    top_p: Annotated[float, RANGES["top_p"]] = 1.0
    """keep only the likeliest tokens that make up this share; 1 keeps all"""
    top_k: Annotated[int, RANGES["top_k"]] = 0
    """keep only the k most likely tokens; 0 keeps all"""
    min_p: Annotated[float, RANGES["min_p"]] = 0.0
    """drop tokens whose probability is below this share of the likeliest one's; 0 keeps all"""
    max_tokens: Annotated[int, RANGES["max_tokens"]] = 512
    """longest message, in tokens; one that has not ended by then is cut off"""


class Speaker(Protocol):
    """Writes messages."""

    @property
    def about(self) -> dict[str, Any]:
        """Which model this is, for the provenance of what it writes."""
        ...

    def work(self, talks: Iterable[Talk], done: Done) -> None:
        """Write conversations to their ends, each told to `done`. UserError: it cannot go on."""
        ...

    def stop(self) -> None:
        """From another thread: have work() end soon, whatever is unfinished."""
        ...

    @property
    def tokens(self) -> int:
        """Tokens written so far."""
        ...


def open_speaker(
    model: str, sampling: Sampling, parallel: int = 32, *, name: str = "", searches: bool = True,
    device: str = "cpu", retries: int = 6, timeout: float = TIMEOUT,
) -> Speaker:  # fmt: skip
    """The speaker of a path (as pyengine.serve.open_model has it) or of a base URL. name: the model's there."""
    if model.startswith(("http://", "https://")):
        return Endpoint(model, name, sampling, parallel, os.environ.get(KEY, ""), retries, timeout)
    served = open_model(model, parallel, with_search=searches, device=device)
    return Local(served, name or Path(model).resolve().name, sampling, parallel)


class Local:
    """A model on this machine."""

    def __init__(self, served: Served, name: str, sampling: Sampling, parallel: int):
        if isinstance(served.format, TextFormat):
            raise UserError(f"{served.folder} is a base model, which continues texts and does not converse")
        self._served, self._sampling, self._parallel = served, sampling, parallel
        self.about = {"name": name, "sha256": model_hash(served.folder)}
        self._stopped = False

    @property
    def tokens(self) -> int:
        return self._served.engine.stats.sampled

    def work(self, talks: Iterable[Talk], done: Done) -> None:
        engine, waiting = self._served.engine, iter(talks)
        running: dict[Request, Talk] = {}

        def go_on(talk: Talk) -> None:
            """Ask for the next message; what cannot be asked for ends the conversation."""
            try:
                request = self._ask(talk)
            except UserError as error:
                return hear(talk, Reply(error=str(error)))
            if request.done:
                return hear(talk, Reply(error=request.completion.error))
            running[request] = talk

        def hear(talk: Talk, reply: Reply) -> None:
            made = talk.hear(reply)
            if made is None:
                go_on(talk)
            else:
                done(talk, made)

        try:
            while True:
                while len(running) < self._parallel and (talk := next(waiting, None)) is not None:
                    go_on(talk)
                if not running or self._stopped:
                    return
                for request in engine.advance():
                    if request.done:
                        hear(running.pop(request), self._reply(request.completion))
        finally:
            for request in running:
                engine.cancel(request)

    def stop(self) -> None:
        self._stopped = True

    def _ask(self, talk: Talk) -> Request:
        served, ask = self._served, talk.ask
        stop = served.format.stop
        if not ask.searches and served.format.search is not None:
            stop = (*stop, served.format.search)
        params = SamplingParams(
            **asdict(self._sampling), seed=ask.seed, stop=stop, tools=ask.searches, scored=False
        )
        return served.engine.add(served.format.prompt(ask.messages), params)

    def _reply(self, completion: Completion) -> Reply:
        if completion.error:
            return Reply(error=completion.error)
        reader = Reader(self._served.tokenizer, self._served.format.spaced)
        tokens = list(map(Token, completion.ids, completion.logprobs, completion.forced))
        if completion.finish_reason == "stop":
            tokens.pop()  # what ended it is not said, be it a search where there is none
        for token in tokens:
            reader.push(token)
        reader.flush()
        messages = reader.messages()
        messages[-1]["content"] = messages[-1]["content"].strip()
        return Reply(messages, cut=completion.finish_reason != "stop")


class Endpoint:
    """A model behind OpenAI's /chat/completions. base: its URL up to there, as https://host/v1. name: which model; by
    default the only one. key: what it asks for. timeout: seconds that it may be silent over an answer."""

    def __init__(
        self, base: str, name: str, sampling: Sampling, parallel: int, key: str = "", retries: int = 6,
        timeout: float = TIMEOUT,
    ):  # fmt: skip
        try:
            place, problem = httpx.URL(base), ""
        except httpx.InvalidURL as error:
            place, problem = httpx.URL(), f"not a URL ({error})"
        if place.userinfo or (not place.host and "@" in base):  # a secret, which is not to be shown
            raise UserError(
                f"keep what the endpoint asks for out of its URL, in the environment variable {KEY}"
            )
        if not place.host:
            raise UserError(f"{base}: {problem or 'no host in it'}; expected a URL as https://host/v1")
        if not (key.isascii() and key.isprintable()):
            raise UserError(f"{KEY}: a key has letters, digits and signs of ASCII only, this one has others")
        self._base, self._parallel, self._retries = base.rstrip("/"), parallel, retries
        self._timeout, self._told = timeout, set[str]()  # problems that were told already
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._sampling = {
            option: value
            for option, value in asdict(sampling).items()
            # not OpenAI's, so not said where they change nothing
            if option not in ("top_k", "min_p") or value
        }
        self.about = {"name": name or asyncio.run(self._only()), "endpoint": self._base}
        self.tokens = 0
        self._stopped, self._cancel = False, lambda: None

    def work(self, talks: Iterable[Talk], done: Done) -> None:
        asyncio.run(self._work(iter(talks), done))

    def stop(self) -> None:
        self._stopped = True
        self._cancel()

    async def _work(self, talks: Iterator[Talk], done: Done) -> None:
        async with self._client() as client:
            lanes = [asyncio.create_task(self._lane(client, talks, done)) for _ in range(self._parallel)]
            every = asyncio.gather(*lanes)
            loop = asyncio.get_running_loop()
            self._cancel = lambda: call(loop, every.cancel)
            try:
                await every
            except asyncio.CancelledError:
                if not self._stopped:
                    raise
            finally:
                for lane in lanes:
                    lane.cancel()
                await asyncio.gather(*lanes, return_exceptions=True)

    async def _lane(self, client: httpx.AsyncClient, talks: Iterator[Talk], done: Done) -> None:
        """One conversation after another."""
        for talk in talks:
            made = None
            while made is None:
                made = talk.hear(await self._reply(client, talk))
            done(talk, made)

    async def _reply(self, client: httpx.AsyncClient, talk: Talk) -> Reply:
        body = {
            "model": self.about["name"], "messages": talk.ask.messages, "seed": talk.ask.seed, **self._sampling
        }  # fmt: skip
        response = await self._send(client, "POST", "/chat/completions", body)
        if response.status_code != 200:
            return Reply(error=_said(response))
        try:
            answer = response.json()
            choice = answer["choices"][0]
            text, reason = choice["message"].get("content") or "", choice["finish_reason"]
        except (ValueError, LookupError, TypeError, AttributeError):
            raise UserError(
                f"{self._base}: expected an answer in OpenAI's form, got {response.text[:200]!r}"
            ) from None
        self.tokens += int((answer.get("usage") or {}).get("completion_tokens") or 0)
        if reason not in ("stop", "length"):
            return Reply(error=f"the answer ended with {reason!r}")
        return Reply([{"role": "assistant", "content": text.strip()}], cut=reason == "length")

    async def _only(self) -> str:
        """The name of the only model."""
        async with self._client() as client:
            response = await self._send(client, "GET", "/models")
        try:
            names = [str(model["id"]) for model in response.json()["data"]]
        except (ValueError, LookupError, TypeError):
            raise UserError(
                f"{self._base}: expected a list of models, got {response.text[:200]!r}; give --name"
            ) from None
        if len(names) != 1:
            raise UserError(f"{self._base}: give --name, one of {', '.join(names[:20]) or 'no model'}")
        return names[0]

    async def _send(
        self, client: httpx.AsyncClient, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> httpx.Response:
        """The response, after as many tries as it takes; one that no other try would better may be an error's."""
        for tried in range(self._retries + 1):
            wait = min(LONGEST_WAIT, 0.5 * 2**tried) * random.uniform(0.5, 1)
            try:
                response = await client.request(method, self._base + path, json=body)
            except (httpx.ReadTimeout, httpx.WriteTimeout):
                problem = f"no answer within {self._timeout:g} s"
            except httpx.TransportError as error:
                problem = str(error) or type(error).__name__
            else:
                if response.status_code in NOT_OURS:
                    raise UserError(f"{self._base}: {_said(response)}; {NOT_OURS[response.status_code]}")
                if response.status_code not in PASSING:
                    return response
                problem = _said(response)
                wait = max(wait, _asked_wait(response))
            if tried < self._retries:
                if problem not in self._told:
                    self._told.add(problem)
                    note(f"{self._base}: {problem}; asking again")
                await asyncio.sleep(wait)
        raise UserError(
            f"{self._base}: no answer in {self._retries + 1} tries, the last: {problem}; "
            "give the command again to go on"
        )

    def _client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=self._parallel, max_keepalive_connections=self._parallel)
        timeout = httpx.Timeout(self._timeout, connect=10)
        return httpx.AsyncClient(headers=self._headers, timeout=timeout, limits=limits)


def _said(response: httpx.Response) -> str:
    """What an error response says, in one line."""
    try:
        text = response.json()["error"]["message"]
    except (ValueError, LookupError, TypeError):
        text = response.text
    return f"{response.status_code} {' '.join(str(text).split())[:300]}".strip()


def _asked_wait(response: httpx.Response) -> float:
    """Seconds that a Retry-After asks for, LONGEST_WAIT at most."""
    told = response.headers.get("retry-after", "0")
    try:
        seconds = float(told)
    except ValueError:
        date = email.utils.parsedate_to_datetime(told) if email.utils.parsedate(told) else None
        seconds = date.timestamp() - time.time() if date else 0.0
    return min(LONGEST_WAIT, seconds) if math.isfinite(seconds) else 0.0


def model_hash(path: Path) -> str:
    """SHA-256 over what makes a model: its file, or names and hashes of a folder's weights, settings, tokenizer."""
    if path.is_file():
        return file_hash(path)
    names = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".json", ".jinja"))
    lines = [f"{p.name} {file_hash(p)}\n" for p in names]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
