"""Many clients at once, some of them rude: no wrong or mixed answer, nothing left over.

A few seconds by default; PYENGINE_LOAD_SECONDS=120 and PYENGINE_LOAD_CLIENTS=64 make it long (pytest -s shows
times to the first token).
"""

import asyncio
import json
import os
import random
import resource
import time
from collections import Counter

import httpx
import pytest

pytest.importorskip("uvicorn")

from pyengine.engine import SamplingParams
from pyengine.serve.api import Limits

from .live import served_model, serving

SECONDS = float(os.environ.get("PYENGINE_LOAD_SECONDS", 4))
CLIENTS = int(os.environ.get("PYENGINE_LOAD_CLIENTS", 64))
SEEDS = range(12)


def question(seed: int) -> list[dict]:
    return [{"role": "user", "content": "Who founded Tavor? " * (1 + seed % 5)}]


def body(seed: int, **more) -> dict:
    return {"messages": question(seed), "seed": seed, "max_tokens": 16 + seed, "stream": True, **more}


class Crowd:
    """Clients of every kind, against the answers that the engine gives to each question alone."""

    def __init__(self, url: str, answers: list[str], stop: tuple[int, ...]):
        self.url, self.answers = f"{url}/v1/chat/completions", answers
        self.endless = {str(i): -100 for i in stop}
        self.count: Counter[str] = Counter()
        self.first: list[float] = []
        self.end = time.monotonic() + SECONDS

    async def run(self) -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=120, limits=limits) as client:
            await asyncio.gather(*(self._client(client, number) for number in range(CLIENTS)))

    async def _client(self, client: httpx.AsyncClient, number: int) -> None:
        dice = random.Random(number)
        kinds = [
            self._reads,
            self._reads,
            self._waits,
            self._is_slow,
            self._leaves,
            self._leaves_early,
            self._errs,
        ]
        rude = [self._sends_too_much, self._breaks_off]
        for turn in range(10_000):
            kind = kinds[number % len(kinds)] if turn else dice.choice(kinds + rude)
            await kind(client, dice)
            self.count[kind.__name__] += 1
            if time.monotonic() > self.end:
                return

    async def _stream(self, client, seed: int, pause: float = 0.0, chunks: int | None = None) -> str | None:
        """The text of a streamed answer; None if left after some chunks."""
        start, text, seen = time.monotonic(), "", 0
        async with client.stream("POST", self.url, json=body(seed)) as response:
            assert response.status_code == 200, await response.aread()
            async for line in response.aiter_lines():
                if not line or line == "data: [DONE]":
                    continue
                event = json.loads(line.removeprefix("data: "))
                assert "error" not in event, event
                text += event["choices"][0]["delta"].get("content") or ""
                seen += 1
                if seen == 2:
                    self.first.append(time.monotonic() - start)
                if chunks is not None and seen >= chunks:
                    return None
                if pause:
                    await asyncio.sleep(pause)
        return text

    async def _reads(self, client, dice) -> None:
        seed = dice.choice(SEEDS)
        assert await self._stream(client, seed) == self.answers[seed], "a wrong or mixed answer"

    async def _is_slow(self, client, dice) -> None:
        seed = dice.choice(SEEDS)
        assert await self._stream(client, seed, pause=0.05) == self.answers[seed]

    async def _waits(self, client, dice) -> None:
        seed = dice.choice(SEEDS)
        answer = (await client.post(self.url, json=body(seed, stream=False))).json()
        assert answer["choices"][0]["message"]["content"] == self.answers[seed]

    async def _leaves(self, client, dice) -> None:
        await self._stream(client, dice.choice(SEEDS), chunks=dice.randint(1, 8))

    async def _leaves_early(self, client, dice) -> None:
        with pytest.raises(httpx.TimeoutException):
            wish = body(0, stream=False, max_tokens=200, logit_bias=self.endless, n=2)
            await client.post(self.url, json=wish, timeout=dice.uniform(0.001, 0.02))

    async def _errs(self, client, dice) -> None:
        wrong = dice.choice([b"{", b"[]", b"\xff\xfe", b'{"messages": 3}', b'{"messages": [{}]}', b"[" * 900,
                             b'{"messages": [{"role": "user", "content": {"a": 1}}]}',
                             b'{"messages": [{"role": "user", "content": "x"}], "n": 1e9}',
                             b'{"messages": [{"role": "user", "content": "x"}], "seed": -1}',
                             b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}'])  # fmt: skip
        response = await client.post(self.url, content=wrong)
        assert response.status_code == 400 and response.json()["error"]["message"], (wrong, response.text)

    async def _sends_too_much(self, client, dice) -> None:
        try:
            response = await client.post(self.url, content=b" " * 200_000)
            assert response.status_code == 413
        except httpx.WriteError:
            pass  # the server may hang up before it has read all

    async def _breaks_off(self, client, dice) -> None:
        """A request that never ends, and one that is none."""
        host, port = self.url.split("/")[2].split(":")
        half = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{"
        for start in (half, b"\x16\x03\x01\r\n\r\n"):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(start)
            await writer.drain()
            await asyncio.sleep(dice.uniform(0, 0.05))
            writer.close()


def test_a_crowd(tmp_path):
    served = served_model(tmp_path, max_batch=16, pages=40)  # too few pages for all: some are preempted
    stop = served.format.stop
    params = [SamplingParams(16 + seed, seed=seed, stop=stop) for seed in SEEDS]
    prompts = [served.format.prompt(question(seed)) for seed in SEEDS]
    alone = served_model(tmp_path, max_batch=1).engine.generate(prompts, params)
    answers = [served.tokenizer.decode(done.ids, skip_special=True).removeprefix(" ") for done in alone]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with serving(served, Limits(body=100_000, waiting=4 * CLIENTS)) as url:
        crowd = Crowd(url, answers, stop)
        asyncio.run(crowd.run())
        metrics = httpx.get(f"{url}/metrics").text
    assert all(
        crowd.count[name] for name in ("_reads", "_is_slow", "_waits", "_leaves", "_leaves_early", "_errs")
    )
    assert served.engine.stats.errors == 0 and 'status="500"' not in metrics
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 200, f"memory grew by {grown:.0f} MB"
    first = sorted(crowd.first)
    print(
        f"\n{sum(crowd.count.values())} requests of {CLIENTS} clients in {SECONDS:g} s, {dict(crowd.count)}; "
        f"first token: median {first[len(first) // 2]:.3f} s, 95 % {first[int(len(first) * 0.95)]:.3f} s; "
        f"{served.engine.stats.sampled} tokens, {served.engine.stats.preemptions} preemptions; {grown:.0f} MB more"
    )
