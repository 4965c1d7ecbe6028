"""Have a model write conversations to train on.

    python -m pyengine.synthesize runs/default --prompts prompts.jsonl --out made.jsonl
    OPENAI_API_KEY=... python -m pyengine.synthesize https://host/v1 --prompts web/documents.jsonl --turns 3
    python -m pyengine.train --sft.conversations made.jsonl

Beside made.jsonl lie made.removed.jsonl (what was not kept, and why) and made.journal.jsonl (all that was written). A
run that was stopped goes on where it was when the command is given again; with other filters it asks the model nothing.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import tyro

from .. import __version__
from ..command import run
from ..data import Prompt, read_guideline, read_prompts
from ..errors import UserError
from ..files import Journal, file_hash
from ..ranges import AT_LEAST_0, AT_LEAST_1, POSITIVE, Range, check_ranges
from ..train.progress import Progress, note, note_left_out
from .finish import Filters, Row, Summary, finish
from .speakers import TIMEOUT, Sampling, Speaker, open_speaker
from .talk import Made, Script, Talk, converse

FLUSH = 2.0  # seconds of work that a power cut may cost


@dataclass(frozen=True)
class Command:
    """Have a model write conversations to train on."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """a run's folder, a Hugging Face directory, a GGUF file, or the base URL of an OpenAI-compatible endpoint
    (http://host:8000/v1), whose key is read from OPENAI_API_KEY"""
    prompts: Path
    """what conversations begin with: JSONL with prompts, messages, topics or texts, or .txt with a prompt a line"""
    out: Path = Path("made.jsonl")
    """the conversations that are kept"""
    per_prompt: Annotated[int, AT_LEAST_1] = 1
    """conversations from each prompt, each with other dice; more may be asked for later"""
    turns: Annotated[int, AT_LEAST_1] = 1
    """answers in a conversation; the model plays the user, too"""
    guideline: Path | None = None
    """a text that the answers shall follow; shown to the model, left out of the conversations"""
    system: str = ""
    """a system prompt that conversations begin with, and keep"""
    user_guideline: Path | None = None
    """a text that the questions shall follow when the model plays the user, say who that is"""
    passage: Annotated[int, AT_LEAST_1] = 4000
    """characters of a text that are shown at most"""
    give_passage: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """the text stands in the first question, instead of being shown to the writers alone"""
    sampling: tyro.conf.OmitArgPrefixes[Sampling] = field(default_factory=Sampling)
    filters: tyro.conf.OmitArgPrefixes[Filters] = field(default_factory=Filters)
    seed: Annotated[int, AT_LEAST_0] = 0
    """of all dice; the same command writes the same conversations"""
    parallel: Annotated[int, Range(ge=1, le=4096)] = 32
    """conversations written at once"""
    name: str = ""
    """the model's name, in the provenance and at an endpoint; by default the folder's, or the endpoint's only one"""
    search: bool = True
    """let a run's model search as it answers"""
    device: str = "cpu"
    """where a local model computes: cpu, cuda or cuda:N"""
    retries: Annotated[int, AT_LEAST_0] = 6
    """times that an endpoint is asked again, each time after a longer wait"""
    timeout: Annotated[float, POSITIVE] = TIMEOUT
    """seconds that an endpoint may be silent over one answer"""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """show the traceback of a mistake"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    command = tyro.cli(Command, args=arguments, prog="pyengine.synthesize")
    stopped = "stopped; the same command goes on from here"
    return run(lambda: synthesize(command), command.debug, stopped)


def synthesize(command: Command) -> None:
    """Write what is missing, then the files."""
    check_ranges(command)
    prompts, skipped = read_prompts(command.prompts)
    note_left_out(skipped)
    guideline = read_guideline(command.guideline) if command.guideline else None
    user = read_guideline(command.user_guideline) if command.user_guideline else None
    script = Script(
        command.turns, guideline.text if guideline else "", command.system, user.text if user else "",
        command.give_passage,
        command.seed,
    )  # fmt: skip
    speaker = open_speaker(
        command.model, command.sampling, command.parallel, name=command.name, searches=command.search,
        device=command.device, retries=command.retries, timeout=command.timeout,
    )  # fmt: skip
    with Journal(beside(command.out, "journal"), FLUSH) as journal:
        stamp = {
            "model": speaker.about, "sampling": asdict(command.sampling), "seed": command.seed,
            "turns": command.turns, "guideline": guideline.stamp if guideline else None,
            "user_guideline": user.stamp if user else None, "by": f"pyengine {__version__}",
        }  # fmt: skip
        done = opened(journal, {
            **stamp, "system": command.system, "passage": command.passage, "give_passage": command.give_passage,
            "search": command.search, "prompts": file_hash(command.prompts),
        })  # fmt: skip
        wanted = [n for n in range(len(prompts) * command.per_prompt) if n not in done]
        failed = write(speaker, wanted, prompts, script, command.passage, journal) if wanted else {}
        removed = beside(command.out, "removed")
        tell(finish(journal, failed, command.out, removed, command.filters, stamp), command.out, removed)
    if failed and len(failed) == len(wanted):
        raise UserError(f"every conversation failed, the first with: {failed[wanted[0]]['error']}")


def beside(out: Path, what: str) -> Path:
    """made.jsonl -> made.WHAT.jsonl"""
    return out.with_name(f"{out.stem}.{what}.jsonl")


def opened(journal: Journal, settings: Row) -> set[int]:
    """The numbers of the conversations that a journal has; UserError if it was begun with other settings."""
    done: set[int] = set()
    begun: Row | None = None
    for _, row in journal.rows():
        if begun is None:
            begun = row
        else:
            done.add(row["number"])
    if begun is None:
        journal.append(settings)
        return done
    before, now = flat(begun), flat(settings)
    if other := next((key for key in now if before.get(key) != now[key]), None):
        raise UserError(
            f"{journal.path} was begun with {other} = {before.get(other)!r}, now it is {now[other]!r}; "
            "choose another --out, or delete the file"
        )
    return done


def flat(settings: Row, prefix: str = "") -> Row:
    """{"sampling": {"temperature": 1}} -> {"sampling.temperature": 1}"""
    found: Row = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def write(
    speaker: Speaker,
    numbers: list[int],
    prompts: list[Prompt],
    script: Script,
    passage: int,
    journal: Journal,
) -> dict[int, Row]:
    """Have these conversations written into the journal; the rows of those that failed, which are not in it."""
    failed: dict[int, Row] = {}
    start, count = time.perf_counter(), 0

    def talks() -> Iterator[Talk]:
        for number in numbers:
            prompt = prompts[number % len(prompts)].cut(passage)
            yield Talk(number, converse(prompt, number, script))

    with Progress("conversations", len(numbers)) as progress:

        def done(talk: Talk, made: Made) -> None:
            nonlocal count
            row: dict[str, Any] = {
                "number": talk.number, "prompt": prompts[talk.number % len(prompts)].where,
                "messages": made.messages, "cut": made.cut,
                "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            }  # fmt: skip
            if made.error:
                failed[talk.number] = {**row, "error": made.error}
            else:
                journal.append(row)
            count += 1
            rate = speaker.tokens / (time.perf_counter() - start)
            failures = f", {len(failed)} failed" if failed else ""
            progress.update(count, f"{rate:,.0f} tokens/s{failures}")

        speaker.work(talks(), done)
    return failed


def tell(summary: Summary, out: Path, removed: Path) -> None:
    """Say what became of the conversations."""
    note(f"{out}: {summary.kept} conversations")
    if summary.removed:
        reasons = ", ".join(f"{count} {reason}" for reason, count in summary.removed.most_common())
        note(f"{removed}: {summary.removed.total()} removed: {reasons}")
    if summary.kept:
        shares = " / ".join(f"{share:.2f}" for share in summary.distinct)
        note(f"distinct words / pairs / triples of the answers (distinct-n): {shares}")


if __name__ == "__main__":
    sys.exit(main())
