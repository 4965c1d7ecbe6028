"""Serve a model to OpenAI clients: `python -m pyengine.serve runs/default`, then base_url http://127.0.0.1:8000/v1."""

import gc
import os
import re
import ssl
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..command import run
from ..errors import UserError
from ..kernels._memory import trim
from ..ranges import AT_LEAST_0, AT_LEAST_1, POSITIVE, Range, check_ranges
from .address import KEEP_ALIVE, LOOPBACK, listen, open_at
from .loading import KvDtype, open_model


@dataclass(frozen=True)
class Command:
    """Serve a model to OpenAI clients and, at /, to people."""

    model: tyro.conf.Positional[Path]
    """a run's folder, a Hugging Face directory, or a GGUF file"""
    host: str = "127.0.0.1"
    """address to listen on; give an API key before opening it to others"""
    port: Annotated[int, Range(ge=0, le=65535)] = 8000
    """port to listen on; 0 takes a free one"""
    name: str = ""
    """the model's id; by default the name of its folder"""
    api_key: str = os.environ.get("PYENGINE_API_KEY", "")
    """what clients must show; the environment variable PYENGINE_API_KEY keeps it out of sight"""
    tls_cert: Path | None = None
    """certificate (PEM) to serve https with"""
    tls_key: Path | None = None
    """the certificate's key (PEM), not encrypted"""
    cors: tuple[str, ...] = ()
    """other sites whose pages may ask, as https://name:port; * allows all"""
    max_batch: Annotated[int, AT_LEAST_1] = 32
    """answers written at once; more wait"""
    pages: Annotated[int, AT_LEAST_0] = 0
    """pages of the cache, of 64 tokens each; 0: enough for whole contexts, up to about 1 GiB"""
    kv_dtype: KvDtype = "auto"
    """keys and values in the model's own type, or as int8: half of bfloat16's memory, so twice the answers"""
    device: str = "cpu"
    """where it computes: cpu, cuda or cuda:N"""
    max_waiting: Annotated[int, AT_LEAST_1] = 256
    """answers asked for and not finished; more are refused"""
    max_body: Annotated[int, AT_LEAST_1] = 1 << 20
    """bytes of a request's body at most"""
    max_seconds: Annotated[float, POSITIVE] = 600
    """seconds for one answer, which then ends where it is"""
    grace: Annotated[float, AT_LEAST_0] = 30
    """seconds that answers begun may still take once the server is told to stop (Ctrl-C or SIGTERM)"""
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
    check(command)
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
        trim()
        gc.freeze()  # what is loaded stays: the collector need not look through it while answers stream
        app = make_app(
            served, name, limits, command.api_key or None, LOOPBACK if local else None, command.cors
        )  # fmt: skip
        base = open_at(command.host, listener, "https" if command.tls_cert else "http")
        print(f"{name}: talk to it at {base}/, clients at {base}/v1", flush=True)
        uvicorn.Server(uvicorn.Config(app, **options(command))).run(sockets=[listener])


def check(command: Command) -> None:
    """Raise UserError for what could not be served with, before anything is loaded."""
    check_ranges(command)
    if not re.fullmatch(r"[!-~]*", command.api_key):
        raise UserError("api_key: expected ASCII letters, digits and signs; a header holds no others")
    for origin in command.cors:
        if origin != "*" and not re.fullmatch(r"https?://[^\s/?#@]+", origin):
            raise UserError(f"cors = {origin!r}: expected a site as https://name or https://name:port, or *")
    cert, key = command.tls_cert, command.tls_key
    if (cert is None) != (key is None):
        raise UserError("tls_cert and tls_key: expected both or neither")
    if cert is None or key is None:
        return
    for name, path in (("tls_cert", cert), ("tls_key", key)):
        if not path.is_file():
            raise UserError(f"{name} = {path}: there is no such file")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except (ssl.SSLError, ValueError):
        raise UserError(
            f"{cert}, {key}: expected a certificate and its key, both PEM, the key not encrypted"
        ) from None


def options(command: Command) -> dict[str, Any]:
    """How uvicorn serves."""
    return {
        "log_level": "warning", "timeout_keep_alive": KEEP_ALIVE, "timeout_graceful_shutdown": command.grace,
        "ssl_certfile": command.tls_cert, "ssl_keyfile": command.tls_key,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
