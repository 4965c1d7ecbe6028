"""Look at the closed world: `python -m pyengine.world --show`, `--serve`, or `--write FOLDER`."""

import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from ..command import run
from ..errors import UserError
from .config import WorldConfig
from .export import write_world
from .server import serve
from .world import World


@dataclass
class Arguments:
    """Generate the closed world: show it, write it to a folder, or serve it as a site."""

    show: bool = False
    """print what the world holds, and one example of each kind of document"""
    write: Path | None = None
    """write the site, its truth, conversations, facts and problems into this new folder"""
    serve: bool = False
    """serve the site on the loopback interface until interrupted"""
    port: int = 8000
    """where to serve; 0 takes a free port"""
    published: Literal["cutoff", "later"] = "cutoff"
    """whether the pages dated after the cut-off exist"""
    config: WorldConfig = field(default_factory=WorldConfig)


def show(world: World) -> None:
    """Print counts and examples."""
    kinds = Counter(document.kind for document in world.documents)
    size = sum(len(document.text) for document in world.documents)
    print(f"{len(world.documents)} documents, {size:,} characters; {len(world.pages)} pages")
    for kind, count in kinds.items():
        example = next(document for document in world.documents if document.kind == kind)
        print(f"\n== {kind}: {count}, for example {example.id}\n{example.text}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    asked = tyro.cli(Arguments, args=arguments, prog="pyengine.world")
    return run(lambda: act(asked))


def act(arguments: Arguments) -> None:
    """Show, write, serve, as asked."""
    if not (arguments.show or arguments.write or arguments.serve):
        raise UserError("nothing to do: give --show, --write FOLDER or --serve")
    arguments.config.check("config.")
    world = World(arguments.config)
    if arguments.show:
        show(world)
    if arguments.write:
        count = write_world(world, arguments.write, arguments.published)
        print(f"{count} pages in {arguments.write}/site; truth and data beside it")
    if arguments.serve:
        with serve(world, arguments.published, port=arguments.port) as base:
            print(f"serving {len(world.pages)} pages at {base} (Ctrl-C ends)", flush=True)
            try:
                while True:
                    time.sleep(3600)
            except KeyboardInterrupt:
                pass


if __name__ == "__main__":
    sys.exit(main())
