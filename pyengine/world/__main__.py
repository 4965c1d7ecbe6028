"""Look at the closed world: `python -m pyengine.world --show`, `--serve`, or `--write FOLDER`."""

import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from ..errors import UserError
from ..files import atomic_write, write_json
from . import World, WorldConfig
from .server import serve


@dataclass
class Arguments:
    """Generate the closed world and show, write or serve it."""

    show: bool = False  # print what the world holds, and one example of each kind of document
    write: Path | None = None  # write the site's pages and their truth (truth.json) into this folder
    serve: bool = False  # serve the site on the loopback interface until interrupted
    port: int = 8000  # 0 takes a free one
    published: Literal["cutoff", "later"] = "cutoff"  # whether pages dated after the cut-off exist
    config: WorldConfig = field(default_factory=WorldConfig)


def show(world: World) -> None:
    """Print counts and examples."""
    kinds = Counter(document.kind for document in world.documents)
    size = sum(len(document.text) for document in world.documents)
    print(f"{len(world.documents)} documents, {size:,} characters; {len(world.pages)} pages")
    for kind, count in kinds.items():
        example = next(document for document in world.documents if document.kind == kind)
        print(f"\n== {kind}: {count}, for example {example.id}\n{example.text}")


def write(world: World, folder: Path, published: str) -> None:
    """Write pages as files (a folder's index as index.html) and truth.json: path -> what is true of it."""
    truth = {}
    for page in world.pages:
        if page.status != 200 or (page.later and published == "cutoff"):
            continue
        name = page.path.lstrip("/") + ("index.html" if page.path.endswith("/") else "")
        with atomic_write(folder / name, "wb") as file:
            file.write(page.body)
        truth[page.path] = {
            "kind": page.kind, "fate": page.fate, "title": page.title, "text": page.text, "date": page.date,
            "lang": page.lang, "look": page.look, "duplicate_of": page.duplicate_of, "private": page.private,
        }  # fmt: skip
    write_json(folder / "truth.json", truth)
    print(f"{len(truth)} pages in {folder}")


def main() -> None:
    """The command line."""
    arguments = tyro.cli(Arguments)
    if not (arguments.show or arguments.write or arguments.serve):
        raise UserError("nothing to do: give --show, --write FOLDER or --serve")
    world = World(arguments.config)
    if arguments.show:
        show(world)
    if arguments.write:
        write(world, arguments.write, arguments.published)
    if arguments.serve:
        with serve(world, arguments.published, port=arguments.port) as base:
            print(f"serving {len(world.pages)} pages at {base} (Ctrl-C ends)", flush=True)
            try:
                while True:
                    time.sleep(3600)
            except KeyboardInterrupt:
                pass


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
