"""A load test: many clients at once, some of them rude; no wrong or mixed answer, nothing left over.

    python -m bench.crowd MODEL --seconds 120 --clients 64

MODEL is served by a process of its own. Its clients stream, wait for whole answers, read slowly, leave in the midst,
send what is no request, too much, or half of one. They ask the same questions again and again, with seeds, each in
its own way of sampling; every answer must be the one that an engine gives to the question alone. In the end the
server must hold no page of its cache, and in the second half of the time its memory must not have grown.
"""

import argparse
import asyncio
import json
import math
import random
import statistics
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from bench.servers import Server, free_port
from pyengine.engine import SamplingParams
from pyengine.serve import Served, open_model

THINGS = ["the moon", "a cat in a hat", "why bread rises", "rain", "an old clock", "tea", "how ships float"]
WAYS: list[dict[str, Any]] = [  # of sampling; fields that a request and SamplingParams name alike
    {},
    {"temperature": 0.0},
    {"temperature": 0.7, "top_p": 0.9},
    {"top_k": 20, "min_p": 0.05},
    {"temperature": 0.8, "frequency_penalty": 0.5, "repetition_penalty": 1.1},
]
NO_REQUESTS = [
    b"{", b"[]", b"\xff\xfe", b'{"messages": 3}', b'{"messages": [{}]}', b"[" * 900,
    b'{"messages": [{"role": "user", "content": {"a": 1}}]}',
    b'{"messages": [{"role": "user", "content": "x"}], "n": 1e9}',
    b'{"messages": [{"role": "user", "content": "x"}], "seed": -1}',
    b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
]  # fmt: skip


@dataclass(frozen=True)
class Question:
    """A request and its answer."""

    body: dict[str, Any]
    answer: str


def questions(served: Served, count: int = 15, longest: int = 48) -> list[Question]:
    """Questions answered by `served` one at a time. It must not search by itself."""
    bodies = []
    for seed in range(count):
        text = f"Say something about {THINGS[seed % len(THINGS)]}. " * (1 + seed % 4)
        more = {"seed": seed, "max_tokens": 16 + 7 * seed % (longest - 15), **WAYS[seed % len(WAYS)]}
        bodies.append({"messages": [{"role": "user", "content": text}], "tool_choice": "none", **more})
    made = []
    for body in bodies:
        asked = {k: v for k, v in body.items() if k not in ("messages", "tool_choice")}
        params = SamplingParams(stop=served.format.stop, tools=False, **asked)
        done = served.engine.generate([served.format.prompt(body["messages"])], params)[0]
        text = served.tokenizer.decode(done.ids, skip_special=True)
        made.append(Question(body, text.removeprefix(" ") if served.format.spaced else text))
    return made


class Crowd:
    """Clients of every kind on the server at `url`, which must take four answers a client at once, and bodies of at
    most `most` bytes. growth: MB of memory that it may take in the second half of the time."""

    def __init__(
        self, url: str, asked: list[Question], seconds: float, clients: int = 64, most: int = 100_000,
        growth: float = 8,
    ):  # fmt: skip
        self.url, self.asked, self.clients, self.most, self.growth = url, asked, clients, most, growth
        self.post = f"{url}/v1/chat/completions"
        self.count: Counter[str] = Counter()
        self.first: list[float] = []  # seconds to the first token of a stream
        self.memory: list[tuple[float, int]] = []  # (seconds since the start, bytes of the server)
        self.tokens, self.seconds = 0.0, seconds

    def run(self) -> None:
        """Let them loose; AssertionError if an answer is wrong or something is left over."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=300, limits=limits) as client:
            await self._warm(client)
            self.start = time.monotonic()
            before = await self._metrics(client)
            watcher = asyncio.create_task(self._watch(client))
            crowd = [asyncio.create_task(self._client(client, number)) for number in range(self.clients)]
            try:
                await asyncio.gather(*crowd)
            finally:
                spent = time.monotonic() - self.start
                for task in (watcher, *crowd):
                    task.cancel()
                await asyncio.gather(watcher, *crowd, return_exceptions=True)
            after = await self._idle(client)
        self.tokens = (after["generated_tokens_total"] - before["generated_tokens_total"]) / spent
        assert after["pages_held"] == 0 == after["requests_unfinished"], "something was left over"
        assert not any(value for name, value in after.items() if 'status="500"' in name), "the server failed"
        self.quarters = [
            max(size for at, size in self.memory if at <= end) / 1e6
            for end in (spent / 4, spent / 2, 3 * spent / 4, math.inf)
        ]
        assert self.quarters[3] - self.quarters[1] <= self.growth, f"memory grew: {self._memory()}"

    async def _warm(self, client: httpx.AsyncClient) -> None:
        """Let the server meet every size of batch, for each of which it keeps buffers: answers that end in turn."""
        for way in (WAYS[0], WAYS[-1]):
            body = {**self.asked[0].body, **way, "ignore_eos": True}
            lengths = [3 * (i + 1) for i in range(min(32, self.clients))]
            posts = [client.post(self.post, json={**body, "max_tokens": length}) for length in lengths]
            assert all(response.status_code == 200 for response in await asyncio.gather(*posts))

    async def _client(self, client: httpx.AsyncClient, number: int) -> None:
        dice = random.Random(number)
        kinds = [self._reads, self._reads, self._waits, self._is_slow]
        kinds += [self._leaves, self._leaves_early, self._errs]
        rude = [self._sends_too_much, self._breaks_off]
        turn = 0
        while turn == 0 or time.monotonic() < self.start + self.seconds:
            kind = kinds[number % len(kinds)] if turn % 4 else dice.choice(kinds + rude)
            await kind(client, dice)
            self.count[kind.__name__] += 1
            turn += 1

    async def _stream(self, client, body: dict, pause: float = 0.0, chunks: int | None = None) -> str | None:
        """The text of a streamed answer; None if left after some chunks."""
        start, text, seen = time.monotonic(), "", 0
        async with client.stream("POST", self.post, json={**body, "stream": True}) as response:
            assert response.status_code == 200, await response.aread()
            async for line in response.aiter_lines():
                if not line or line == "data: [DONE]":
                    continue
                event = json.loads(line.removeprefix("data: "))
                assert "error" not in event, event
                text += event["choices"][0]["delta"].get("content") or ""
                seen += 1
                if seen == 2:  # the first only names the role
                    self.first.append(time.monotonic() - start)
                if chunks is not None and seen >= chunks:
                    return None
                if pause:
                    await asyncio.sleep(pause)
        return text

    async def _reads(self, client, dice) -> None:
        self._check(one := dice.choice(self.asked), await self._stream(client, one.body))

    async def _is_slow(self, client, dice) -> None:
        self._check(one := dice.choice(self.asked), await self._stream(client, one.body, pause=0.05))

    async def _waits(self, client, dice) -> None:
        one = dice.choice(self.asked)
        response = await client.post(self.post, json=one.body)
        assert response.status_code == 200, response.text
        self._check(one, response.json()["choices"][0]["message"]["content"])

    def _check(self, one: Question, said: str | None) -> None:
        assert said == one.answer, f"a wrong or mixed answer: {said!r} in place of {one.answer!r}"

    async def _leaves(self, client, dice) -> None:
        await self._stream(client, dice.choice(self.asked).body, chunks=dice.randint(1, 8))

    async def _leaves_early(self, client, dice) -> None:
        endless = {**self.asked[0].body, "max_tokens": 200, "ignore_eos": True, "n": 2}
        with suppress(httpx.TimeoutException):
            await client.post(self.post, json=endless, timeout=dice.uniform(0.001, 0.02))

    async def _errs(self, client, dice) -> None:
        wrong = dice.choice(NO_REQUESTS)
        response = await client.post(self.post, content=wrong)
        assert response.status_code == 400 and response.json()["error"]["message"], (wrong, response.text)

    async def _sends_too_much(self, client, dice) -> None:
        try:
            response = await client.post(self.post, content=b" " * (2 * self.most))
            assert response.status_code == 413, response.text
        except httpx.WriteError:
            pass  # the server may hang up before it has read all

    async def _breaks_off(self, client, dice) -> None:
        """A request that never ends, and one that is none."""
        url = httpx.URL(self.url)
        half = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 500\r\n\r\n{"
        for start in (half, b"\x16\x03\x01\r\n\r\n"):
            _, writer = await asyncio.open_connection(url.host, url.port)
            writer.write(start)
            await writer.drain()
            await asyncio.sleep(dice.uniform(0, 0.05))
            writer.close()

    async def _watch(self, client: httpx.AsyncClient) -> None:
        while True:
            await self._metrics(client)
            await asyncio.sleep(min(1.0, self.seconds / 16))

    async def _metrics(self, client: httpx.AsyncClient) -> dict[str, float]:
        text = (await client.get(f"{self.url}/metrics")).text
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        values = {name.removeprefix("pyengine_"): float(value) for name, value in lines}
        self.memory.append((time.monotonic() - self.start, int(values["memory_bytes"])))
        return values

    async def _idle(self, client: httpx.AsyncClient, seconds: float = 10) -> dict[str, float]:
        """The server's numbers when it answers nobody any more, or after some seconds."""
        end = time.monotonic() + seconds
        while (values := await self._metrics(client))["requests_unfinished"] and time.monotonic() < end:
            await asyncio.sleep(0.05)
        return values

    def _memory(self) -> str:
        return ", ".join(f"{size:.0f}" for size in self.quarters) + " MB at most by each quarter of the time"

    def __str__(self) -> str:
        first, kinds = sorted(self.first), ", ".join(f"{n} {k[1:]}" for k, n in sorted(self.count.items()))
        return (
            f"{self.clients} clients, {self.seconds:g} s: {self.count.total()} requests ({kinds}), no wrong or mixed "
            f"answer; first token: median {statistics.median(first):.3f} s, 95 % "
            f"{first[int(len(first) * 0.95)]:.3f} s; {self.tokens:.0f} tokens/s; no page held; {self._memory()}"
        )


def crowd_on(model: Path, seconds: float, clients: int) -> Crowd:
    """The whole load test on a process that serves `model`."""
    served = open_model(model, max_batch=1, with_search=False)
    asked = questions(served)
    del served
    options = (
        f"--max-waiting {4 * clients} --max-body 100000 --pages 48".split()
    )  # few, so that some are preempted
    growth = (
        8 if seconds >= 60 else math.inf
    )  # a short one ends while pages are touched and steps captured first
    with Server.ours(model, free_port(), *options) as server:
        crowd = Crowd(server.url, asked, seconds, clients, growth=growth)
        crowd.run()
        server.check()
    return crowd


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.crowd", description=__doc__.split("\n\n")[0])
    parser.add_argument("model", type=Path, help="what python -m pyengine.serve takes")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clients", type=int, default=64)
    arguments = parser.parse_args()
    print(crowd_on(arguments.model, arguments.seconds, arguments.clients))
    return 0


if __name__ == "__main__":
    sys.exit(main())
