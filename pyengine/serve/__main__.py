"""Serve a model to OpenAI clients: `python -m pyengine.serve runs/default`, then base_url http://127.0.0.1:8000/v1."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from ..errors import UserError
from .loading import open_model


@dataclass(frozen=True)
class Command:
    """Serve a model to OpenAI clients."""

    model: tyro.conf.Positional[Path]
    """a run's folder, or a Hugging Face directory"""
    host: str = "127.0.0.1"
    """address to listen on; there is no password, so think before opening it to others"""
    port: int = 8000
    max_batch: int = 32
    """answers written at once; more wait"""


def main(arguments: list[str] | None = None) -> int:
    """Run until interrupted; returns the exit status."""
    command = tyro.cli(Command, args=arguments, prog="pyengine.serve")
    try:
        try:
            import uvicorn

            from .api import make_app
        except ImportError as error:
            raise UserError(
                f"{error.name} is missing; install it with `pip install pyengine-llm[serve]`"
            ) from None
        served = open_model(command.model, command.max_batch)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    uvicorn.run(make_app(served, command.model.name), host=command.host, port=command.port, log_level="info")
    return 0


if __name__ == "__main__":
    sys.exit(main())
