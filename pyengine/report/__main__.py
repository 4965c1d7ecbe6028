"""python -m pyengine.report runs/NAME : draw the page of a run from what the run has written."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from .. import command
from ..errors import UserError
from ..train.config import read_config
from ..train.run import Run
from .page import write


def main(arguments: list[str] | None = None) -> int:
    """Draw the page; returns the exit status."""
    parser = argparse.ArgumentParser(prog="pyengine.report", description="Draw the page of a run.")
    parser.add_argument("run", type=Path, help="the run's folder, such as runs/default")
    folder: Path = parser.parse_args(arguments).run
    return command.run(lambda: draw(folder))


def draw(folder: Path) -> None:
    """Draw the page of the run in `folder`."""
    if not (folder / "config.toml").exists():
        raise UserError(f"{folder} is no run: it holds no config.toml; give a folder such as runs/default")
    config = replace(read_config(folder / "config.toml"), name=folder.resolve().name)
    write(Run(config, folder.resolve().parent), live=False)
    print(folder / "report.html")


if __name__ == "__main__":
    sys.exit(main())
