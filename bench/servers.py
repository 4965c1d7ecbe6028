"""Servers as processes of their own, ours and llama.cpp's, and a client that costs them little."""

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import httpx

ROOT = Path(__file__).parents[1]
TICKS = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def llama_server() -> str | None:
    """llama.cpp's server: what PYENGINE_LLAMA_SERVER names, or `llama-server` on the path."""
    return os.environ.get("PYENGINE_LLAMA_SERVER") or shutil.which("llama-server")


class Server:
    """A running server; leaving the block ends it."""

    def __init__(self, command: list[str], port: int, **variables: str):
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        nowhere, environment = subprocess.DEVNULL, {**os.environ, **variables}
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=nowhere, stderr=nowhere)

    @classmethod
    def ours(cls, model: Path, port: int, *options: str, threads: int | None = None) -> "Server":
        command = [sys.executable, "-m", "pyengine.serve", str(model), "--port", str(port), *options]
        return cls(command, port, **{"OMP_NUM_THREADS": str(threads)} if threads else {})

    @classmethod
    def llama_cpp(
        cls, binary: str, model: Path, port: int, streams: int, context: int, threads: int
    ) -> "Server":
        """With a slot for each of `streams` answers of `context` tokens, batched as they come."""
        options = ["--threads", threads, "--parallel", streams, "--ctx-size", streams * context, "--flash-attn", "on",
                   "--host", "127.0.0.1", "--port", port]  # fmt: skip
        return cls([binary, "--model", str(model), *map(str, options)], port)

    def __enter__(self) -> "Server":
        end = time.monotonic() + 300
        while time.monotonic() < end:
            self.check()
            try:
                if httpx.get(f"{self.url}/health").status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        self.__exit__()
        raise TimeoutError(f"{self.url} does not answer")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def check(self) -> None:
        """ChildProcessError if it has ended."""
        if (code := self._process.poll()) is not None:
            raise ChildProcessError(f"{self._process.args[:3]} ended with status {code}")

    def processor_seconds(self) -> float:
        """What all its threads have used since it began (Linux)."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS


class Streamed(NamedTuple):
    """How an answer came: seconds to the first event and to the end, tokens, text."""

    first: float
    whole: float
    tokens: int
    text: str


def streams(server: Server, bodies: list[dict]) -> list[Streamed]:
    """The answers of /v1/completions to all bodies, streamed at once."""

    async def all_of_them():
        return await asyncio.gather(*(_stream(server, body) for body in bodies))

    return asyncio.run(all_of_them())


async def _stream(server: Server, body: dict) -> Streamed:
    data = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}}).encode()
    start, first, blocks = time.perf_counter(), 0.0, []
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data)
    )
    while block := await reader.read(1 << 16):
        if not first and b"data: " in block:
            first = time.perf_counter() - start
        blocks.append(block)
    writer.close()
    raw = b"".join(blocks).decode()
    assert raw.startswith("HTTP/1.1 200"), raw[:1000]
    events = [json.loads(event) for event in re.findall(r"^data: (\{.*\})\s*$", raw, re.M)]
    tokens = next(event["usage"]["completion_tokens"] for event in reversed(events) if event.get("usage"))
    text = "".join(choice["text"] for event in events for choice in event["choices"])
    return Streamed(first, time.perf_counter() - start, tokens, text)
