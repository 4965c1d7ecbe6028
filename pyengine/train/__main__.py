"""The command line of training.

    python -m pyengine.train                        every stage on the closed world, in runs/default
    python -m pyengine.train pretrain --seed 3      one stage
    python -m pyengine.train --web.source pages/    real input in place of the world's
    python -m pyengine.train --dry-run              what would run, how large, how long
    python -m pyengine.train --device cuda          on a GPU
    torchrun --nproc-per-node 2 -m pyengine.train   training steps shared by two processes

The same command given again does only what is missing, with any number of processes.
"""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from .. import command as shell
from .. import report
from ..devices import device_of
from ..errors import UserError
from . import machine
from .config import Config, check, read_config
from .dial import resolve
from .given import look
from .loop import assist
from .progress import console
from .run import RUNS, Run, opened, perform, state_of
from .stages import STAGES
from .team import Team


@dataclass(frozen=True)
class Command:
    """Train a model, from a web site to a reasoning chat model."""

    stages: tyro.conf.Positional[tuple[str, ...]] = ()
    """of crawl clean tokenizer shards pretrain demo sft know search rl reward rlhf evaluate report; none means all"""
    config: Path | None = None
    """a TOML file of settings; flags go over it"""
    resume: bool = False
    """continue the run of this name with the settings stored in it"""
    force: bool = False
    """run the stages named even if they are done"""
    dry_run: bool = False
    """print the plan, the model's size, and estimates of memory and time; run nothing"""
    debug: bool = False
    """show the traceback of a mistake"""
    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 after a mistake, 130 after Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return shell.run(
        lambda: take_part(arguments), "--debug" in arguments, "stopped; the same command goes on from here"
    )


def take_part(arguments: list[str]) -> None:
    """Run the road, or assist the process that does."""
    command = parse(arguments)
    team = Team.join(device_of(command.settings.device))
    if team.rank:
        Run(command.settings).prepare()
        assist(team)
        team.leave()
        return
    try:
        execute(command)
    finally:
        team.tell("end")
        team.leave()


def parse(arguments: list[str]) -> Command:
    """Flags over --config over (with --resume) the run's stored settings over the defaults."""
    settings = Config()
    if "--resume" in arguments:
        stored = RUNS / (_value_of("--name", arguments) or settings.name) / "config.toml"
        if not stored.exists():
            raise UserError(f"--resume: there is no run to continue, {stored} does not exist; check --name")
        settings = read_config(stored)
    if path := _value_of("--config", arguments):
        settings = read_config(Path(path), settings)
    command = tyro.cli(Command, args=arguments, default=Command(settings=settings), prog="pyengine.train")
    for name in command.stages:
        if name not in STAGES:
            raise UserError(f"there is no stage {name!r}; expected one of {', '.join(STAGES)}")
    return command


def execute(command: Command) -> None:
    """Run the stages asked for, or print the plan."""
    settings = resolve(command.settings)
    check(settings)
    stages = [stage for stage in STAGES.values() if not command.stages or stage.name in command.stages]
    look(settings, [stage.name for stage in stages])
    if command.dry_run:
        print_plan(Run(settings), [stage.name for stage in stages])
        return
    started = time.monotonic()
    with opened(settings, page=report.refresh) as run:
        told = (
            f"run {run.folder}, seed {run.config.seed}, {run.threads} threads, {machine.name_of(run.device)}"
        )
        console.print(told, markup=False)
        try:
            for stage in stages:
                perform(run, stage, force=command.force and stage.name in command.stages)
        finally:
            report.settle(run)
        console.print(f"[bold]done[/bold] in {time.monotonic() - started:.0f} s: {run.folder}")


def print_plan(run: Run, names: list[str]) -> None:
    """What would run and why, and what pre-training needs."""
    from .pretrain import estimate

    table = Table("stage", "does", "state", title=f"plan of {run.folder}")
    for name in names:
        stage = STAGES[name]
        state, why = state_of(run, stage)
        table.add_row(name, stage.title, f"{'done' if state == 'done' else 'to run'}: {why}")
    console.print(table)
    for line in estimate(run):
        console.print(line, markup=False)


def _value_of(flag: str, arguments: list[str]) -> str | None:
    """The value given to a flag, before the full parse, which needs the files it may name."""
    for i, text in enumerate(arguments):
        if text == flag and i + 1 < len(arguments):
            return arguments[i + 1]
        if text.startswith(flag + "="):
            return text[len(flag) + 1 :]
    return None


if __name__ == "__main__":
    sys.exit(main())
