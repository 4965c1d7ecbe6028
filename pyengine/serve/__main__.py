"""Serve a model to OpenAI clients: `python -m pyengine.serve runs/default`, then base_url http://127.0.0.1:8000/v1."""

import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..command import run
from ..errors import UserError
from .loading import KvDtype, open_model

# Seconds that an idle connection is kept: longer than clients keep theirs (httpx, and so the openai client: 5), since a
# request that is sent while the server hangs up is lost.
KEEP_ALIVE = 75
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Command:
    """Serve a model to OpenAI clients and, at /, to people."""

    model: tyro.conf.Positional[Path]
    """a run's folder, a Hugging Face directory, or a GGUF file"""
    host: str = "127.0.0.1"
    """address to listen on; give an API key before opening it to others"""
    port: int = 8000
    """port to listen on; 0 takes a free one"""
    name: str = ""
    """the model's id; by default the name of its folder"""
    api_key: str = os.environ.get("PYENGINE_API_KEY", "")
    """what clients must show; the environment variable PYENGINE_API_KEY keeps it out of sight"""
    max_batch: int = 32
    """answers written at once; more wait"""
    pages: int = 0
    """pages of the cache, of 64 tokens each; 0: enough for whole contexts, up to about 1 GiB"""
    kv_dtype: KvDtype = "auto"
    """keys and values in the model's own type, or as int8: half of bfloat16's memory, so twice the answers"""
    device: str = "cpu"
    """where it computes: cpu, cuda or cuda:N"""
    max_waiting: int = 256
    """answers asked for and not finished; more are refused"""
    max_body: int = 1 << 20
    """bytes of a request's body at most"""
    max_seconds: float = 600
    """seconds for one answer, which then ends where it is"""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """show the traceback of a mistake"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    command = tyro.cli(Command, args=arguments, prog="pyengine.serve")
    return run(lambda: serve(command), command.debug)


def serve(command: Command) -> None:
    """Serve until interrupted."""
    try:
        import uvicorn

        from .api import Limits, make_app
    except ImportError as error:
        raise UserError(
            f"{error.name} is missing; install it with `pip install pyengine-llm[serve]`"
        ) from None
    local = command.host in LOOPBACK
    if not local and not command.api_key:
        print("warning: anybody who reaches this address may use the model; --api-key asks for a key",
              file=sys.stderr)  # fmt: skip
    with listen(command.host, command.port) as listener:
        served = open_model(
            command.model, command.max_batch, pages=command.pages or None, kv_dtype=command.kv_dtype,
            device=command.device,
        )  # fmt: skip
        limits = Limits(command.max_body, command.max_waiting, command.max_seconds)
        name = command.name or command.model.resolve().name
        app = make_app(served, name, limits, command.api_key or None, LOOPBACK if local else None)
        shown = f"[{command.host}]" if ":" in command.host else command.host
        base = f"http://{shown}:{listener.getsockname()[1]}"
        print(f"{name}: talk to it at {base}/, clients at {base}/v1", flush=True)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5,
                                timeout_keep_alive=KEEP_ALIVE)  # fmt: skip
        uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address, before the model is loaded: who cannot have it is told at once."""
    if not 0 <= port < 1 << 16:
        raise UserError(f"--port {port}: expected 0 to 65535 (0 takes a free one)")
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise UserError(
            f"cannot listen on {host}, port {port}: {(error.strerror or str(error)).lower()}; choose another "
            "--host or --port"
        ) from None
    return listener


if __name__ == "__main__":
    sys.exit(main())
