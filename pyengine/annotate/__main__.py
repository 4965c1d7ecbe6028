"""Write ideal answers and rank a model's, in a browser.

    python -m pyengine.annotate MODEL --prompts prompts.jsonl            rank its answers, and mend them
    python -m pyengine.annotate --prompts prompts.jsonl                  write answers, without a model
    python -m pyengine.annotate --export                                 only write the files for training

In annotations/ lie journal.jsonl (every decision, as it was made), conversations.jsonl (for --sft.conversations) and
rankings.jsonl (for a reward model).
"""

import os
import sys
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from ..command import run
from ..data import Guideline, Prompt, read_guideline, read_prompts
from ..data.rows import Skipped
from ..errors import UserError
from ..files import Journal
from ..ranges import AT_LEAST_0, AT_LEAST_1, SHARE, Range, check_ranges
from ..serve.address import KEEP_ALIVE, LOOPBACK, listen, open_at
from ..synthesize import Sampling, open_speaker
from ..train.progress import note, note_left_out
from ..world import guidelines
from .store import Store


@dataclass(frozen=True)
class Command:
    """Write ideal answers and rank a model's, in a browser."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")] = ""
    """whose answers are ranked: a run's folder, a Hugging Face directory, a GGUF file, or the base URL of an
    OpenAI-compatible endpoint, whose key is read from OPENAI_API_KEY; none: answers are only written"""
    prompts: Path | None = None
    """JSONL with prompts or messages, or .txt with a prompt a line"""
    out: Path = Path("annotations")
    """folder of the decisions"""
    answers: Annotated[int, Range(ge=2, le=9)] = 4
    """answers to each prompt; equal ones count once, and those that did not end are left out"""
    guideline: Path | None = None
    """the text that is shown beside the work; by default pyengine's own"""
    by: str = ""
    """the name that the page begins with"""
    overlap: Annotated[float, SHARE] = 1.0
    """share of the prompts that everybody sees; each of the others goes to one person, or to the next one after half an
    hour without a decision"""
    sampling: tyro.conf.OmitArgPrefixes[Sampling] = field(default_factory=Sampling)
    seed: Annotated[int, AT_LEAST_0] = 0
    """of the answers' dice"""
    name: str = ""
    """the model's name, in what is kept and at an endpoint; by default the folder's, or the endpoint's only one"""
    device: str = "cpu"
    """where a local model computes: cpu, cuda or cuda:N"""
    parallel: Annotated[int, AT_LEAST_1] = 16
    """answers written at once"""
    host: str = "127.0.0.1"
    """address to listen on; give an API key before opening it to others"""
    port: Annotated[int, Range(ge=0, le=65535)] = 8001
    """port to listen on; 0 takes a free one"""
    api_key: str = os.environ.get("PYENGINE_API_KEY", "")
    """what people must show; the environment variable PYENGINE_API_KEY keeps it out of sight"""
    export: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """write the files for training from what was decided, and end"""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """show the traceback of a mistake"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    command = tyro.cli(Command, args=arguments, prog="pyengine.annotate")
    return run(lambda: annotate(command), command.debug)


def annotate(command: Command) -> None:
    """Serve the page until interrupted, then write the files."""
    check_ranges(command)
    path = command.out / "journal.jsonl"
    if command.export:
        if not path.exists():
            raise UserError(f"{path}: no such file; nothing was decided there")
        with Journal(path) as journal:
            store = Store(journal)
            store.export(command.out)
            return tell(store, command.out)
    try:
        import uvicorn

        from .app import Annotation, make_app
    except ImportError as error:
        raise UserError(
            f"{error.name} is missing; install it with `pip install pyengine-llm[serve]`"
        ) from None
    prompts, guideline = prompts_of(command.prompts), guideline_of(command.guideline)
    local = command.host in LOOPBACK
    if not local and not command.api_key:
        print("warning: anybody who reaches this address may decide; --api-key asks for a key",
              file=sys.stderr)  # fmt: skip
    with closing(listen(command.host, command.port)) as listener:
        speaker = open_speaker(
            command.model, command.sampling, command.parallel, name=command.name, searches=False,
            device=command.device,
        ) if command.model else None  # fmt: skip
        with Journal(path) as journal:
            store = Store(journal, prompts, speaker is not None, command.overlap)
            annotation = Annotation(
                store, guideline, speaker, command.answers, seed=command.seed, by=command.by
            )
            app = make_app(annotation, command.out, command.api_key or None, LOOPBACK if local else None)
            note(f"{len(store.items)} prompts; decide at {open_at(command.host, listener)}/, Ctrl-C ends")
            config = uvicorn.Config(
                app, log_level="warning", timeout_keep_alive=KEEP_ALIVE, timeout_graceful_shutdown=2
            )
            try:
                uvicorn.Server(config).run(sockets=[listener])
            except KeyboardInterrupt:  # as it is meant to end
                pass
            tell(store, command.out)


def prompts_of(path: Path | None) -> list[Prompt]:
    """The prompts of a file that ask something; the others are told."""
    if path is None:
        raise UserError("give --prompts, a file of what is to be answered")
    found, skipped = read_prompts(path)
    skipped += [
        Skipped(prompt.where, "there is no question in it", "") for prompt in found if not prompt.messages
    ]
    note_left_out(skipped, "more")
    if prompts := [prompt for prompt in found if prompt.messages]:
        return prompts
    raise UserError(f"{path}: expected prompts or messages")


def guideline_of(path: Path | None) -> Guideline:
    """The guideline in a file, or pyengine's own."""
    if path:
        return read_guideline(path)
    return Guideline(guidelines().strip())


def tell(store: Store, folder: Path) -> None:
    """Say what has been decided, and how far people agree."""
    written, ranked = (sum(1 for _ in rows) for rows in (store.conversations(), store.rankings()))
    skipped = sum(row["skip"] for row in store.decisions)
    note(f"{folder}: {written} conversations, {ranked} rankings, {skipped} skipped")
    if found := store.agreement():
        note(
            f"people agree about {found.share:.0%} of {found.comparisons} pairs of answers that two of them ranked "
            f"(kappa {found.kappa:.2f})"
        )


if __name__ == "__main__":
    sys.exit(main())
